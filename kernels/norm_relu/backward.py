"""Backward kernels of norm_relu: two readings, the masked gradient written once where the residual needs it.

With x = (y - mean) rstd, rstd = 1 / sqrt(var + eps), over the n values of a channel:

    g       = dz where the value before ReLU was above 0, else 0
    dbias   = sum g,   dweight = sum g x
    dy      = weight rstd (g - dbias / n - x dweight / n),   dresidual = g

Without a residual the value before ReLU is computed again from y, with the very numbers of the forward pass, so z is
not read. With one, z > 0 says it, and g is written in the first reading: it is the residual's gradient, and the second
reading takes it instead of dz and z. There dz may also come as two maps, which are added in float32 as they are read:
the two gradients that reach the output of a block (`fold.py`).

Grids as in the forward pass: _norm_sums_kernel 2 programs an SM, each lane adding LOADS rows at a time in float32,
programs joined in float64 and in their order by _norm_total_kernel (8 channels a program); _norm_input_kernel 2 an SM,
from the last tile to the first. No atomics.

Bytes an element, bfloat16                     first reading     second reading     all
    plain                                      dz, y        4    dz, y -> dy    6    10
    with residual                              dz, z, y -> g 8   g, y -> dy     6    14
    the same, dz in two maps                                 10                  6    16, and no sum of 6 before it
(16, 48, 320, 320): 786 MB or 1.10 GB, at least 183 or 256 us at 4.3 TB/s. Not measured.

Worked example, as in the forward pass: z = (0, 0.1056, 1.8944, 3.6833) with dz = (1, 1, 1, 1): g = (0, 1, 1, 1),
x = 0.4472 (-3, -1, 1, 3); dbias = 3, dweight = 0.4472 x 3 = 1.3416; dy = 0.8944 (g - 0.75 - 0.3354 x)
= 0.8944 (-0.75 + 0.45, 0.25 + 0.15, 0.25 - 0.15, 0.25 - 0.45) = (-0.2683, 0.3578, 0.0894, -0.1789), which add up to 0.
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
    own_channels,
    partials_of,
    per_lane,
    row_tile,
    store_partials,
    store_rows,
)

SUMS_PER_SM, INPUT_PER_SM = 2, 2  # all there at once: 88 to 109 registers a lane; 64 KB in flight
GRADIENT, PRODUCT = (tl.constexpr(row) for row in range(2))  # rows of the table of partial sums
TABLE = 2


def backward(
    dz: Tensor, y: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float,
    more: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """(dy, dresidual or None, dweight, dbias); the first two as y, the others float32 (C,).

    dz, y, z: as `forward` took and gave them, dense in channels_last; z only where there was a residual, else None.
    more: as dz, added to it; only with z.
    """
    added = z is not None
    assert added or more is None
    masked = torch.empty_like(y, memory_format=torch.channels_last) if added else dz
    dy = torch.empty_like(y, memory_format=torch.channels_last)
    dweight, dbias = torch.empty_like(mean), torch.empty_like(mean)

    rows = lay_out(y, SUMS_PER_SM)
    partials = partials_of(rows, TABLE, y.device)
    maps = (dz, dz if more is None else more, y, z if added else y)
    given = (*maps, weight, bias, mean, var, masked, partials, rows.rows, rows.tiles, eps)
    constants = rows.constants | {"GROUP": rows.group, "ADDED": added, "TWO": more is not None}
    runtime.launch(_norm_sums_kernel, rows.grid, *given, num_warps=WARPS, **constants)
    totals = {"PROGRAMS": triton.next_power_of_2(rows.programs), "BLOCK": TOTAL_BLOCK}
    sums = (partials, var, dweight, dbias, rows.programs, rows.channels, eps)
    runtime.launch(_norm_total_kernel, rows.total_grid, *sums, num_warps=WARPS, **totals)

    rows = lay_out(y, INPUT_PER_SM)
    inputs = (masked, y, weight, bias, mean, var, dweight, dbias, dy, rows.rows, rows.tiles, eps)
    constants = rows.constants | {"MASKED": added}
    runtime.launch(_norm_input_kernel, rows.grid, *inputs, num_warps=WARPS, **constants)
    return dy, masked if added else None, dweight, dbias


@triton.jit
def _norm_sums_kernel(
    dz,
    more,
    y,
    z,
    weight,
    bias,
    mean,
    var,
    masked,
    partials,
    rows,
    tiles,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    ADDED: tl.constexpr,
    TWO: tl.constexpr,
):
    """Sums of g and of g (y - mean); writes g where there is a residual."""
    center, rstd, gain, offset = channel_terms(weight, bias, mean, var, eps, C, BLOCK)
    scale = rstd * gain
    gradient = tl.zeros((GROUP, BLOCK), tl.float32)
    product = tl.zeros((GROUP, BLOCK), tl.float32)
    for turn in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first, at, inside = row_tile(turn, rows, C, BLOCK, ROWS)
        through = load_rows(dz, first, at, inside)
        if TWO:
            through += load_rows(more, first, at, inside)
        off = load_rows(y, first, at, inside) - center
        if ADDED:
            through = tl.where(load_rows(z, first, at, inside) <= 0, 0.0, through)
            store_rows(masked, first, at, inside, through)
        else:
            through = tl.where(tl.fma(off, scale, offset) <= 0, 0.0, through)
        gradient += per_lane(through, GROUP)
        product += per_lane(through * off, GROUP)
    store_partials(partials, GRADIENT, tl.sum(gradient, 0), C, BLOCK)
    store_partials(partials, PRODUCT, tl.sum(product, 0), C, BLOCK)


@triton.jit
def _norm_total_kernel(
    partials, var, dweight, dbias, programs, C, eps, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Adds the programs' sums of BLOCK channels up."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = channel < C
    gradient = tl.sum(load_partials(partials, GRADIENT, programs, C, PROGRAMS, BLOCK), 0)
    product = tl.sum(load_partials(partials, PRODUCT, programs, C, PROGRAMS, BLOCK), 0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.load(var + channel, mask=exists, other=1.0) + eps))
    tl.store(dweight + channel, (product * rstd).to(tl.float32), mask=exists)
    tl.store(dbias + channel, gradient.to(tl.float32), mask=exists)


@triton.jit
def _norm_input_kernel(
    gradient,
    y,
    weight,
    bias,
    mean,
    var,
    dweight,
    dbias,
    dy,
    rows,
    tiles,
    eps,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """dy from g, or from dz where MASKED is false."""
    center, rstd, gain, offset = channel_terms(weight, bias, mean, var, eps, C, BLOCK)
    channel, exists = own_channels(C, BLOCK)
    count = rows.to(tl.float32)
    level = (tl.load(dbias + channel, mask=exists, other=0.0) / count)[None, :]
    tilt = (tl.load(dweight + channel, mask=exists, other=0.0) / count)[None, :] * rstd
    scale = rstd * gain
    for turn in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first, at, inside = row_tile(tiles - 1 - turn, rows, C, BLOCK, ROWS)
        through = load_rows(gradient, first, at, inside)
        off = load_rows(y, first, at, inside) - center
        if not MASKED:
            through = tl.where(tl.fma(off, scale, offset) <= 0, 0.0, through)
        store_rows(dy, first, at, inside, tl.fma(off, -tilt, through - level) * scale)
