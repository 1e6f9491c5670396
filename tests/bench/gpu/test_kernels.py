import torch
from tiny_gpu import TINY

from bench.gpu import cases, kernels
from tests.conftest import DEVICE


def test_every_check_holds():
    *checks, memory = kernels.rows("checks", TINY)
    assert len(checks) == 7 and memory[1]["end"]
    for name, figures in checks:
        assert figures["right"], f"{name}: {figures['detail']}"


def test_every_op_is_timed_against_peers(no_compiler):
    timed = dict(kernels.rows("times", TINY))
    for op in kernels.GOALS:
        assert timed[f"{op}: kernels"]["floor_us"] > 0 and len([name for name in timed if name.startswith(op)]) >= 2


def test_a_wrong_kernel_is_told(monkeypatch):
    monkeypatch.setattr(
        cases, "label", lambda masks, connectivity, implementation: masks.int() * (implementation == "triton")
    )
    name, ok, _ = cases.check_labels(torch.device(DEVICE), 32)
    assert name.startswith("label") and not ok
