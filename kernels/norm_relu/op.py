"""Public function of norm_relu: checks, the custom operators with their fakes and gradient, dispatch.

Definition: `reference.py`. Kernels: `forward.py`, `backward.py`. The operators are opaque to torch.compile and cause no
graph break.
"""

from typing import Any

import torch
from torch import Tensor

from kernels import runtime
from kernels.norm_relu.backward import backward
from kernels.norm_relu.forward import forward
from kernels.norm_relu.reference import norm_relu_gradient, norm_relu_reference

DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # maps the kernels read
NHWC = torch.channels_last


def norm_relu(
    y: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *, eps: float, implementation: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Training-mode BatchNorm, the sum with `residual` where there is one, and ReLU: one rounding, two readings of y.

    y: (N, C, H, W) bfloat16, float16 or float32 (float64: reference only), in any layout; what is not dense in
    channels_last is copied into it. residual: as y. weight, bias: (C,), float32 (float64 for float64 y). eps: above 0.

    Returns (z, mean, var): z like y in channels_last; the batch's mean and biased variance, (C,) in weight's dtype and
    without a gradient, for running statistics. For the gradient it keeps y, and z where there is a residual. Nothing is
    read back to the host. What is not finite: `reference.py`.

    implementation "auto": the Triton kernels for bfloat16, float16 and float32 on a GPU, else the PyTorch reference.
    "triton" and "reference" insist; their results differ by rounding only.
    Raises ValueError for wrong shapes, dtypes, devices or eps, for one value a channel (its variance is 0, as
    nn.BatchNorm2d refuses it), and for "triton" with float64.
    """
    _check(y, weight, bias, residual, eps)
    triton = runtime.use_triton("norm_relu", implementation, y, DTYPES)
    y = y.contiguous(memory_format=NHWC)
    residual = None if residual is None else residual.contiguous(memory_format=NHWC)
    z, mean, var = _norm_op(y, weight, bias, residual, float(eps), triton)
    return z, mean.detach(), var.detach()


def _check(y: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float) -> None:
    if y.ndim != 4 or not y.is_floating_point() or not y.numel():
        raise ValueError(f"norm_relu: y must be (N, C, H, W) floats, not {tuple(y.shape)} {y.dtype}")
    channels = y.shape[1]
    if y.numel() == channels:
        raise ValueError(f"norm_relu: Expected more than 1 value per channel when training, got input size {y.shape}")
    kind = torch.float64 if y.dtype == torch.float64 else torch.float32
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.shape != (channels,) or vector.dtype != kind or vector.device != y.device:
            raise ValueError(
                f"norm_relu: {name} must be ({channels},) {kind} on {y.device}, not {tuple(vector.shape)} "
                f"{vector.dtype} on {vector.device}"
            )
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (y.shape, y.dtype, y.device):
        raise ValueError(
            f"norm_relu: residual must be {tuple(y.shape)} {y.dtype} on {y.device}, not {tuple(residual.shape)} "
            f"{residual.dtype} on {residual.device}"
        )
    if not eps > 0:
        raise ValueError(f"norm_relu: need eps > 0, not {eps}")


@torch.library.custom_op("dbnet_engine::norm_relu", mutates_args=())
def _norm_op(
    y: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, weight, bias = y.contiguous(memory_format=NHWC), weight.contiguous(), bias.contiguous()
    residual = None if residual is None else residual.contiguous(memory_format=NHWC)
    return (forward if triton else norm_relu_reference)(y, weight, bias, residual, eps)


@_norm_op.register_fake
def _(y: Tensor, weight: Tensor, *_others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(y), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op("dbnet_engine::norm_relu_gradient", mutates_args=())
def _gradient_op(
    dz: Tensor, y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dy, _, dweight, dbias = _gradient(dz, y, None, weight, bias, mean, var, eps, triton)
    return dy, dweight, dbias


@_gradient_op.register_fake
def _(dz: Tensor, y: Tensor, weight: Tensor, *_others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(y), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op("dbnet_engine::norm_add_relu_gradient", mutates_args=())
def _add_gradient_op(
    dz: Tensor, y: Tensor, z: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, triton: bool,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dy, dresidual, dweight, dbias = _gradient(dz, y, z, weight, bias, mean, var, eps, triton, more)
    assert dresidual is not None  # z was given
    return dy, dresidual, dweight, dbias


@_add_gradient_op.register_fake
def _(
    dz: Tensor, y: Tensor, z: Tensor, weight: Tensor, *_others: Any, more: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _like(y), _like(y), torch.empty_like(weight), torch.empty_like(weight)


def _like(y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=NHWC)


def _gradient(
    dz: Tensor, y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float,
    triton: bool, more: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Dense maps, whatever came in: `sum().backward()` delivers a gradient of stride 0."""
    dz, y = _dense(dz, y.dtype), _dense(y, y.dtype)
    z, more = (None if values is None else _dense(values, y.dtype) for values in (z, more))
    weight, bias, mean, var = (vector.contiguous() for vector in (weight, bias, mean, var))
    return (backward if triton else norm_relu_gradient)(dz, y, z, weight, bias, mean, var, eps, more)


def _dense(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).contiguous(memory_format=NHWC)


# torch gives ctx no type that has `saved_tensors` or takes attributes
def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    y, weight, bias, residual, *ctx.options = inputs
    z, mean, var = output
    ctx.added = residual is not None
    ctx.save_for_backward(y, *((z,) if ctx.added else ()), weight, bias, mean, var)
    ctx.set_materialize_grads(False)  # else zeros are made for mean and var: two launches for every norm


def _backward(ctx: Any, dz: Tensor | None, _dmean: Tensor | None, _dvar: Tensor | None) -> tuple[Tensor | None, ...]:
    if dz is None:
        return (None,) * 6
    if ctx.added:
        dy, dresidual, dweight, dbias = _add_gradient_op(dz, *ctx.saved_tensors, *ctx.options)
    else:
        (dy, dweight, dbias), dresidual = _gradient_op(dz, *ctx.saved_tensors, *ctx.options), None
    return dy, dweight, dbias, dresidual, None, None


_norm_op.register_autograd(_backward, setup_context=_save)
