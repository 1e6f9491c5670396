"""Forward kernels of norm_relu: the moments of every channel in one reading of y, then z in a second.

    mean = sum y / n,  var = sum (y - mean)^2 / n                            over the n = N H W values of a channel
    z    = max(0, (y - mean) weight / sqrt(var + eps) + bias [+ residual])

Moments without cancellation and without a division an element: a program takes as its shift K the mean of its first
tile of b rows, and adds up S = sum (y - K) and Q = sum (y - K)^2 in float32, LOADS rows of a lane at a time. One
program for 8 channels then joins all programs in float64, in their order: mean_p = K + S / n_p, M_p = Q - S^2 / n_p,
and Chan's sum of (M_p + n_p (mean_p - mean)^2). K is the mean of b of the n_p values, so whatever they are Q is at most
M_p (1 + t) with t = n_p / b tiles a program (Cauchy-Schwarz), and the relative error of var is at most
3 (1 + t) (LOADS + t + 12) 2^-24: t + LOADS sums in a lane, 12 for lanes, warps and differences; once for Q and twice
for S^2 / n_p. For the map below t is 33, so 3e-4 at the very worst, for data made to be so; for values drawn alike Q is
about M_p, S^2 / n_p about nothing, and the bound 3e-6.
Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance".

Grids. _norm_moments_kernel: 3 programs an SM for all blocks of channels together, striding over row tiles.
_norm_finish_kernel: one program for 8 channels. _norm_apply_kernel: 3 programs an SM, from the last tile to the first:
the last ones read are those that an L2 cache still holds. No atomics: results do not depend on scheduling.

Bytes an element, bfloat16: 2 read for the moments; 2 read and 2 written (2 more for the residual): 6, or 8. A map of
(16, 48, 320, 320) has 78.6 M elements: 472 or 629 MB, at least 110 or 146 us at 4.3 TB/s. Not measured.

Worked example, one channel with y = (1, 3, 5, 7), weight 2, bias 1, eps 0: mean 4, var (9 + 1 + 1 + 9) / 4 = 5,
1 / sqrt(5) = 0.4472; z = max(0, 0.8944 (-3, -1, 1, 3) + 1) = (0, 0.1056, 1.8944, 3.6833). One program whose first tile
is (1, 3) has K = 2, S = -1 + 1 + 3 + 5 = 8, Q = 1 + 1 + 9 + 25 = 36: mean 2 + 8 / 4 = 4, M = 36 - 64 / 4 = 20 = 4 var.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime
from kernels.norm_relu.rows import (
    TOTAL_BLOCK,
    WARPS,
    channel_terms,
    lay_out,
    load_partials,
    load_rows,
    partials_of,
    per_lane,
    row_tile,
    store_partials,
    store_rows,
)

MOMENTS_PER_SM, APPLY_PER_SM = 3, 3  # all there at once: 64 to 72 registers a lane; 48 KB in flight
SHIFT, SUM, SQUARES = (tl.constexpr(row) for row in range(3))  # rows of the table of partial sums
TABLE = 3


def forward(
    y: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(z as y, float32 (C,) mean, float32 (C,) biased variance), never waiting for the device.

    y, residual: (N, C, H, W) bfloat16, float16 or float32, dense in channels_last. weight, bias: float32 (C,).
    """
    mean, var = moments(y)
    z = torch.empty_like(y, memory_format=torch.channels_last)
    rows = lay_out(y, APPLY_PER_SM)
    added = y if residual is None else residual
    given = (y, added, weight, bias, mean, var, z, rows.rows, rows.tiles, eps)
    constants = rows.constants | {"ADD": residual is not None}
    runtime.launch(_norm_apply_kernel, rows.grid, *given, num_warps=WARPS, **constants)
    return z, mean, var


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 (C,) mean and biased variance of y, as `forward` takes it."""
    rows = lay_out(y, MOMENTS_PER_SM)
    partials = partials_of(rows, TABLE, y.device)
    given = (y, partials, rows.rows, rows.tiles)
    runtime.launch(_norm_moments_kernel, rows.grid, *given, num_warps=WARPS, **rows.constants, GROUP=rows.group)
    mean, var = (torch.empty(rows.channels, dtype=torch.float32, device=y.device) for _ in range(2))
    sums = (partials, mean, var, rows.rows, rows.tiles, rows.programs, rows.channels)
    constants = {"ROWS": rows.tile_rows, "PROGRAMS": triton.next_power_of_2(rows.programs), "BLOCK": TOTAL_BLOCK}
    runtime.launch(_norm_finish_kernel, rows.total_grid, *sums, num_warps=WARPS, **constants)
    return mean, var


@triton.jit
def _norm_moments_kernel(
    y, partials, rows, tiles, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr
):
    first, at, inside = row_tile(tl.program_id(0), rows, C, BLOCK, ROWS)
    tile = load_rows(y, first, at, inside)
    count = tl.minimum(rows - tl.program_id(0) * ROWS, ROWS)
    shift = tl.sum(tile, 0) / count.to(tl.float32)
    total = tl.zeros((GROUP, BLOCK), tl.float32)
    squares = tl.zeros((GROUP, BLOCK), tl.float32)
    for turn in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first, at, inside = row_tile(turn, rows, C, BLOCK, ROWS)
        off = tl.where(inside, load_rows(y, first, at, inside) - shift[None, :], 0.0)
        total += per_lane(off, GROUP)
        squares += per_lane(off * off, GROUP)
    store_partials(partials, SHIFT, shift, C, BLOCK)
    store_partials(partials, SUM, tl.sum(total, 0), C, BLOCK)
    store_partials(partials, SQUARES, tl.sum(squares, 0), C, BLOCK)


@triton.jit
def _norm_finish_kernel(
    partials, mean, var, rows, tiles, programs, C, ROWS: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr
):
    """Joins the programs' moments of BLOCK channels."""
    program = tl.arange(0, PROGRAMS)
    last = program == (tiles - 1) % programs  # the one with the tile that may be cut short
    count = (tiles - program + programs - 1) // programs * ROWS - tl.where(last, tiles * ROWS - rows, 0)
    weight = tl.where(program < programs, count, 1).to(tl.float64)[:, None]  # 1: no division by 0 where sums are 0
    total = load_partials(partials, SUM, programs, C, PROGRAMS, BLOCK) / weight
    center = load_partials(partials, SHIFT, programs, C, PROGRAMS, BLOCK) + total
    squares = load_partials(partials, SQUARES, programs, C, PROGRAMS, BLOCK)
    weight = tl.where((program < programs)[:, None], weight, 0.0)
    whole = tl.sum(center * weight, 0) / rows
    away = center - whole[None, :]
    inner = squares - total * total * weight
    inner = tl.where(inner < 0, 0.0, inner)  # a NaN stays
    spread = tl.sum(inner + away * away * weight, 0) / rows
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(mean + channel, whole.to(tl.float32), mask=channel < C)
    tl.store(var + channel, spread.to(tl.float32), mask=channel < C)


@triton.jit
def _norm_apply_kernel(
    y,
    residual,
    weight,
    bias,
    mean,
    var,
    z,
    rows,
    tiles,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    ADD: tl.constexpr,
):
    center, rstd, gain, offset = channel_terms(weight, bias, mean, var, eps, C, BLOCK)
    scale = rstd * gain
    for turn in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first, at, inside = row_tile(tiles - 1 - turn, rows, C, BLOCK, ROWS)
        raw = tl.fma(load_rows(y, first, at, inside) - center, scale, offset)
        if ADD:
            raw += load_rows(residual, first, at, inside)
        raw = tl.maximum(raw, 0.0, propagate_nan=tl.PropagateNan.ALL)  # as in PyTorch
        store_rows(z, first, at, inside, raw)
