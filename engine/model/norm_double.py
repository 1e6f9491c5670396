"""BatchNorm, ReLU and the transposed convolution to one channel: the end of each branch of the head.

    logits = DoubleToOne(64)(F.relu(norm(y)))        # (N, 64, H, W) -> (N, 1, 2H, 2W), as torch does it
    logits = DoubleToOne(64).after_norm(y, norm)     # the same numbers, for Inductor: one kernel, the map not written

Why: of a transposed convolution to one channel Inductor orders its input in a layout that nobody reads, so it is copied
(105 MB an image and direction at 1280 px), and cuDNN has no tile of one channel. As sums over channels it joins the
norm and the ReLU. Bytes an image and branch at 1280 px, where the bfloat16 map (64, 640, 640) is 52 MB, counted: 584 MB
as layers; here 406, of them 130 for the mask of the ReLU, which Inductor writes and reads again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DoubleToOne(nn.ConvTranspose2d):
    """A 2x2 transposed convolution of stride 2 to one channel, with a bias: (N, C, H, W) -> (N, 1, 2H, 2W).

    out[2i + a, 2j + b] = bias + sum_c x[c, i, j] * weight[c, a, b]
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 1, 2, stride=2)

    def after_norm(self, y: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """What it gives of relu(norm(y)), in training mode, for Inductor: the map between is never written.

        Eager, it would be slower than the layers. The norm's running statistics follow.
        """
        assert self.bias is not None and norm.momentum is not None
        logits, mean, var = _NormReLUDouble.apply(y, norm.weight, norm.bias, self.weight, self.bias, norm.eps)
        follow(norm, mean, var, y.numel() // y.shape[1])
        return logits


@torch.no_grad()
def follow(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Moves running statistics as nn.BatchNorm2d does: towards the mean and the unbiased variance of `count` values."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var * (count / (count - 1)), norm.momentum)


class _NormReLUDouble(torch.autograd.Function):
    """BatchNorm with batch statistics, ReLU and DoubleToOne as sums over channels.

    With k = (a, b), p a pixel, x the normalised y, m where the ReLU passes and g the logits' gradient:

        A[c, k] = sum_p m g[k]         B[c, k] = sum_p m x g[k]          one reading of y and of the small g
        dweight = scale B + shift A    dscale = sum_k weight B           dshift = sum_k weight A
        dz[c]   = m sum_k g[k] weight[c, k]                              so it is never written either
    """

    @staticmethod
    def forward(
        y: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = y.to(scale.dtype)
        var, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        z = F.relu(_normalised(values, mean, var, eps) * _wide(scale) + _wide(shift))
        taps = weight.reshape(weight.shape[0], 4).to(scale.dtype)
        sums = torch.stack([(z * _wide(taps[:, k])).sum(1) for k in range(4)], dim=1)
        return (F.pixel_shuffle(sums, 2) + bias).to(y.dtype), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        y, scale, shift, weight, _, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(y, scale, shift, weight, mean, var)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_others: Any) -> tuple[Tensor | None, ...]:
        y, scale, shift, weight, mean, var = ctx.saved_tensors
        x = _normalised(y.to(scale.dtype), mean, var, ctx.eps)
        passed = x * _wide(scale) + _wide(shift) > 0
        taps = weight.reshape(weight.shape[0], 4).to(scale.dtype)
        g = F.pixel_unshuffle(gradient.to(scale.dtype), 2)
        each = [torch.where(passed, g[:, k : k + 1], 0) for k in range(4)]
        plain = torch.stack([one.sum((0, 2, 3)) for one in each], dim=1)
        weighted = torch.stack([(one * x).sum((0, 2, 3)) for one in each], dim=1)
        dweight = scale[:, None] * weighted + shift[:, None] * plain
        dscale, dshift = (taps * weighted).sum(1), (taps * plain).sum(1)
        dz = sum(one * _wide(taps[:, k]) for k, one in enumerate(each))
        count = y.numel() // y.shape[1]
        dy = (dz - _wide(dshift / count) - x * _wide(dscale / count)) * _wide(scale * torch.rsqrt(var + ctx.eps))
        # (C, 1, 2, 2) with the strides of a channels_last weight, which DDP would copy it into
        dweight = dweight.reshape(-1, 2, 2, 1).permute(0, 3, 1, 2).to(weight.dtype)
        return dy.to(y.dtype), dscale, dshift, dweight, g.sum().reshape(1), None


def _wide(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def _normalised(values: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (values - _wide(mean)) * _wide(torch.rsqrt(var + eps))
