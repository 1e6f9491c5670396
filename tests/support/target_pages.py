"""Pages of polygons, drawn by the kernels and by the reference."""

import torch

from kernels.db_targets import DBTargets, db_targets
from tests.conftest import DEVICE
from tests.kernels.db_targets.test_reference import csr


def drawn(layout, ignore=None, dtype=torch.float32, **options):
    tensors = [tensor.to(DEVICE) for tensor in csr(layout, ignore)]
    return DBTargets(*(m.cpu() for m in db_targets(*tensors, implementation="triton", thresh_dtype=dtype, **options)))
