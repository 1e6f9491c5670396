"""Public functions of the DB loss: checks, the custom operators with their fakes and gradient, dispatch.

The operators are opaque to torch.compile: they cause no graph break, and their sizes depend on shapes only.
Definition and formulas: `reference.py`. Kernels: `forward.py`, `backward.py`, `binary.py`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import runtime
from kernels.db_loss.backward import backward
from kernels.db_loss.binary import binary_map_kernel, binary_map_reference
from kernels.db_loss.forward import forward
from kernels.db_loss.pixels import DTYPES
from kernels.db_loss.reference import Maps, Stats, Weights, db_loss_gradient, db_loss_reference
from kernels.db_targets import DBTargets

MODES = ("paper", "baseline")


class DBLoss(NamedTuple):
    """0-d tensors; only total carries a gradient."""

    total: Tensor
    prob: Tensor
    thresh: Tensor
    binary: Tensor


def db_loss(
    prob_logits: Tensor,
    thresh_logits: Tensor,
    targets: DBTargets,
    *,
    db_k: float = 50.0,
    negative_ratio: float = 3.0,
    prob_weight: float = 5.0,
    thresh_weight: float = 10.0,
    binary_weight: float = 1.0,
    mode: str = "paper",
    implementation: str = "auto",
) -> DBLoss:
    """DBNet's loss: OHEM cross-entropy on the probability map, L1 on the threshold map, Dice on the binary map.

    prob_logits, thresh_logits: (N, H, W) or (N, 1, H, W), one float dtype; computed in float32 (float64 for float64).
    The kernels read views such as logits[:, 0] of a contiguous or channels_last (N, 2, H, W) without copying them.
    targets: (N, H, W) maps of `kernels.db_targets`: shrink_map, shrink_mask, thresh_mask uint8 (0 or 1), thresh_map
    float.
    db_k: steepness of the binarization. negative_ratio: hard negatives per positive, over this rank's batch.
    mode "paper": masks count, L1 over thresh_mask. "baseline": no mask is read, L1 over all pixels.

    Returns DBLoss of 0-d float32 tensors, total = prob_weight prob + thresh_weight thresh + binary_weight binary.
    Nothing is read back to the host on a GPU, and nothing of full size is kept for the gradient. A batch without
    positives has prob 0 and binary 1, both with zero gradient. A non-finite logit gives a NaN total and NaN gradients,
    never an exception.

    implementation "auto": the Triton kernels for bfloat16, float16 and float32 logits on a GPU, else the PyTorch
    reference on the tensors' device. "triton" and "reference" insist; their results differ by rounding only.
    Raises ValueError for wrong shapes, dtypes, devices or parameters, and for "triton" with float64 logits.
    """
    if mode not in MODES:
        raise ValueError(f"db_loss: mode must be one of {MODES}, not {mode!r}")
    if not db_k > 0 or not negative_ratio >= 0:
        raise ValueError(f"db_loss: need db_k > 0 and negative_ratio >= 0, not {db_k} and {negative_ratio}")
    x, y = _flat_channels("db_loss", prob_logits, thresh_logits)
    _check(x, targets)
    weights = [float(value) for value in (db_k, negative_ratio, prob_weight, thresh_weight, binary_weight)]
    triton = runtime.use_triton("db_loss", implementation, x, DTYPES)
    losses, _ = _loss_op(x, y, *targets, weights, mode == "paper", triton)
    return DBLoss(losses[0], *losses.detach()[1:])


def binary_map(
    prob_logits: Tensor, thresh_logits: Tensor, *, db_k: float = 50.0, implementation: str = "auto"
) -> Tensor:
    """The approximate binary map B = sigmoid(db_k (P - T)) that the Dice term sees, for inspection and drawing.

    prob_logits, thresh_logits, implementation: as for `db_loss`. Returns (N, H, W) float32 in 0..1 without a gradient.
    Raises ValueError for wrong shapes, dtypes, devices or db_k.
    """
    if not db_k > 0:
        raise ValueError(f"binary_map: need db_k > 0, not {db_k}")
    x, y = (logits.detach() for logits in _flat_channels("binary_map", prob_logits, thresh_logits))
    binary: Tensor = _binary_op(x, y, float(db_k), runtime.use_triton("binary_map", implementation, x, DTYPES))
    return binary


def _flat_channels(name: str, prob_logits: Tensor, thresh_logits: Tensor) -> tuple[Tensor, Tensor]:
    x, y = (
        logits[:, 0] if logits.ndim == 4 and logits.shape[1] == 1 else logits for logits in (prob_logits, thresh_logits)
    )
    for field, logits in (("prob_logits", x), ("thresh_logits", y)):
        if logits.ndim != 3 or not logits.is_floating_point() or not logits.numel():
            raise ValueError(
                f"{name}: {field} must be (N, H, W) or (N, 1, H, W) floats, not {tuple(logits.shape)} {logits.dtype}"
            )
    if x.dtype != y.dtype:
        raise ValueError(f"{name}: both logit maps need one dtype, not {x.dtype} and {y.dtype}")
    _same_place(f"{name}: thresh_logits", y, x)
    return x, y


def _same_place(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape or tensor.device != x.device:
        raise ValueError(f"{name} must be {tuple(x.shape)} on {x.device}, not {tuple(tensor.shape)} on {tensor.device}")


def _check(x: Tensor, targets: DBTargets) -> None:
    for name, tensor in zip(DBTargets._fields, targets):
        _same_place(f"db_loss: {name}", tensor, x)
    for name in ("shrink_map", "shrink_mask", "thresh_mask"):
        if getattr(targets, name).dtype != torch.uint8:
            raise ValueError(f"db_loss: {name} must be uint8, not {getattr(targets, name).dtype}")
    if not targets.thresh_map.is_floating_point():
        raise ValueError(f"db_loss: thresh_map must be a float tensor, not {targets.thresh_map.dtype}")


def _maps(
    x: Tensor, y: Tensor, shrink_map: Tensor, shrink_mask: Tensor, thresh_map: Tensor, thresh_mask: Tensor, masked: bool
) -> Maps:
    """The logits as they come; the targets contiguous, which they are already when `db_targets` made them."""
    masks = (shrink_mask.contiguous(), thresh_mask.contiguous()) if masked else (None, None)
    return Maps(x, y, shrink_map.contiguous(), thresh_map.contiguous(), *masks)


def _contiguous_logits(maps: Maps) -> Maps:
    return maps._replace(prob_logits=maps.prob_logits.contiguous(), thresh_logits=maps.thresh_logits.contiguous())


@torch.library.custom_op("dbnet_engine::db_loss", mutates_args=())
def _loss_op(
    x: Tensor,
    y: Tensor,
    shrink_map: Tensor,
    shrink_mask: Tensor,
    thresh_map: Tensor,
    thresh_mask: Tensor,
    weights: list[float],
    masked: bool,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    maps = _maps(x, y, shrink_map, shrink_mask, thresh_map, thresh_mask, masked)
    if triton:
        return forward(maps, Weights(*weights))
    losses, stats = db_loss_reference(_contiguous_logits(maps), Weights(*weights))
    return losses, torch.stack(stats)


@_loss_op.register_fake
def _(x: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(4, dtype=dtype), x.new_empty(len(Stats._fields), dtype=torch.float64)


@torch.library.custom_op("dbnet_engine::db_loss_gradient", mutates_args=())
def _gradient_op(
    x: Tensor,
    y: Tensor,
    shrink_map: Tensor,
    shrink_mask: Tensor,
    thresh_map: Tensor,
    thresh_mask: Tensor,
    stats: Tensor,
    grad_total: Tensor,
    weights: list[float],
    masked: bool,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    maps = _maps(x, y, shrink_map, shrink_mask, thresh_map, thresh_mask, masked)
    if triton:
        return backward(maps, Weights(*weights), stats, grad_total)
    return db_loss_gradient(_contiguous_logits(maps), Weights(*weights), Stats(*stats), grad_total)


@_gradient_op.register_fake
def _(x: Tensor, y: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


# torch gives ctx no type that has `saved_tensors` or takes attributes
def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, weights, masked, triton = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.options = weights, masked, triton


def _backward(ctx: Any, grad_losses: Tensor, _grad_stats: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, stats = ctx.saved_tensors
    grads = _gradient_op(*tensors, stats, grad_losses[0], *ctx.options)
    return *grads, *(None,) * 7


_loss_op.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("dbnet_engine::binary_map", mutates_args=())
def _binary_op(x: Tensor, y: Tensor, db_k: float, triton: bool) -> Tensor:
    return (binary_map_kernel if triton else binary_map_reference)(x, y, db_k)


@_binary_op.register_fake
def _(x: Tensor, y: Tensor, db_k: float, triton: bool) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)
