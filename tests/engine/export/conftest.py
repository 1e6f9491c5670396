"""A detector with clear maps, and what one command wrote of it, made once for this room."""

import json
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch

from engine.checkpoint import store
from engine.config.load import from_dict
from engine.detection.open import load_detector
from engine.distributed import Ranks
from engine.export import __main__ as export

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
LOW = ["post.bin_thresh=0.6", "post.box_thresh=0.62", "post.min_size_px=1", "post.min_unclipped_px=2"]


@pytest.fixture(scope="package")
def sharp(trained, tmp_path_factory):
    """A checkpoint of the tiny detector, whose maps hardly rise, with 30 times the contrast: dozens of quads by LOW."""
    source = store.locate(trained)
    tensors = store.load_part(source, "model")
    config = from_dict(store.load_settings(source))
    with torch.inference_mode():
        middle = load_detector(source, config, ALONE)(torch.zeros(1, 3, 96, 128)).median()
    weight, bias = "head.prob.6.weight", "head.prob.6.bias"
    tensors |= {weight: tensors[weight] * 30, bias: (tensors[bias] - middle) * 30}
    folder = tmp_path_factory.mktemp("sharp")
    return store.write(folder, {"model": tensors}, {"step": 1}, (source / "config.yaml").read_text())


@pytest.fixture(scope="package")
def made(sharp, tmp_path_factory):
    """(folder of what one command wrote, its JSON)."""
    out, said = tmp_path_factory.mktemp("export"), StringIO()
    files = ["--onnx", str(out / "m.onnx"), "--weights", str(out / "m.safetensors")]
    with redirect_stdout(said):  # each network traced takes 3 s: the others are slow tests
        assert export.main([str(sharp), *files, "--json", *LOW]) == 0
    return out, json.loads(said.getvalue())
