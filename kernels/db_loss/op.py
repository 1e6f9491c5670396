"""Public function of the DB loss: checks, the custom operators with their fakes and gradient, dispatch.

The operators are opaque to torch.compile: they cause no graph break, and their sizes depend on shapes only.
Definition and formulas: `reference.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.db_loss.reference import Maps, Stats, Weights, db_loss_gradient, db_loss_reference
from kernels.db_targets import DBTargets

MODES = ("paper", "baseline")
IMPLEMENTATIONS = ("auto", "reference", "triton")


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
    targets: (N, H, W) maps of `kernels.db_targets`: shrink_map, shrink_mask, thresh_mask uint8, thresh_map float.
    db_k: steepness of the binarization. negative_ratio: hard negatives per positive, over this rank's batch.
    mode "paper": masks count, L1 over thresh_mask. "baseline": no mask is read, L1 over all pixels.

    Returns DBLoss of 0-d float32 tensors, total = prob_weight prob + thresh_weight thresh + binary_weight binary.
    Nothing is read back to the host on a GPU. A batch without positives has prob 0 and binary 1, both with zero
    gradient. A non-finite logit gives a NaN total and NaN gradients, never an exception.

    implementation "auto" and "reference" run the PyTorch reference on the tensors' device; this version has no other.
    Raises ValueError for wrong shapes, dtypes, devices or parameters.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"db_loss: implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    if implementation == "triton":
        raise ValueError("no Triton kernel for db_loss in this version; use implementation='auto' or 'reference'")
    if mode not in MODES:
        raise ValueError(f"db_loss: mode must be one of {MODES}, not {mode!r}")
    if not db_k > 0 or not negative_ratio >= 0:
        raise ValueError(f"db_loss: need db_k > 0 and negative_ratio >= 0, not {db_k} and {negative_ratio}")
    x, y = (_flat_channel(name, logits) for name, logits in (("prob", prob_logits), ("thresh", thresh_logits)))
    _check(x, y, targets)
    weights = [float(value) for value in (db_k, negative_ratio, prob_weight, thresh_weight, binary_weight)]
    losses, _ = _loss_op(x, y, *targets, weights, mode == "paper")
    return DBLoss(losses[0], *losses.detach()[1:])


def _flat_channel(name: str, logits: Tensor) -> Tensor:
    if logits.ndim == 4 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.ndim != 3 or not logits.is_floating_point() or not logits.numel():
        raise ValueError(
            f"db_loss: {name}_logits must be (N, H, W) or (N, 1, H, W) floats, not {tuple(logits.shape)} {logits.dtype}"
        )
    return logits.contiguous()


def _check(x: Tensor, y: Tensor, targets: DBTargets) -> None:
    if x.dtype != y.dtype:
        raise ValueError(f"db_loss: both logit maps need one dtype, not {x.dtype} and {y.dtype}")
    for name, tensor in (("thresh_logits", y), *zip(DBTargets._fields, targets)):
        if tensor.shape != x.shape or tensor.device != x.device:
            raise ValueError(
                f"db_loss: {name} must be {tuple(x.shape)} on {x.device}, not {tuple(tensor.shape)} on {tensor.device}"
            )
    for name in ("shrink_map", "shrink_mask", "thresh_mask"):
        if getattr(targets, name).dtype != torch.uint8:
            raise ValueError(f"db_loss: {name} must be uint8, not {getattr(targets, name).dtype}")
    if not targets.thresh_map.is_floating_point():
        raise ValueError(f"db_loss: thresh_map must be a float tensor, not {targets.thresh_map.dtype}")


def _maps(
    x: Tensor, y: Tensor, shrink_map: Tensor, shrink_mask: Tensor, thresh_map: Tensor, thresh_mask: Tensor, masked: bool
) -> Maps:
    masks = (shrink_mask.contiguous(), thresh_mask.contiguous()) if masked else (None, None)
    return Maps(x, y, shrink_map.contiguous(), thresh_map.contiguous(), *masks)


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
) -> tuple[Tensor, Tensor]:
    maps = _maps(x, y, shrink_map, shrink_mask, thresh_map, thresh_mask, masked)
    losses, stats = db_loss_reference(maps, Weights(*weights))
    return losses, torch.stack(stats)


@_loss_op.register_fake
def _(x, y, shrink_map, shrink_mask, thresh_map, thresh_mask, weights, masked):
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
) -> tuple[Tensor, Tensor]:
    maps = _maps(x, y, shrink_map, shrink_mask, thresh_map, thresh_mask, masked)
    return db_loss_gradient(maps, Weights(*weights), Stats(*stats), grad_total)


@_gradient_op.register_fake
def _(x, y, shrink_map, shrink_mask, thresh_map, thresh_mask, stats, grad_total, weights, masked):
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _save(ctx, inputs, output) -> None:
    *tensors, weights, masked = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.weights, ctx.masked = weights, masked


def _backward(ctx, grad_losses: Tensor, _grad_stats: Tensor | None):
    *tensors, stats = ctx.saved_tensors
    grads = _gradient_op(*tensors, stats, grad_losses[0], ctx.weights, ctx.masked)
    return *grads, None, None, None, None, None, None


_loss_op.register_autograd(_backward, setup_context=_save)
