"""On the device: from the table of components and the probability maps to the ranked quads. Hulls: hulls.py.

For a component's rectangle (half sides a, b; w = 2 a, h = 2 b; axis u) through pixel centres:

    grown by g = (sqrt((w - h)^2 + 4 area) - w - h) / 4, within 0..0.5; short side >= min_size_px
    score = mean probability: "fast" over the pixels in the grown rectangle (at most ON_EDGE_PX outside),
            "slow" mass / area from the table; >= box_thresh
    unclipped by D' = w h r' / (2 (w + h)); short side >= min_unclipped_px
    rank = how many components of the page have a higher score, or the same and come earlier

Three kernels, all float64 as reference.py computes it; sums of probabilities are integers in steps of 2^-24:
    boxes: programs of one warp stride over each page's components. Row extremes -> quad, "slow" also the score.
    means, "fast" only: programs of four warps stride over the components. Rows of the rectangle 16 x 128 pixels at a
        time. Apart from boxes because one warp would need some 1 ms (estimated) for a rectangle as large as the page.
    rank: one program for 128 components of a page; best max_candidates to their places.
How many components there are is read on the device, so nothing waits for it.

Bytes of 16 x 1280 x 1280 with 90 lines of text a page (1440 components, 11 % of the pixels): boxes 8 a row and 96 a
component, 0.4 MB; means 4 a pixel of the rectangles (2 for bf16), 11.5 MB; rank 4 a component of the page for every 128
and 72 a component, 0.1 MB. Floor at 4.3 TB/s: 2.8 us. In fact the longest component decides, in means the few rounds of
loads of its rows.

Example: area 200, w = 19, h = 9, axis (1, 0): g = (30 - 28) / 4 = 0.5, so 20 x 10; D' = 200 * 1.5 / 60 = 5; the quad
is 30 x 20 and its score the mean over 200 pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime
from kernels.components import reference
from kernels.components.hulls import float64, hull, smallest_rectangle
from kernels.components.reference import QuadRules, Quads
from kernels.components.table import Table, empty_quads

ON_EDGE_PX = tl.constexpr(reference.ON_EDGE_PX)
FIXED_POINT = tl.constexpr(reference.FIXED_POINT)
NUMBERS = tl.constexpr(6)  # of a rectangle: centre x, y, axis x, y, half sides
# Programs for every SM: boxes have one warp, means four, and an SM holds 64 (at most 32 programs).
BOXES_PER_SM, MEANS_PER_SM = 16, 8


def find_quads_on_device(table: Table, prob_map: Tensor, rules: QuadRules) -> Quads:
    """The quads of a table's components, as reference.find_quads_reference computes them; never waits for the device.

    prob_map: contiguous (N, H, W) maps the table was made from, any float dtype. The Quads are in one buffer, see
    table.empty_quads.
    """
    (pages, capacity), (_, height, width) = table.top.shape, prob_map.shape
    device, fast = prob_map.device, rules.score_mode == "fast"
    boxes_grid = _grid(device, pages, capacity, BOXES_PER_SM)
    hulls = torch.empty((boxes_grid[0], 2, 2 * height), dtype=torch.int32, device=device)
    rectangles = torch.empty((pages, capacity, NUMBERS.value) if fast else (0,), dtype=torch.float64, device=device)
    corners = torch.empty((pages, capacity, 8), dtype=torch.float32, device=device)
    scores = torch.empty((pages, capacity), dtype=torch.float32, device=device)
    limits = (float(rules.box_thresh), float(rules.unclip_ratio))
    sizes = (float(rules.min_size_px), float(rules.min_unclipped_px))
    columns = (table.top, table.height, table.area, table.mass, table.begin, table.left_gap, table.right_end)
    made = (hulls, rectangles, corners, scores)
    shape = (height, width, pages, capacity, table.left_gap.shape[1])
    runtime.launch(
        _boxes_kernel, boxes_grid, table.counts, *columns, *made, *limits, *sizes, *shape, num_warps=1, FAST=fast
    )
    if fast:
        grid = _grid(device, pages, capacity, MEANS_PER_SM)
        args = (table.counts, rectangles, prob_map, scores, limits[0], height, width, pages, capacity)
        runtime.launch(_means_kernel, grid, *args, num_warps=4, ROWS=16, COLUMNS=128)
    return _ranked(table, corners, scores, rules.max_candidates)


def _ranked(table: Table, corners: Tensor, scores: Tensor, most: int) -> Quads:
    """The best of the accepted components, those with a score >= 0; corners (N, C, 8), scores (N, C) float32."""
    pages, capacity = scores.shape
    quads = empty_quads(pages, most, scores.device)
    into = (quads.quads, quads.scores, quads.counts, quads.overflow.view(torch.uint8))
    grid, args = (pages, triton.cdiv(capacity, 128)), (table.counts, table.overflow, corners, scores, *into)
    runtime.launch(_rank_kernel, grid, *args, capacity, most, num_warps=4, MINE=128, OTHERS=64)
    return quads


def _grid(device: torch.device, pages: int, capacity: int, per_sm: int) -> tuple[int]:
    """The same number of programs for every page."""
    return (pages * max(1, runtime.num_programs(device, per_sm, pages * capacity) // max(1, pages)),)


@triton.jit
def _boxes_kernel(
    count,
    top,
    height,
    area,
    mass,
    begin,
    left_gap,
    right_end,
    hulls,
    rectangles,
    corners,
    scores,
    box_thresh: tl.float64,  # a plain Python float would arrive as float32
    unclip_ratio: tl.float64,
    min_size_px: tl.float64,
    min_unclipped_px: tl.float64,
    page_height,
    page_width,
    pages,
    capacity,
    entries,
    FAST: tl.constexpr,
):
    """Quads of components; FAST: also their rectangles, half side -1 where too small, else the scores, -1 for none."""
    program = tl.program_id(0)
    page = (program % pages).to(tl.int64)
    left_gap, right_end = left_gap + page * entries, right_end + page * entries
    x = hulls + program.to(tl.int64) * (4 * page_height)
    y = x + 2 * page_height
    for component in range(program // pages, tl.load(count + page), tl.num_programs(0) // pages):
        at = page * capacity + component
        pixels = tl.load(area + at).to(tl.float64)
        first, rows = tl.load(begin + at), tl.load(height + at)
        tl.debug_barrier()  # all lanes have read the last component's hull
        num = hull(left_gap, right_end, first, rows, tl.load(top + at), page_width, x, y)
        tl.debug_barrier()
        cx, cy, ux, uy, a, b = smallest_rectangle(x, y, num)
        cx, cy = cx + 0.5, cy + 0.5
        w, h = 2 * a, 2 * b
        root = tl.sqrt((w - h) * (w - h) + 4 * pixels)
        growth = tl.minimum(tl.maximum((root - w - h) / 4, 0.0), 0.5)
        a, b = a + growth, b + growth
        w, h = 2 * a, 2 * b
        distance = w * h * float64(unclip_ratio) / (2 * (w + h))  # the sides are at least as long as one pixel's: not 0
        wide, high = a + distance, b + distance
        large = tl.minimum(w, h) >= float64(min_size_px)
        large &= 2 * tl.minimum(wide, high) >= float64(min_unclipped_px)
        _store_corners(corners + at * 8, cx, cy, ux, uy, wide, high)
        if FAST:
            into = rectangles + at * NUMBERS
            tl.store(into, cx)
            tl.store(into + 1, cy)
            tl.store(into + 2, ux)
            tl.store(into + 3, uy)
            tl.store(into + 4, tl.where(large, a, -1.0))
            tl.store(into + 5, b)
        else:
            mean = tl.load(mass + at).to(tl.float64) / (pixels * FIXED_POINT)
            tl.store(scores + at, tl.where(large & (mean >= float64(box_thresh)), mean, -1.0).to(tl.float32))


@triton.jit
def _store_corners(into, cx, cy, ux, uy, wide, high):
    """Top left, top right, bottom right, bottom left, x and y each."""
    along_x, along_y = ux * wide, uy * wide
    across_x, across_y = -uy * high, ux * high
    sum_x, sum_y = along_x + across_x, along_y + across_y
    difference_x, difference_y = across_x - along_x, across_y - along_y
    tl.store(into, (cx - sum_x).to(tl.float32))
    tl.store(into + 1, (cy - sum_y).to(tl.float32))
    tl.store(into + 2, (cx - difference_x).to(tl.float32))
    tl.store(into + 3, (cy - difference_y).to(tl.float32))
    tl.store(into + 4, (cx + sum_x).to(tl.float32))
    tl.store(into + 5, (cy + sum_y).to(tl.float32))
    tl.store(into + 6, (cx + difference_x).to(tl.float32))
    tl.store(into + 7, (cy + difference_y).to(tl.float32))


@triton.jit
def _means_kernel(
    count,
    rectangles,
    prob_map,
    scores,
    box_thresh: tl.float64,
    page_height,
    page_width,
    pages,
    capacity,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Scores of components: the mean probability in their rectangles, -1 for none."""
    program = tl.program_id(0)
    page = (program % pages).to(tl.int64)
    prob_map += page * page_height * page_width
    for component in range(program // pages, tl.load(count + page), tl.num_programs(0) // pages):
        at = page * capacity + component
        box = rectangles + at * NUMBERS
        score = -1.0
        if tl.load(box + 4) >= 0:
            mean = _mean_inside(box, prob_map, page_height, page_width, ROWS, COLUMNS)
            score = tl.where(mean >= float64(box_thresh), mean, -1.0).to(tl.float32)
        tl.store(scores + at, score)


@triton.jit
def _mean_inside(box, prob_map, page_height, page_width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Mean probability over the pixels with their centres in a rectangle, float64."""
    cx, cy, ux, uy = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    a, b = tl.load(box + 4) + float64(ON_EDGE_PX), tl.load(box + 5) + float64(ON_EDGE_PX)
    reach = a * tl.abs(uy) + b * ux
    first = _bounded(tl.ceil(cy - reach - 0.5), page_height)
    stop = _bounded(tl.floor(cy + reach + 0.5), page_height)
    total = tl.zeros([COLUMNS], tl.int64)
    pixels = tl.zeros([ROWS], tl.int32)
    for start in range(first, stop, ROWS):
        row = start + tl.arange(0, ROWS)
        left, right = _interval(row, cx, cy, ux, uy, a, b, page_width)
        right = tl.where(row < stop, tl.maximum(left, right), left)
        pixels += right - left
        empty = left == right
        line = (row * page_width)[:, None]
        last = tl.max(tl.where(empty, 0, right), 0)
        for column in range(tl.min(tl.where(empty, page_width, left), 0), last, COLUMNS):
            place = column + tl.arange(0, COLUMNS)[None, :]
            inside = (place >= left[:, None]) & (place < right[:, None])
            value = tl.load(prob_map + (line + place), mask=inside, other=0.0)
            total += tl.sum(_steps(value), 0)
    # Never 0 pixels: those of the component that define the rectangle are in it.
    return tl.sum(total, 0).to(tl.float64) / (tl.sum(pixels, 0).to(tl.float64) * FIXED_POINT)


@triton.jit
def _interval(row, cx, cy, ux, uy, a, b, page_width):
    """First column and the one after the last of each row's pixels in a rectangle; see rectangles.pixel_intervals."""
    level = uy == 0  # then b bounds the rows only
    slant = tl.where(level, 1.0, uy)
    s, t = -uy / ux, tl.where(level, 0.0, ux / slant)
    x, up = cx - 0.5, 0.5 - cy
    a, b = a / ux, tl.where(level, float("inf"), b / tl.abs(slant))
    row = row.to(tl.float64)
    low = tl.maximum(x - a + s * up + s * row, x - b + t * up + t * row)
    high = tl.maximum(-x - a + -s * up + -s * row, -x - b + -t * up + -t * row)
    return _bounded(tl.ceil(low), page_width), _bounded(1 - tl.ceil(high), page_width)


@triton.jit
def _bounded(value, most):
    """Float64 whole numbers within 0..most, as int32."""
    return tl.minimum(tl.maximum(value, 0.0), most).to(tl.int32)


@triton.jit
def _steps(value):
    """Probabilities as int32 in steps of 2^-24: NaN is 0, clamped to 0..1, cut off."""
    if value.dtype != tl.float64:
        value = value.to(tl.float32)
    value = tl.where(value == value, value, 0.0)
    return (tl.minimum(tl.maximum(value, 0.0), 1.0) * FIXED_POINT).to(tl.int32)


@triton.jit
def _rank_kernel(
    count,
    too_many,
    corners,
    scores,
    quads_out,
    scores_out,
    counts_out,
    overflow_out,
    capacity,
    most,
    MINE: tl.constexpr,
    OTHERS: tl.constexpr,
):
    """The `most` best of a page's components to their places, MINE of them in each program."""
    page, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num = tl.load(count + page)
    mine = block * MINE + tl.arange(0, MINE)
    scores += page * capacity
    score = tl.load(scores + mine, mask=mine < num, other=-1.0)
    rank = tl.zeros([MINE], tl.int32)
    accepted = tl.zeros([OTHERS], tl.int32)
    for start in range(0, tl.where(block * MINE < num, num, 0), OTHERS):
        other = start + tl.arange(0, OTHERS)
        rival = tl.load(scores + other, mask=other < num, other=-1.0)
        accepted += (rival >= 0).to(tl.int32)
        equal = (rival[:, None] == score[None, :]) & (other[:, None] < mine[None, :])
        rank += tl.sum(((rival[:, None] > score[None, :]) | equal).to(tl.int32), 0)
    kept = (score >= 0) & (rank < most)
    place = page * most + rank
    tl.store(scores_out + place, score, mask=kept)
    part = tl.arange(0, 8)[None, :]
    quad = tl.load(corners + (page * capacity + mine)[:, None] * 8 + part, mask=kept[:, None], other=0.0)
    tl.store(quads_out + place[:, None] * 8 + part, quad, mask=kept[:, None])
    if block == 0:
        tl.store(counts_out + page, tl.minimum(tl.sum(accepted, 0), most).to(tl.int64))
        tl.store(overflow_out + page, (tl.load(too_many + page) != 0).to(tl.uint8))
