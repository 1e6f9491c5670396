"""Connected components on the device, second half: roots of runs -> the `Table` of components, or an image of numbers.

    kernel    programs                    each does                                          bytes
    compact   1 per page                  walks its runs: roots that fit get a place         4 a run, 40 a component
    extremes  some per page, over runs    the ends of its component's row                    about 40 a run
    mass      some per page, over runs    slow scores only: sum of the run's probabilities   b a text pixel
    number    1 per page                  walks its runs: roots get numbers from 1           4 a run
    paint     some per page, over runs    writes the number on the run's pixels              4 a text pixel

A component fits when (bottom - top) (last - first) >= max(min_size_px - 1, 0)^2, as in the reference: its rectangle
cannot be large enough otherwise. The two sides are compared as float32, like the reference's integers with a float.
Places are given in raster order by a running prefix sum over chunks of the page's runs: a text page (4,600 runs) is 3
chunks, 50 % noise on 1280 x 1280 (410,000 runs) 200. The walk ends where the table is full.

For 16 x 1280 x 1280 text pages this moves 5 MB, about 1 us at 4.3 TB/s. A slow score also reads the text pixels, a
tenth of the map. Slow scores take min(p, 1) in steps of 2^-24, cut off: text pixels are above a threshold of at least
0, so none is NaN or negative.

Example, W = 5, 8 neighbours, rows 11001, 00110 (labelling.py): one component, top 0, height 2, area 5, begin 0. Row 0
has the runs [0, 2) and [4, 5): left_gap[0] = max(5 - 0, 5 - 4) = 5, right_end[0] = 5. Row 1: left_gap[1] = 3,
right_end[1] = 4. `label_triton` gives 11001, 00110.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime
from kernels.components.labelling import LANES, RootSums, resolved_runs, run_arrays, run_capacity, run_grid, speakers
from kernels.components.reference import FIXED_POINT, MAX_COMPONENTS, QuadRules
from kernels.components.table import Table

# Tiles of the kernels over runs and their pixels, one warp; runs that a page's program looks at together. labelling.py
# says why the interpreter has others.
TILE_RUNS, TILE_PIXELS = (128, 16) if runtime.INTERPRETED else (8, 32)
CHUNK, CHUNK_WARPS = (256, 1) if runtime.INTERPRETED else (2048, 16)
STEPS = tl.constexpr(float(FIXED_POINT))


@triton.jit
def _compact_kernel(
    row_begin, run_row, parent, totals_area, totals_left, totals_right, bottom,
    count, overflow, top, height_of, area, mass, begin, left_gap, right_end,
    least, height, capacity, places, CHUNK: tl.constexpr,
):  # fmt: skip
    """Gives places to the page's roots that fit and leaves ~place in their `bottom`; zeroes the rows they will use."""
    page = tl.program_id(0).to(tl.int64)
    runs, out = page * capacity, page * places
    total = tl.load(row_begin + page * (height + 1) + height)
    first, kept, used = 0, 0, 0
    while (first < total) & (kept <= places):
        run = first + tl.arange(0, CHUNK)
        root = (run < total) & (tl.load(parent + runs + run, mask=run < total, other=-1) == run)
        y = tl.load(run_row + runs + run, mask=root, other=0)
        last_y = tl.load(bottom + runs + run, mask=root, other=0)
        left = tl.load(totals_left + runs + run, mask=root, other=0)
        right = tl.load(totals_right + runs + run, mask=root, other=1)
        fits = root & (((last_y - y) * (right - 1 - left)).to(tl.float32) >= least)
        ranks = tl.cumsum(fits.to(tl.int32), 0)
        place = kept + ranks - 1
        keep = fits & (place < places)
        rows = tl.where(keep, last_y - y + 1, 0)
        ends = used + tl.cumsum(rows, 0)
        tl.store(top + out + place, y, mask=keep)
        tl.store(height_of + out + place, rows, mask=keep)
        tl.store(area + out + place, tl.load(totals_area + runs + run, mask=keep, other=0), mask=keep)
        tl.store(begin + out + place, ends - rows, mask=keep)
        if mass is not None:
            tl.store(mass + out + place, 0, mask=keep)
        tl.store(bottom + runs + run, -1 - place, mask=keep)
        first += CHUNK
        kept += tl.sum(fits.to(tl.int32), 0)
        used += tl.sum(rows, 0)
    tl.store(count + page, tl.minimum(kept, places))
    tl.store(overflow + page, (kept > places).to(tl.int32))
    for entry in range(0, used, CHUNK):
        at = entry + tl.arange(0, CHUNK)
        tl.store(left_gap + runs + at, 0, mask=at < used)
        tl.store(right_end + runs + at, 0, mask=at < used)


