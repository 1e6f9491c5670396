"""export.weights: one file for this project and for plain timm."""

import json

import pytest
import safetensors
import safetensors.torch
import timm
import torch

from engine.checkpoint import store
from engine.config.load import from_dict
from engine.detection.open import load_detector
from engine.export import weights
from pipelines.errors import UserError
from tests.engine.export.conftest import ALONE

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def test_weights_load_with_one_call_and_in_plain_timm(made, sharp):
    path = made[0] / "m.safetensors"
    model = weights.load(path)
    config = from_dict(store.load_settings(sharp))
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        # the run's own memory format sums in another order
        torch.testing.assert_close(model(image), load_detector(sharp, config, ALONE)(image), rtol=0, atol=1e-4)
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata()
        indices = json.loads(header["out_indices"])
        encoder = timm.create_model(header["encoder"], features_only=True, out_indices=indices)
        tensors = safetensors.torch.load_file(path)
        encoder.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("encoder.")})
        for theirs, ours in zip(encoder.eval()(image), model.encoder(image), strict=True):
            assert torch.equal(theirs, ours)
    safetensors.torch.save_file(tensors, made[0].parent / "bare.safetensors")
    with pytest.raises(UserError, match="its header holds no settings"):
        weights.load(made[0].parent / "bare.safetensors")
