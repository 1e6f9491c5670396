"""Inputs of norm_relu, and what its implementations make of them."""

import torch
import torch.nn.functional as F

from kernels.norm_relu import norm_relu
from tests.conftest import DEVICE

ULPS = 16 * 2.0**-23
EPS = 1e-5
NHWC = torch.channels_last
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# one pixel a page, one channel, no multiple of 4, several tiles, blocks of channels beyond the first
SHAPES = [(5, 44, 1, 1), (2, 1, 5, 7), (1, 3, 13, 11), (1, 44, 7, 13), (2, 48, 17, 19), (1, 88, 11, 13), (1, 136, 5, 7)]


def example(shape, dtype=torch.float32, add=False, seed=0):
    """(y, weight, bias, residual or None, dz): weights of both signs and one 0, means beside 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator)

    y = (normal(*shape) * 2 + 3 * normal(shape[1])[None, :, None, None]).to(dtype).contiguous(memory_format=NHWC)
    weight, bias = normal(shape[1]), normal(shape[1])
    weight[-1] = 0.0
    residual, dz = (normal(*shape).to(dtype).contiguous(memory_format=NHWC) for _ in range(2))
    return [t.to(DEVICE) for t in (y, weight, bias)] + [residual.to(DEVICE) if add else None, dz.to(DEVICE)]


def results(call, y, weight, bias, residual, dz, dtype=None):
    """(z, mean, var, dy, dweight, dbias[, dresidual]) of `call`, in float64 when asked."""
    given = [
        None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in (y, weight, bias, residual)
    ]
    z, mean, var = call(*given)
    grads = torch.autograd.grad(z, [t for t in given if t is not None], dz.to(z.dtype))
    return z, mean, var, *grads


def by(implementation):
    return lambda y, weight, bias, residual: norm_relu(
        y, weight, bias, residual, eps=EPS, implementation=implementation
    )


def by_layers(y, weight, bias, residual):
    """PyTorch's own layers, in y's dtype."""
    z = F.batch_norm(y, None, None, weight, bias, training=True, eps=EPS)
    z = (z if residual is None else z + residual).relu()
    var, mean = torch.var_mean(y.detach().to(weight.dtype), (0, 2, 3), correction=0)
    return z, mean, var


def scales(y, weight, bias, residual, dz):
    """The largest terms that each result is the sum of, per channel, in the order of `results`."""
    y, weight, bias, dz = (t.double() for t in (y, weight, bias, dz))
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    rstd = (var + EPS).rsqrt()
    normal = ((y - mean[None, :, None, None]) * rstd[None, :, None, None]).abs().amax((0, 2, 3))
    away = normal * weight.abs() + bias.abs() + (0 if residual is None else residual.double().abs().amax((0, 2, 3)))
    largest = dz.abs().amax((0, 2, 3))
    count = y.numel() // y.shape[1]
    found = [away, mean.abs() + var.sqrt(), var, largest * (weight.abs() * rstd) * (2 + normal * normal)]
    return [*found, count * largest * normal, count * largest, largest]