@triton.jit
def _place_of(run, there, parent, bottom):
    """The place of the run's component in the table, and whether it has one."""
    root = tl.load(parent + run, mask=there, other=0)
    mark = tl.load(bottom + root, mask=there, other=0)
    return tl.where(mark < 0, -1 - mark, 0), there & (mark < 0)


@triton.jit
def _extremes_kernel(
    row_begin, start, stop, run_row, parent, bottom, top, begin, left_gap, right_end, height, width, capacity, places,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Every run widens its component's row."""
    page = tl.program_id(0).to(tl.int64)
    runs, out = page * capacity, page * places
    total = tl.load(row_begin + page * (height + 1) + height)
    for first in range(tl.program_id(1) * BLOCK, total, tl.num_programs(1) * BLOCK):
        run = first + tl.arange(0, BLOCK)
        place, kept = _place_of(run, run < total, parent + runs, bottom + runs)
        y = tl.load(run_row + runs + run, mask=kept, other=0)
        entry = y - tl.load(top + out + place, mask=kept, other=0) + tl.load(begin + out + place, mask=kept, other=0)
        gap = width - tl.load(start + runs + run, mask=kept, other=0)
        end = tl.load(stop + runs + run, mask=kept, other=0)
        # A row of noise has 300 runs of one component and only the outermost matter: read first, most need no atomic.
        # What is read may be old, and then too small: an atomic in vain.
        wider = kept & (gap > tl.load(left_gap + runs + entry, mask=kept, other=0, volatile=True))
        tl.atomic_max(left_gap + runs + entry, gap, mask=wider, sem="relaxed")
        wider = kept & (end > tl.load(right_end + runs + entry, mask=kept, other=0, volatile=True))
        tl.atomic_max(right_end + runs + entry, end, mask=wider, sem="relaxed")


@triton.jit
def _mass_kernel(
    prob_map, row_begin, start, stop, run_row, parent, bottom, mass, height, width, capacity, places,
    RUNS: tl.constexpr, PIXELS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """Adds every run's probabilities to its component's."""
    number: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    page = tl.program_id(0).to(tl.int64)
    runs, out = page * capacity, page * places
    total = tl.load(row_begin + page * (height + 1) + height)
    for first in range(tl.program_id(1) * RUNS, total, tl.num_programs(1) * RUNS):
        run = first + tl.arange(0, RUNS)
        place, kept = _place_of(run, run < total, parent + runs, bottom + runs)
        begin = tl.load(start + runs + run, mask=kept, other=0)
        length = tl.load(stop + runs + run, mask=kept, other=0) - begin
        y = tl.load(run_row + runs + run, mask=kept, other=0)
        line = prob_map + page * height * width + (y * width + begin)
        total_steps = tl.zeros((RUNS,), tl.int64)
        for offset in range(0, tl.max(length, 0), PIXELS):
            at = (offset + tl.arange(0, PIXELS))[None, :]
            value = tl.load(line[:, None] + at, mask=at < length[:, None], other=0).to(number)
            steps = (tl.minimum(value, 1.0) * STEPS).to(tl.int32)
            total_steps += tl.sum(steps.to(tl.int64), 1)
        same, acts = speakers(place, run, kept)
        total_steps = tl.where(same, tl.sum(tl.where(same, total_steps, 0), 0), total_steps)
        tl.atomic_add(mass + out + place, total_steps, mask=acts, sem="relaxed")


@triton.jit
def _number_kernel(row_begin, parent, numbers, height, capacity, CHUNK: tl.constexpr):
    """numbers[root] = 1 + its rank among the page's roots."""
    page = tl.program_id(0).to(tl.int64)
    parent += page * capacity
    total = tl.load(row_begin + page * (height + 1) + height)
    found = 0
    for first in range(0, total, CHUNK):
        run = first + tl.arange(0, CHUNK)
        root = (run < total) & (tl.load(parent + run, mask=run < total, other=-1) == run)
        tl.store(numbers + page * capacity + run, found + tl.cumsum(root.to(tl.int32), 0), mask=root)
        found += tl.sum(root.to(tl.int32), 0)


@triton.jit
def _paint_kernel(
    row_begin, start, stop, run_row, parent, numbers, labels, height, width, capacity,
    RUNS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """labels = the component's number on every run's pixels."""
    page = tl.program_id(0).to(tl.int64)
    runs = page * capacity
    total = tl.load(row_begin + page * (height + 1) + height)
    for first in range(tl.program_id(1) * RUNS, total, tl.num_programs(1) * RUNS):
        run = first + tl.arange(0, RUNS)
        there = run < total
        root = tl.load(parent + runs + run, mask=there, other=0)
        number = tl.load(numbers + runs + root, mask=there, other=0)
        begin = tl.load(start + runs + run, mask=there, other=0)
        length = tl.load(stop + runs + run, mask=there, other=0) - begin
        y = tl.load(run_row + runs + run, mask=there, other=0)
        line = labels + page * height * width + (y * width + begin)
        for offset in range(0, tl.max(length, 0), PIXELS):
            at = (offset + tl.arange(0, PIXELS))[None, :]
            tl.store(line[:, None] + at, number[:, None], mask=at < length[:, None])


def build_table(prob_map: Tensor, rules: QuadRules, places: int = MAX_COMPONENTS) -> Table:
    """The components of contiguous (N, H, W) maps of 16, 32 or 64 bit floats that may be large enough for the rules.

    Reads nothing back from the device. `places` is the table's C. Raises ValueError as `resolved_runs`.
    """
    pages, height, width = prob_map.shape
    capacity, device = run_capacity(height, width), prob_map.device
    totals = RootSums(*run_arrays(4, pages, capacity, device))
    runs = resolved_runs(prob_map, rules.bin_thresh, rules.connectivity, totals)
    count, overflow = torch.empty((2, pages), dtype=torch.int32, device=device)
    top, heights, area, begin = run_arrays(4, pages, places, device)
    mass = torch.empty((pages, places), dtype=torch.int64, device=device)
    table = Table(count, overflow, top, heights, area, mass, begin, *run_arrays(2, pages, capacity, device))
    slow = rules.score_mode == "slow"
    # A page has less than 2^31 pixels: what nothing reaches stays out of reach, and Triton's floats are float32.
    least = float(min(max(rules.min_size_px - 1, 0) ** 2, 2.0**40))
    runtime.launch(
        _compact_kernel, (pages,), runs.row_begin, runs.row, runs.parent, *totals,
        count, overflow, top, heights, area, mass if slow else None, begin, table.left_gap, table.right_end,
        least, height, capacity, places,
        num_warps=CHUNK_WARPS, CHUNK=CHUNK,
    )  # fmt: skip
    runtime.launch(
        _extremes_kernel, run_grid(prob_map, LANES), *runs, totals.bottom, top, begin, table.left_gap, table.right_end,
        height, width, capacity, places, num_warps=1, BLOCK=LANES,
    )  # fmt: skip
    if slow:
        runtime.launch(
            _mass_kernel, run_grid(prob_map, TILE_RUNS), prob_map, *runs, totals.bottom, mass,
            height, width, capacity, places,
            num_warps=1, RUNS=TILE_RUNS, PIXELS=TILE_PIXELS, DOUBLE=prob_map.dtype == torch.float64,
        )  # fmt: skip
    return table


def label_triton(mask: Tensor, connectivity: int) -> Tensor:
    """(N, H, W) int32 component numbers of a contiguous bool mask, as `reference.label_reference` gives them."""
    pages, height, width = mask.shape
    capacity = run_capacity(height, width)
    runs = resolved_runs(mask, 0.0, connectivity)
    (numbers,) = run_arrays(1, pages, capacity, mask.device)
    labels = torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    runtime.launch(
        _number_kernel, (pages,), runs.row_begin, runs.parent, numbers, height, capacity,
        num_warps=CHUNK_WARPS, CHUNK=CHUNK,
    )  # fmt: skip
    runtime.launch(
        _paint_kernel, run_grid(mask, TILE_RUNS), *runs, numbers, labels, height, width, capacity,
        num_warps=1, RUNS=TILE_RUNS, PIXELS=TILE_PIXELS,
    )  # fmt: skip
    return labels
