"""Tensors of PyTorch files from elsewhere; what is refused for safety: tests/faults/test_security.py."""

import pytest
import torch

from engine.export.foreign import find_tensors, import_file, read
from pipelines.errors import UserError


def test_weights_are_found_below_what_training_programs_put_around_them():
    weight = torch.ones(2)
    held = {"epoch": 3, "state_dict": {"module.model.a.weight": weight, "module.model.b": {"bias": weight}}}
    tensors, left = find_tensors(held)
    assert list(tensors) == ["a.weight", "b.bias"] and left == ["epoch (int)"]
    assert find_tensors([weight]) == ({}, [])


def test_a_file_becomes_safetensors_once(tmp_path):
    torch.save({"model": {"a": torch.arange(3.0)}}, tmp_path / "in.pt")
    tensors, left = read(tmp_path / "in.pt")
    assert tensors["a"].tolist() == [0, 1, 2] and left == []
    out = tmp_path / "out.safetensors"
    result = import_file(tmp_path / "in.pt", out, [])
    assert result["kind"] == "tensors" and result["numbers"] == 3 and result["tensors"][0]["shape"] == [3]
    with pytest.raises(UserError, match="exists already"):
        import_file(tmp_path / "in.pt", out, [])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
