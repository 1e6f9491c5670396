"""Connected components on the device, first half: pixels -> bits -> runs -> roots of components (and `label_triton`).

A run is a horizontal stretch of text pixels [start, stop); runs are numbered in raster order within their page, and a
page has at most E = H * ceil(W / 2). Two runs of neighbouring rows touch when start < stop' + reach and start' < stop +
reach, reach 1 with 8 neighbours and 0 with 4. A component's root is its least run, so the first in raster order.

    kernel   programs                     each does                                      bytes (b = bytes of a value)
    pack     1 per ROWS rows              8 pixels -> 1 byte; run starts of every row    b + 1/8 a pixel, 4 a row
    scan     1 per page                   exclusive prefix sum of its rows' counts       8 a row
    write    1 per ROWS rows              start, stop, row, parent = itself              1/8 a pixel, 16 a run
    link     some per page, over runs     two unions a run by binary search              about 60 a run
    resolve  some per page, over runs     parent = root; sums at the root                about 50 a run

Floor for 16 x 1280 x 1280 at 4.3 TB/s: 26.2 M bfloat16 pixels read once, 52.4 MB, and 3.3 MB of bits written and read:
14 us (float32: 26 us). A text page has about 4,600 runs, so the rest is 8 MB. Arrays over runs have room for E a page,
40 bytes a run with the table's, so that nothing depends on values: 524 MB for this batch, of which text touches 2 MB.

Links. Every run unites with the first run it touches in the row above and the first in the row below. This is enough:
let i touch j below it, with i not the first above j and j not the first below i. Then some i' left of i touches j and
some j' left of j touches i, so start(j) < stop(i') + reach and start(i) < stop(j') + reach. Runs of a row have a gap,
stop(i') < start(i) and stop(j') < start(j), so in integers start(j) < start(i) - 1 + reach <= stop(j') + 2 reach - 2
<= start(j) + 2 reach - 3 < start(j): impossible. When both would make the same union, the lower run makes it.

Union-find. parent[i] <= i and only atomic_min lowers it, so a stale read is still an ancestor, and cells are never
compressed while others unite. Where atomic_min returns something else than the expected root, another program was
faster: the union goes on with what it returned. No loop but the walk to a root depends on a component's size, and in
`resolve` every lane leaves where it has got to, so a chain of n (a bar of n rows) takes about log2(n) steps, not n.

What other programs change meanwhile is changed by relaxed atomics and read by volatile loads alone, here and in
tabulate.py: to PTX that is no data race, and the loads pass by the L1 cache, which does not see other processors'
changes. On sm_90 such a load is LDG.STRONG.SYS, from the L2 cache as `.cg` is, which PTX takes for a plain one.

Example, W = 5, 8 neighbours: rows 11001, 00110 -> bytes 0b10011, 0b01100 -> row_begin 0, 2, 3; runs 0 = [0, 2),
1 = [4, 5), 2 = [2, 4) in row 1. Run 2 first touches run 0 above (2 < 2 + 1) and makes parent[2] = 0. Run 1 first
touches run 2 below and is not its first above: it makes parent[1] = 0. One component with root 0; with 4 neighbours 3.
"""

import struct
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime

# Tiles of the kernels over rows: 4 warps of one row each, a byte a thread; with two bytes Triton moves values between
# threads before every store (112 barriers in `write`). Kernels over runs are one warp: finding waits for no other. The
# interpreter's cost does not depend on the size: larger tiles, but small enough that 40 x 65 pixels need several.
ROWS, BYTES, LANES = (128, 4, 256) if runtime.INTERPRETED else (4, 32, 32)
SCAN = 16 if runtime.INTERPRETED else 2048
PROGRAMS = 32  # of one warp a processor: as many as it holds
MOST = tl.constexpr(2**31 - 1)  # pixels of a page and rows of a batch, which are int32; flat positions are int64


class DeviceRuns(NamedTuple):
    """Runs of N pages; entries at and after row_begin[:, H] are undefined."""

    row_begin: Tensor  # (N, H + 1) int32 first run of every row, and the page's number of runs
    start: Tensor  # (N, E) int32 first column
    stop: Tensor  # (N, E) int32 column after the last
    row: Tensor  # (N, E) int32
    parent: Tensor  # (N, E) int32 the root of every run, once resolved


class RootSums(NamedTuple):
    """What is known of a component at its root run; the entries of other runs are undefined."""

    area: Tensor  # (N, E) int32 pixels
    left: Tensor  # (N, E) int32 leftmost column
    right: Tensor  # (N, E) int32 column after the rightmost
    bottom: Tensor  # (N, E) int32 last row


