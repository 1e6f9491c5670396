"""Backward kernel of the DB loss: recomputes everything from the maps and seven sums, writes both gradients.

    w  = 1 for positives and negatives above the cut, tie for negatives at it, else 0
    dx = w (P - G) prob_scale + (M outside + G M inside) B (1 - B) P (1 - P)
    dy = M' sign(T - t) T (1 - T) thresh_scale - (M outside + G M inside) B (1 - B) T (1 - T)

    prob_scale = grad prob_weight / (n_pos + K),        thresh_scale = grad thresh_weight / sum M'
    outside = 2 grad binary_weight k overlap / union^2, inside = -2 grad binary_weight k / union

Grid: 6 programs an SM stride over tiles of 2048 pixels. Bytes a pixel with bfloat16 logits and threshold map: 9 read,
4 written; 16 pages of 1280 x 1280 are 341 MB, at least 79 us at 4.3 TB/s. float32 logits: 13 + 8, 550 MB, 128 us.

Worked example: a positive with x = 2, so P = 0.8808, in a batch with n_pos + K = 2 and grad 1: w (P - G) is -0.1192,
and 5 / 2 times that is what the cross-entropy adds to dx: -0.2980.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime
from kernels.db_loss.pixels import (
    TILE,
    WARPS,
    lay_out,
    load_band,
    load_classes,
    load_logits,
    sigmoid_parts,
    store_map,
    tile_pixels,
)
from kernels.db_loss.reference import Maps, Weights

PER_SM = 6  # 2 or 3 are there at once (65 to 95 registers a lane): 6 leave none waiting alone at the end


def backward(maps: Maps, weights: Weights, stats: Tensor, grad_total: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients with respect to both logit maps, contiguous (N, H, W) in the logits' dtype; NaN after a bad logit.

    maps, weights: as given to `forward`. stats: (7,) float64 from there. grad_total: 0-d float.
    """
    pages = lay_out(maps.prob_logits, maps.thresh_logits)
    masked = maps.shrink_mask is not None
    shrink_mask, thresh_mask = (maps.shrink_mask, maps.thresh_mask) if masked else (maps.shrink_map, maps.shrink_map)
    grad_x, grad_y = (torch.empty(pages.x.shape, dtype=pages.x.dtype, device=pages.x.device) for _ in range(2))
    programs = runtime.num_programs(pages.x.device, PER_SM, pages.tiles)
    targets = (maps.shrink_map, maps.thresh_map, shrink_mask, thresh_mask)
    given = (pages.x, pages.y, *targets, stats, grad_total, grad_x, grad_y)
    factors = (weights.db_k, weights.prob, weights.thresh, weights.binary)
    constants = {"X_STEP": pages.x_step, "Y_STEP": pages.y_step, "MASKED": masked, "TILE": TILE}
    runtime.launch(_gradient_kernel, (programs,), *given, *pages.geometry, *factors, num_warps=WARPS, **constants)
    return grad_x, grad_y


@triton.jit
def _gradient_kernel(
    x,
    y,
    shrink,
    thresh,
    shrink_mask,
    thresh_mask,
    stats,
    grad_total,
    grad_x,
    grad_y,
    pixels,
    tiles,
    tiles_per_page,
    x_batch,
    y_batch,
    db_k,
    prob_weight,
    thresh_weight,
    binary_weight,
    X_STEP: tl.constexpr,
    Y_STEP: tl.constexpr,
    MASKED: tl.constexpr,
    TILE: tl.constexpr,
):
    scale = tl.load(grad_total).to(tl.float64) + tl.load(stats + 6)  # NaN when a logit was not finite
    prob_scale = (scale * prob_weight / tl.load(stats + 2)).to(tl.float32)
    thresh_scale = (scale * thresh_weight / tl.load(stats + 5)).to(tl.float32)
    union = tl.load(stats + 4)
    binary_scale = scale * binary_weight * db_k * 2.0 / union
    outside = (binary_scale * tl.load(stats + 3) / union).to(tl.float32)
    inside_scale = (-binary_scale).to(tl.float32)
    cut_logit, tie = tl.load(stats).to(tl.float32), tl.load(stats + 1).to(tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        page, first, inside = tile_pixels(tile, pixels, tiles_per_page, TILE)
        flat = page * pixels + first
        a = load_logits(x, page, first, inside, x_batch, X_STEP)
        b = load_logits(y, page, first, inside, y_batch, Y_STEP)
        positive, counted = load_classes(shrink, shrink_mask, flat, inside, MASKED)
        goal, banded = load_band(thresh, thresh_mask, flat, inside, MASKED)
        prob, not_prob, prob_slope = sigmoid_parts(a)
        cut, _, cut_slope = sigmoid_parts(b)
        _, _, binary_slope = sigmoid_parts((prob - cut) * db_k)
        through = tl.where(counted, outside + tl.where(positive, inside_scale, 0.0), 0.0) * binary_slope

        chosen = tl.where(a > cut_logit, 1.0, tl.where(a == cut_logit, tie, 0.0))
        pull = tl.where(positive, -not_prob, tl.where(counted, chosen * prob, 0.0))
        sign = tl.where(cut > goal, 1.0, tl.where(cut < goal, -1.0, 0.0))
        bent = tl.where(banded, sign, 0.0) * thresh_scale
        into_x = pull * prob_scale + through * prob_slope
        into_y = (bent - through) * cut_slope
        store_map(grad_x, flat, inside, into_x.to(grad_x.dtype.element_ty))
        store_map(grad_y, flat, inside, into_y.to(grad_y.dtype.element_ty))
