import math

import pytest
import torch
from norm_examples import EPS, NHWC, example

from kernels import runtime
from kernels.norm_relu import norm_relu, rows
from kernels.norm_relu.forward import moments
from tests.conftest import DEVICE


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_a_variance_beyond_float32(implementation):
    y, weight, bias, *_ = example((2, 3, 5, 7))
    y[:, 1] *= 1e30
    z, mean, var = norm_relu(y, weight, bias, eps=EPS, implementation=implementation)
    assert var[1] == math.inf and mean[1].isfinite() and (z[:, 1] == bias[1].relu()).all() and z.isfinite().all()


def relative_error(y, var):
    exact = y.double().var((0, 2, 3), correction=0)
    return ((var - exact).abs() / exact).max().item()


def made_to_be_hard(shape):
    """A spread of 0.01 around 1000; then the same with the first tile far away, which makes the shift a bad one."""
    y = (1000 + 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).contiguous(memory_format=NHWC)
    yield y
    far = y.clone(memory_format=NHWC)
    far.permute(0, 2, 3, 1).reshape(-1, shape[1])[: rows.lay_out(y, 3).tile_rows] += 0.5
    yield far


def test_the_variance_keeps_its_bound(monkeypatch):
    monkeypatch.setattr(runtime, "num_programs", lambda device, per_sm, most: 1)
    for y in made_to_be_hard((2, 8, 96, 96)):
        y = y.to(DEVICE)
        tiles = rows.lay_out(y, 3).tiles
        _, var = moments(y)
        bound = 3 * (1 + tiles) * (rows.LOADS + tiles + 12) * 2.0**-24
        assert tiles >= 18 and relative_error(y, var) <= bound
        naive = y.square().mean((0, 2, 3)) - y.mean((0, 2, 3)).square()
        assert relative_error(y, naive) > 100 * bound


def test_typical_values_have_a_far_smaller_error():
    for seed in range(3):
        y = example((2, 48, 40, 40), seed=seed)[0]
        assert relative_error(y, moments(y)[1]) < 2e-6
