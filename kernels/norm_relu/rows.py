"""What the norm_relu kernels share: how they walk over a channels_last map, and the arithmetic of one channel.

A (N, C, H, W) map in channels_last is a matrix of N H W rows (pixels) and C columns (channels). A program owns BLOCK
channels and strides over tiles of ROWS rows. A lane holds VECTOR neighbouring channels of LOADS rows: 16 bytes a load
where C is a multiple of 8 (2-byte types) or 4 (float32). Lanes beyond C are masked: they idle, and move no byte.

    C                          44      48      64      88     176     256     352
    BLOCK, blocks              64, 1   64, 1   64, 1   128, 1  64, 3   128, 2  128, 3
    idle lanes                 31 %    25 %    0       31 %    8 %     0       8 %
    bytes a load, bfloat16     8       16      16      16      16      16      16

The kernels take 5 to 15 instructions an element of the 19 to 57 that the memory's time leaves (a 3.35 TB/s device of
132 SMs at 1.7 GHz, 2 to 6 bytes an element), so idle lanes do not decide; neither was measured.

Example: (16, 48, 320, 320) in bfloat16 is 1,638,400 rows of 48; a tile has 32 x 8 lanes x 8 channels x 4 loads = 8192
elements, 128 rows of 64 columns, so there are 12,800 tiles.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime

WARPS = 8
LOADS = 4  # of a lane and operand in flight: 16 KB a program
TOTAL_BLOCK = 8  # channels of a program that adds the partial sums up: one 32-byte sector of each row


class Rows(NamedTuple):
    """A channels_last map as a matrix, and how programs share it."""

    rows: int  # N H W
    channels: int
    block: int  # channels of a program
    tile_rows: int
    group: int  # rows between two rows of one lane
    programs: int  # that stride over the tiles, for each block of channels

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.rows, self.tile_rows)

    @property
    def grid(self) -> tuple[int, int]:
        return self.programs, triton.cdiv(self.channels, self.block)

    @property
    def constants(self) -> dict[str, int]:
        """The constants of every kernel that walks over the tiles."""
        return {"C": self.channels, "BLOCK": self.block, "ROWS": self.tile_rows}

    @property
    def total_grid(self) -> tuple[int]:
        return (triton.cdiv(self.channels, TOTAL_BLOCK),)


def lay_out(y: Tensor, per_sm: int) -> Rows:
    """How `per_sm` programs an SM share y, (N, C, H, W) in channels_last."""
    channels, rows = y.shape[1], y.numel() // y.shape[1]
    vector = next(size for size in (8, 4, 2, 1) if channels % size == 0 and size * y.itemsize <= 16)
    block = channel_block(channels)
    group = 32 * WARPS * vector // block
    blocks = triton.cdiv(channels, block)
    tiles = triton.cdiv(rows, group * LOADS)
    programs = min(tiles, triton.cdiv(runtime.num_programs(y.device, per_sm, tiles * blocks), blocks))
    return Rows(rows, channels, block, group * LOADS, group, programs)


def channel_block(channels: int) -> int:
    """Channels of a program, a power of two: all up to 128, else 128 or 64, whichever idles less."""
    if channels <= 128:
        return max(8, triton.next_power_of_2(channels))
    return min((128, 64), key=lambda block: triton.cdiv(channels, block) * block)


@triton.jit
def own_channels(C: tl.constexpr, BLOCK: tl.constexpr):
    """((BLOCK,) channels of this program, whether each exists)."""
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return channel, channel < C


@triton.jit
def row_tile(tile, rows, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """(int64 place of the tile's first row, (ROWS, BLOCK) int32 places from there, mask of what exists)."""
    first = tl.cast(tile, tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    channel, exists = own_channels(C, BLOCK)
    inside = (row < tl.minimum(rows - first, ROWS).to(tl.int32))[:, None] & exists[None, :]
    return first * C, row[:, None] * C + channel[None, :], inside


@triton.jit
def load_rows(values, first, at, inside):
    """A tile as float32, 0 where there is nothing."""
    return tl.load(values + first + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_rows(values, first, at, inside, tile):
    """Writes a tile in the map's dtype."""
    tl.store(values + first + at, tile.to(values.dtype.element_ty), mask=inside)


@triton.jit
def per_lane(tile, GROUP: tl.constexpr):
    """(GROUP, BLOCK) sums of the rows that one lane holds: no exchange between lanes."""
    EACH: tl.constexpr = tile.shape[0] // GROUP
    return tl.sum(tl.reshape(tile, (EACH, GROUP, tile.shape[1])), 0)


@triton.jit
def channel_terms(weight, bias, mean, var, eps, C: tl.constexpr, BLOCK: tl.constexpr):
    """(1, BLOCK) mean, 1 / sqrt(var + eps), weight and bias of this program's channels; 0, 1, 0, 0 beyond C.

    Forward and backward take it from here, so that both find the same sign of the normalised value.
    """
    channel, exists = own_channels(C, BLOCK)
    center = tl.load(mean + channel, mask=exists, other=0.0)
    spread = tl.load(var + channel, mask=exists, other=1.0)
    gain = tl.load(weight + channel, mask=exists, other=0.0)
    offset = tl.load(bias + channel, mask=exists, other=0.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(spread + eps))
    return center[None, :], rstd[None, :], gain[None, :], offset[None, :]


@triton.jit
def store_partials(partials, ROW: tl.constexpr, sums, C: tl.constexpr, BLOCK: tl.constexpr):
    """Writes this program's (BLOCK,) sums to row ROW of the (rows, programs, C) table."""
    channel, exists = own_channels(C, BLOCK)
    place = (ROW * tl.num_programs(0) + tl.program_id(0)) * C
    tl.store(partials + place + channel, sums, mask=exists)


@triton.jit
def load_partials(partials, ROW: tl.constexpr, programs, C, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """(PROGRAMS, BLOCK) float64 of one row of the table for BLOCK channels, 0 beyond the programs and channels."""
    program = tl.arange(0, PROGRAMS)[:, None]
    channel = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = (program < programs) & (channel < C)
    return tl.load(partials + (ROW * programs + program) * C + channel, mask=inside, other=0.0).to(tl.float64)


def partials_of(rows: Rows, sums: int, device: torch.device) -> Tensor:
    """(sums, programs, C) float32 table, not filled."""
    return torch.empty((sums, rows.programs, rows.channels), dtype=torch.float32, device=device)
