"""Nearest upsampling by whole factors, whose gradient is a sum.

    y = repeat(x, 2)                     # nearest, (N, C, H, W) -> (N, C, 2H, 2W)
    sum_gradients(model)                 # the same for every nn.Upsample of a model, in place

Why not torch's own: compiled for a GPU, its gradient is a float32 scatter with atomics into an NCHW tensor (HRNet-W44
at 1280 px: 161 million atomics an image, counted, and no two runs alike). On a CPU it copies a channels_last gradient
to NCHW and back, 2.5 % of a step of `receipts_cpu`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The factor that Inductor writes into a GPU's kernel that reads the sum; a larger one would be a call of its own.
LARGEST_SUM = 2


class _Repeat(torch.autograd.Function):
    """Nearest upsampling whose gradient is the sum over each factor x factor block."""

    @staticmethod
    def forward(x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="nearest")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        factor = ctx.factor
        # Only in a compiled graph of a GPU: everywhere else one call of torch's is as fast, and rounds once.
        while gradient.is_cuda and torch.compiler.is_compiling() and factor > LARGEST_SUM and factor % 2 == 0:
            gradient, factor = F.avg_pool2d(gradient, 2, divisor_override=1), factor // 2
        return F.avg_pool2d(gradient, factor, divisor_override=1), None


def repeat(x: Tensor, factor: int) -> Tensor:
    """Nearest upsampling by a whole factor: (N, C, H, W) floats -> (N, C, factor * H, factor * W), same layout."""
    if torch.compiler.is_exporting() or not torch.is_grad_enabled():
        return F.interpolate(x, scale_factor=float(factor), mode="nearest")
    return _Repeat.apply(x, factor)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def dense_gradient(x: Tensor) -> Tensor:
    """x, whose gradient comes dense in channels_last: as a slice of a wider one cuDNN would be given a copy of it."""
    return _Dense.apply(x) if x.is_cuda and torch.is_grad_enabled() else x


class Repeat(nn.Upsample):
    """nn.Upsample(scale_factor=a whole number, mode="nearest") by `repeat`."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.scale_factor, (int, float))  # as `sum_gradients` has seen
        return repeat(x, int(self.scale_factor))


def sum_gradients(model: nn.Module) -> None:
    """Makes every nearest nn.Upsample by a whole factor a `Repeat`, in place (HRNet's fusions, the smooth head)."""
    for module in model.modules():
        if type(module) is nn.Upsample and module.mode == "nearest" and _whole(module.scale_factor):
            module.__class__ = Repeat


def _whole(factor: Any) -> bool:
    return isinstance(factor, (int, float)) and factor == int(factor)
