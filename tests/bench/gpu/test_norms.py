"""`bench.gpu.norms` at a tiny size without a GPU: its check holds and can fail, its cases run."""

import pytest
import torch

from bench.gpu import norms
from tests.conftest import DEVICE


@pytest.fixture(autouse=True)
def no_cpp_compiler(monkeypatch):
    if DEVICE == "cpu":  # half a minute of C++ compilation, for a peer
        monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)


def test_the_check_holds():
    name, ok, detail = norms.check_norms(torch.device(DEVICE), 128)
    assert ok and "2 x 48 x 32 x 32" in name, detail


def test_a_wrong_kernel_is_told(monkeypatch):
    right = norms.norm_relu

    def wrong(y, weight, bias, residual, **options):
        return right(y, weight, bias * 1.02, residual, **options)

    monkeypatch.setattr(norms, "norm_relu", wrong)
    assert not norms.check_norms(torch.device(DEVICE), 128)[1]


def test_every_case_runs_and_the_kernels_have_their_bytes():
    cases = norms.norm_cases(torch.device(DEVICE), 2, 64)
    by_op = {op: [case for case in cases if case.op == op] for op in ("norm_relu", "norm_add_relu")}
    for (op, rows), add in zip(by_op.items(), (False, True)):
        assert [row.what for row in rows if row.bytes] == ["kernels"] and len(rows) == 4
        assert rows[0].bytes == 2 * 48 * 16 * 16 * norms.BYTES[add]
        results = [row.call() for row in rows]
        assert all(len(found) == 4 + add for found in results), op
        for found in results[1:]:
            for a, b in zip(found, results[0]):  # where a sum is rounded to 0, ReLU decides otherwise
                error = (a.float() - b.float()).abs() / b.float().abs().max()
                assert (error > 0.05).float().mean() < 0.002 if a.ndim == 4 else error.max() < 0.2, op
