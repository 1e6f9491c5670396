import pytest

from kernels import runtime
from kernels.db_targets import db_targets
from tests.kernels.db_targets.test_reference import GOOD, csr


def test_kernels_need_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRETED", False)
    with pytest.raises(ValueError, match="db_targets: implementation='triton' needs tensors on a CUDA device"):
        db_targets(*csr([[GOOD]]), height=7, width=13, implementation="triton")
