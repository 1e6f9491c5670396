import pytest
import torch
from tiny_gpu import TINY

from bench.gpu import __main__, cases, kernels
from tests.conftest import DEVICE


def test_every_check_holds():
    *checks, memory = kernels.rows("checks", TINY)
    assert len(checks) == 7 and memory[1]["end"]
    for name, figures in checks:
        assert figures["right"], f"{name}: {figures['detail']}"


@pytest.mark.parametrize("op", kernels.TIMED)
def test_every_op_is_timed_against_peers(op, no_compiler):
    assert ("kernels", f"times, {op}") in __main__.PLAN
    *timed, copy = kernels.rows(f"times, {op}", TINY)
    assert len(timed) >= 2 and all(figures["us"] > 0 for _, figures in timed)
    assert any(figures.get("floor_us", 0) > 0 for _, figures in timed)
    assert copy[1]["end"] and (DEVICE == "cpu") == (copy[1]["clocks"] == "; ")


def test_a_wrong_kernel_is_told(monkeypatch):
    monkeypatch.setattr(
        cases, "label", lambda masks, connectivity, implementation: masks.int() * (implementation == "triton")
    )
    name, ok, _ = cases.check_labels(torch.device(DEVICE), 32)
    assert name.startswith("label") and not ok
