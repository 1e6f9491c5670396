"""Maps and targets of the DB loss, and what kernels and reference make of them."""

import torch

from kernels.db_loss import op
from kernels.db_targets import DBTargets
from tests.conftest import DEVICE

ULPS = 8 * 2.0**-23
SHAPES = [(1, 1, 1), (1, 7, 13), (2, 23, 31), (3, 40, 130)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def example(shape=(2, 23, 31), dtype=torch.float32, thresh_dtype=torch.bfloat16, seed=0, positive=0.1, ignored=0.1):
    generator = torch.Generator().manual_seed(seed)

    def uniform():
        return torch.rand(shape, generator=generator)

    maps = ((uniform() < positive).byte(), (uniform() >= ignored).byte(), 0.3 + 0.4 * uniform(), uniform() < 0.4)
    targets = DBTargets(*(field.to(DEVICE) for field in maps))
    targets = targets._replace(thresh_map=targets.thresh_map.to(thresh_dtype), thresh_mask=targets.thresh_mask.byte())
    x = (torch.randn(shape, generator=generator) * 2 - 2).to(DEVICE, dtype)
    return x, torch.randn(shape, generator=generator).to(DEVICE, dtype), targets


def by_kernels(x, y, targets, mode="paper", ratio=3.0, grad=1.0):
    """(losses, stats, gradients) through the operators."""
    options = ([50.0, ratio, 5.0, 10.0, 1.0], mode == "paper", True)
    losses, stats = op._loss_op(x, y, *targets, *options)
    grad = torch.tensor(grad, device=x.device)
    return losses, stats, op._gradient_op(x, y, *targets, stats, grad, *options)
