"""norm_relu and its gradient in plain PyTorch: the definition of correct and the CPU path.

    z = max(0, (y - mean) weight / sqrt(var + eps) + bias [+ residual])

mean and var (biased) are those of each channel over the batch, as nn.BatchNorm2d has them in training mode. All of it
is computed in float32 (float64 for float64 inputs) and rounded once, where PyTorch's own chain rounds after the norm,
after the sum and after ReLU. Source: Ioffe, Szegedy 2015, arXiv 1502.03167; the gradient is written out in
`backward.py`.

ReLU's gradient at 0 is 0. A value that is not finite makes its whole channel of z and the channel's gradients NaN (the
mean NaN or infinite, the variance NaN), as in PyTorch; other channels do not see it. A variance beyond float32's range
is infinite, and z is then max(0, bias [+ residual]).
"""

import torch
from torch import Tensor

AXES = (0, 2, 3)


def norm_relu_reference(
    y: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, (C,) mean, (C,) biased variance); z as y in channels_last, the others float32 (float64 for float64 y)."""
    dtype = _dtype(y)
    up = y.to(dtype)
    var, mean = torch.var_mean(up, AXES, correction=0)
    raw = _normalised(up, mean, var, eps) * _wide(weight, dtype) + _wide(bias, dtype)
    if residual is not None:
        raw = raw + residual.to(dtype)
    return _as_map(raw.relu(), y), mean, var


def norm_relu_gradient(
    dz: Tensor, y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """(dy, dresidual or None, dweight, dbias), from what the forward pass took and gave; z only with a residual.

    more: a second part of dz, or None.
    """
    dtype = _dtype(y)
    if more is not None:
        dz = dz.to(dtype) + more.to(dtype)
    normal = _normalised(y.to(dtype), mean, var, eps)
    before = normal * _wide(weight, dtype) + _wide(bias, dtype) if z is None else z
    masked = torch.where(before <= 0, 0, dz).to(dtype)  # a NaN lets the gradient through, as threshold_backward does
    count = y.numel() // y.shape[1]
    dbias, dweight = masked.sum(AXES), (masked * normal).sum(AXES)
    scale = _wide(weight, dtype) * _rstd(var, eps, dtype)
    dy = (masked - _wide(dbias, dtype) / count - normal * (_wide(dweight, dtype) / count)) * scale
    return _as_map(dy, y), None if z is None else _as_map(masked, y), dweight, dbias


def _dtype(y: Tensor) -> torch.dtype:
    return torch.float64 if y.dtype == torch.float64 else torch.float32


def _wide(channels: Tensor, dtype: torch.dtype) -> Tensor:
    return channels.to(dtype)[None, :, None, None]


def _rstd(var: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return (_wide(var, dtype) + eps).rsqrt()


def _normalised(up: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (up - _wide(mean, up.dtype)) * _rstd(var, eps, up.dtype)


def _as_map(values: Tensor, y: Tensor) -> Tensor:
    """`values` in the strides that a new channels_last map like y has; they are ambiguous where a size is 1."""
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(values)
