"""export.network: which weights leave."""

import pytest
import torch
import yaml

from engine.checkpoint import store
from engine.export import network
from pipelines.errors import UserError


def test_an_ensemble_is_refused(trained, tmp_path):
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained)}]}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="is several networks; export one of its members"):
        network.load(str(tmp_path), [])


def test_averaged_weights_are_preferred_as_evaluation_does(trained, tmp_path):
    import shutil

    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    path = store.locate(run).resolve()
    tensors = store.load_part(path, "model")
    parts = {"model": tensors, "ema": {k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}}
    text = (path / "config.yaml").read_text()
    with_ema = store.write(tmp_path / "other", parts, {"step": 1}, text)
    for settings, part in ((["eval.ema=true"], "ema"), (["eval.ema=false"], "model")):
        found = network.load(str(with_ema), settings).module.detector.state_dict()
        assert torch.equal(found["head.prob.0.weight"], parts[part]["head.prob.0.weight"])