@triton.jit
def _popcount(byte):
    pairs = byte - ((byte >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (nibbles + (nibbles >> 4)) & 0xF


@triton.jit
def some(flags):
    """Whether any lane's flag is set."""
    return tl.max(flags.to(tl.int32), 0) > 0


@triton.jit(do_not_specialize=["thresh_bits"])
def _pack_kernel(
    values, bits, counts, thresh_bits, num_rows, width, row_bytes,
    ROWS: tl.constexpr, BYTES: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """bits[row, k] = text of pixels 8 k to 8 k + 7, the lowest bit the leftmost; counts[row] = its run starts."""
    number: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    # torch.gt compares in the map's type, with the threshold rounded to it; Triton's own floats are float32.
    thresh = thresh_bits.to(tl.int64).to(tl.float64, bitcast=True).to(number)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < num_rows
    line = row.to(tl.int64) * width
    out = row.to(tl.int64) * row_bytes
    pixel = tl.arange(0, 8)
    found = tl.zeros((ROWS, BYTES), tl.int32)
    for first in range(0, row_bytes, BYTES):
        at = first + tl.arange(0, BYTES)
        column = at[:, None] * 8 + pixel[None, :]
        inside = there[:, None, None] & (column < width)[None, :, :]
        value = tl.load(values + (line[:, None, None] + column[None, :, :]), mask=inside, other=0)
        text = (value.to(number) > thresh).to(tl.int32)
        byte = tl.sum(text << pixel[None, None, :], 2)
        within = there[:, None] & (at < row_bytes)[None, :]
        # The pixel left of the byte is read once more, from the cache: cheaper than a shuffle between lanes.
        behind = within & (at > 0)[None, :]
        before = tl.load(values + (line[:, None] + (at * 8 - 1)[None, :]), mask=behind, other=0)
        before = (before.to(number) > thresh).to(tl.int32)
        found += _popcount(byte & ~((byte << 1) | before))
        tl.store(bits + (out[:, None] + at[None, :]), byte.to(tl.uint8), mask=within)
    tl.store(counts + row, tl.sum(found, 1), mask=there)


@triton.jit
def _scan_kernel(counts, row_begin, height, BLOCK: tl.constexpr):
    """row_begin[page] = exclusive prefix sum of counts[page], and the total."""
    page = tl.program_id(0).to(tl.int64)
    total = 0
    for first in range(0, height, BLOCK):
        y = first + tl.arange(0, BLOCK)
        count = tl.load(counts + page * height + y, mask=y < height, other=0)
        tl.store(row_begin + page * (height + 1) + y, total + tl.cumsum(count, 0) - count, mask=y < height)
        total += tl.sum(count, 0)
    tl.store(row_begin + page * (height + 1) + height, total)


@triton.jit
def _write_kernel(
    bits, row_begin, start, stop, run_row, parent, num_rows, height, row_bytes, capacity,
    ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Every set bit without one before it starts a run, every one without one after it ends a run, alternating."""
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = line < num_rows
    page = line // height
    y = (line % height)[:, None]
    base = (page.to(tl.int64) * capacity)[:, None]
    source = (line.to(tl.int64) * row_bytes)[:, None]
    begin = tl.load(row_begin + (line.to(tl.int64) + page), mask=there, other=0)
    for first in range(0, row_bytes, BYTES):
        at = (first + tl.arange(0, BYTES))[None, :]
        within = there[:, None] & (at < row_bytes)
        here = bits + (source + at)
        byte = tl.load(here, mask=within, other=0).to(tl.int32)
        before = tl.load(here - 1, mask=within & (at > 0), other=0).to(tl.int32) >> 7
        after = tl.load(here + 1, mask=within & (at + 1 < row_bytes), other=0).to(tl.int32) & 1
        starts = byte & ~((byte << 1) | before)
        lasts = byte & ~((byte >> 1) | (after << 7))
        count = _popcount(starts)
        opens = begin[:, None] + tl.cumsum(count, 1) - count  # the next run to start in this byte
        closes = opens - (before & byte)  # the next to stop: the same, or the one that comes from the left
        for bit in tl.static_range(8):
            starting = (starts >> bit) & 1
            place = base + opens
            tl.store(start + place, at * 8 + bit, mask=starting == 1)
            tl.store(run_row + place, y, mask=starting == 1)
            tl.store(parent + place, opens, mask=starting == 1)
            opens += starting
            stopping = (lasts >> bit) & 1
            tl.store(stop + (base + closes), at * 8 + bit + 1, mask=stopping == 1)
            closes += stopping
        begin += tl.sum(count, 1)


@triton.jit
def _first_touching(start, stop, low, high, my_start, my_stop, REACH: tl.constexpr):
    """The first of the runs low to high - 1 of a row that touches mine, and whether there is one."""
    end = high
    while some(low < high):
        open = low < high
        middle = (low + high) >> 1
        reaches = tl.load(stop + middle, mask=open, other=0) > my_start - REACH
        high = tl.where(open & reaches, middle, high)
        low = tl.where(open & ~reaches, middle + 1, low)
    touches = low < end
    return low, touches & (tl.load(start + low, mask=touches, other=0) < my_stop + REACH)


@triton.jit
def _unite(parent, a, b, active):
    """Joins the trees of a and b where active. Walks both to their roots at once and hooks the greater one."""
    while some(active):
        # Volatile, as others hook meanwhile. An old value is an ancestor still: it costs a failing atomic.
        up_a = tl.load(parent + a, mask=active, other=0, volatile=True)
        up_b = tl.load(parent + b, mask=active, other=0, volatile=True)
        high, low = tl.maximum(up_a, up_b), tl.minimum(up_a, up_b)
        active = active & (high != low)
        hook = active & (up_a == a) & (up_b == b)
        old = tl.atomic_min(parent + high, low, mask=hook, sem="relaxed")
        active = active & ~(hook & (old == high))
        a, b = tl.where(hook, old, high), low


@triton.jit
def _link_kernel(
    row_begin, start, stop, run_row, parent, area, left, right, bottom, height, capacity,
    BLOCK: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """Unites every run with the first it touches above and below; its own pixels are the first of its sums."""
    page = tl.program_id(0).to(tl.int64)
    row_begin += page * (height + 1)
    start += page * capacity
    stop += page * capacity
    parent += page * capacity
    total = tl.load(row_begin + height)
    for first in range(tl.program_id(1) * BLOCK, total, tl.num_programs(1) * BLOCK):
        run = first + tl.arange(0, BLOCK)
        there = run < total
        my_start = tl.load(start + run, mask=there, other=0)
        my_stop = tl.load(stop + run, mask=there, other=0)
        y = tl.load(run_row + page * capacity + run, mask=there, other=0)
        if area is not None:
            tl.store(area + page * capacity + run, my_stop - my_start, mask=there)
            tl.store(left + page * capacity + run, my_start, mask=there)
            tl.store(right + page * capacity + run, my_stop, mask=there)
            tl.store(bottom + page * capacity + run, y, mask=there)
        own = tl.load(row_begin + y, mask=there, other=0)
        above = tl.load(row_begin + y - 1, mask=there & (y > 0), other=0)
        other, touches = _first_touching(start, stop, above, own, my_start, my_stop, REACH)
        _unite(parent, run, other, touches & there)
        below = tl.load(row_begin + y + 1, mask=there, other=0)
        end = tl.load(row_begin + y + 2, mask=there & (y + 1 < height), other=0)
        other, touches = _first_touching(start, stop, below, tl.maximum(end, below), my_start, my_stop, REACH)
        # If the run left of me does not touch it, I am its first above: it unites with me itself.
        twice = touches & (run > own)
        beside = tl.load(stop + run - 1, mask=twice, other=0)
        twice = twice & (tl.load(start + other, mask=twice, other=0) < beside + REACH)
        _unite(parent, run, other, twice & there)


@triton.jit
def speakers(root, lane, joining):
    """Lanes that share the least root of the program, and those that act: the others, and one for all of these.

    Noise is one giant component: with one atomic for a warp's share of it, its root gets 32 times fewer.
    """
    same = joining & (root == tl.min(tl.where(joining, root, MOST), 0))
    return same, joining & (~same | (lane == tl.min(tl.where(same, lane, MOST), 0)))


@triton.jit
def _resolve_kernel(
    row_begin, start, stop, run_row, parent, area, left, right, bottom, height, capacity, BLOCK: tl.constexpr
):
    """parent[run] = its root; with sums, every run but the root adds its own to the root's."""
    page = tl.program_id(0).to(tl.int64)
    parent += page * capacity
    total = tl.load(row_begin + page * (height + 1) + height)
    for first in range(tl.program_id(1) * BLOCK, total, tl.num_programs(1) * BLOCK):
        run = first + tl.arange(0, BLOCK)
        active = run < total
        root = tl.load(parent + run, mask=active, other=0, volatile=True)
        joining = active & (root != run)
        while some(active):
            up = tl.load(parent + root, mask=active, other=0, volatile=True)
            active = active & (up != root)
            root = tl.where(active, up, root)
            # Nothing is united any more: ancestors replace ancestors, whoever reads them goes on from there. A store
            # would be a race; an exchange, unlike min, would wait for the value that it returns.
            tl.atomic_min(parent + run, root, mask=active, sem="relaxed")
        if area is not None:
            at = page * capacity + root
            my_start = tl.load(start + page * capacity + run, mask=joining, other=0)
            my_stop = tl.load(stop + page * capacity + run, mask=joining, other=0)
            y = tl.load(run_row + page * capacity + run, mask=joining, other=0)
            same, acts = speakers(root, run, joining)
            length = my_stop - my_start
            length = tl.where(same, tl.sum(tl.where(same, length, 0), 0), length)
            tl.atomic_add(area + at, length, mask=acts, sem="relaxed")
            first_column = tl.where(same, tl.min(tl.where(same, my_start, MOST), 0), my_start)
            better = acts & (first_column < tl.load(left + at, mask=acts, other=0, volatile=True))
            tl.atomic_min(left + at, first_column, mask=better, sem="relaxed")
            end_column = tl.where(same, tl.max(tl.where(same, my_stop, 0), 0), my_stop)
            better = acts & (end_column > tl.load(right + at, mask=acts, other=0, volatile=True))
            tl.atomic_max(right + at, end_column, mask=better, sem="relaxed")
            last_row = tl.where(same, tl.max(tl.where(same, y, 0), 0), y)
            better = acts & (last_row > tl.load(bottom + at, mask=acts, other=0, volatile=True))
            tl.atomic_max(bottom + at, last_row, mask=better, sem="relaxed")


def resolved_runs(values: Tensor, threshold: float, connectivity: int, totals: RootSums | None = None) -> DeviceRuns:
    """The runs of (N, H, W) values above the threshold (NaN is not) and their roots; fills `totals` where given.

    values: contiguous, bool or float of 16, 32 or 64 bits. threshold: rounded to float32, for float64 values it is not,
    as torch.gt does. Raises ValueError for 2^31 pixels a page, or rows in all, and more.
    """
    pages, height, width = values.shape
    if width * height > MOST.value or pages * height > MOST.value - ROWS:  # the last tile's rows are counted to its end
        raise ValueError(f"components: {tuple(values.shape)} is 2^31 pixels a page or rows in all, or more")
    row_bytes, capacity = -(-width // 8), run_capacity(height, width)
    row_begin = torch.empty((pages, height + 1), dtype=torch.int32, device=values.device)
    runs = DeviceRuns(row_begin, *run_arrays(4, pages, capacity, values.device))
    bits = torch.empty((pages, height, row_bytes), dtype=torch.uint8, device=values.device)
    counts = torch.empty((pages, height), dtype=torch.int32, device=values.device)
    (bits_of_threshold,) = struct.unpack("<q", struct.pack("<d", threshold))
    tiles = (triton.cdiv(pages * height, ROWS),)
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    runtime.launch(
        _pack_kernel, tiles, values, bits, counts, bits_of_threshold, pages * height, width, row_bytes,
        num_warps=4, ROWS=ROWS, BYTES=BYTES, DOUBLE=values.dtype == torch.float64,
    )  # fmt: skip
    runtime.launch(_scan_kernel, (pages,), counts, runs.row_begin, height, num_warps=4, BLOCK=SCAN)
    runtime.launch(
        _write_kernel, tiles, bits, *runs, pages * height, height, row_bytes, capacity,
        num_warps=4, ROWS=ROWS, BYTES=BYTES,
    )  # fmt: skip
    grid = run_grid(values, LANES)
    arrays = (*runs, *(totals or (None,) * 4), height, capacity)
    reach = 1 if connectivity == 8 else 0
    runtime.launch(_link_kernel, grid, *arrays, num_warps=1, BLOCK=LANES, REACH=reach)
    runtime.launch(_resolve_kernel, grid, *arrays, num_warps=1, BLOCK=LANES)
    return runs


def run_capacity(height: int, width: int) -> int:
    """E, the most runs a page can have: every second column of every row."""
    return height * ((width + 1) // 2)


def run_arrays(count: int, pages: int, capacity: int, device: torch.device) -> list[Tensor]:
    """Undefined (N, E) int32 tensors, each of its own allocation and so divisible by 16."""
    return [torch.empty((pages, capacity), dtype=torch.int32, device=device) for _ in range(count)]


def run_grid(values: Tensor, block: int) -> tuple[int, int]:
    """(pages, programs for each) of kernels that stride over a page's runs; only the first number may pass 65,535."""
    pages, height, width = values.shape
    most = triton.cdiv(run_capacity(height, width), block)
    return pages, runtime.num_programs(values.device, triton.cdiv(PROGRAMS, max(pages, 1)), most)
