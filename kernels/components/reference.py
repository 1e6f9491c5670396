"""Text regions of probability maps in plain PyTorch: the definition of correct and the CPU path.

    text_mask = prob_map > bin_thresh (NaN is no text) -> runs -> components (runs.py) -> row extremes -> hull ->
    smallest rectangle (rectangles.py), grown by up to half a pixel -> short side >= min_size_px -> mean probability
    >= box_thresh -> unclip: every side out by D' = A' r' / L' -> short side >= min_unclipped_px -> best
    max_candidates scores

Coordinates are canvas pixels with centres at i + 0.5. A component's rectangle runs through the centres of its outermost
pixels, as OpenCV's contours do, and then grows until its area is the component's pixel count, at most half a pixel (see
`half_pixel`): a w x h block of pixels is a w x h rectangle. Regions inside the hole of another are candidates, holes
are not.

Sums of probabilities are integers (2^-24 steps), so scores do not depend on the order of addition, the batch or the
device. Most maps have text on a tenth of their pixels: after the mask only text pixels, later only runs are touched.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.components.rectangles import (
    Rectangles,
    Spans,
    convex_hulls,
    half_pixel,
    pixel_intervals,
    smallest_rectangles,
    unclip_distance,
)
from kernels.components.runs import find_runs, link_runs, number, unite, unroll

MAX_COMPONENTS = 4096  # per page; a dense receipt has 300 lines, an untrained network's noise 50,000 specks
FIXED_POINT = 1 << 24  # a float32 probability has 24 significant bits
ON_EDGE_PX = 1e-3  # a pixel centre this close outside a rectangle counts as inside: those that define it lie on it


class Quads(NamedTuple):
    """Quadrilaterals of N pages, best score first, padded with zeros to K = max_candidates."""

    quads: Tensor  # (N, K, 4, 2) float32 x, y in canvas pixels: top left, top right, bottom right, bottom left
    scores: Tensor  # (N, K) float32 mean probability
    counts: Tensor  # (N,) int64 how many of the K are there
    overflow: Tensor  # (N,) bool: more than MAX_COMPONENTS regions were large enough, the last were left out


class QuadRules(NamedTuple):
    """Settings of `find_quads`."""

    bin_thresh: float
    box_thresh: float
    unclip_ratio: float
    min_size_px: float
    min_unclipped_px: float
    max_candidates: int
    connectivity: int
    score_mode: str


class _Table(NamedTuple):
    """C components in raster order of their first pixels, and the runs that belong to them; all int64."""

    page: Tensor  # (C,)
    area: Tensor  # (C,) pixels
    spans: Spans  # rows counted through the pages, height + 1 rows a page


def label_reference(mask: Tensor, connectivity: int) -> Tensor:
    """(N, H, W) int32 component numbers from 1 per page, 0 = background; see `op.label`."""
    pages, height, width = mask.shape
    runs = find_runs(mask.float(), 0.5)
    roots, owner = number(unite(len(runs.row), *link_runs(runs, width + 1, connectivity)))
    page = runs.row.index_select(0, roots) // (height + 1)
    value = (_rank_in_page(page, pages) + 1).to(torch.int32).index_select(0, owner)
    first = runs.start - runs.row - runs.row // (height + 1) * width  # without the empty places
    length = runs.stop - runs.start
    labels = torch.zeros(mask.numel(), dtype=torch.int32, device=mask.device)
    return labels.index_copy_(0, unroll(first, length), value.repeat_interleave(length)).view(mask.shape)


class Boxes(NamedTuple):
    """Rectangles of C components before they grow, pages ascending, raster order within a page."""

    box: Rectangles  # canvas pixels, at least min_size_px on the short side
    score: Tensor  # (C,) float64 mean probability
    page: Tensor  # (C,) int64
    overflow: Tensor  # as Quads.overflow


def find_boxes(prob_map: Tensor, bin_thresh: float, min_size_px: float, connectivity: int, score_mode: str) -> Boxes:
    """Rectangles and scores of (N, H, W) float probability maps: all of `find_quads` that box_thresh, unclip_ratio,
    min_unclipped_px and max_candidates play no part in. Arguments as there and in `find_quads_reference`."""
    _, height, width = prob_map.shape
    table, overflow = _components(prob_map, bin_thresh, min_size_px, connectivity)
    box = smallest_rectangles(convex_hulls(table.spans, width))
    box = box.grow(half_pixel(box, table.area))
    large = (box.short_side() >= min_size_px).nonzero()[:, 0]
    box, page = box.select(large), table.page.index_select(0, large)
    origin = torch.stack([torch.zeros_like(page), page * (height + 1)], 1)
    box = box._replace(centre=box.centre - origin + 0.5)
    score = _slow_scores(prob_map, table)[large] if score_mode == "slow" else _fast_scores(prob_map, box, page)
    return Boxes(box, score, page, overflow)


def find_quads_reference(prob_map: Tensor, rules: QuadRules) -> Quads:
    """`op.find_quads` of contiguous (N, H, W) float32 or float64 maps by checked settings; geometry in float64."""
    found = find_boxes(prob_map, rules.bin_thresh, rules.min_size_px, rules.connectivity, rules.score_mode)
    wide = found.box.grow(unclip_distance(found.box, rules.unclip_ratio))
    good = (found.score >= rules.box_thresh) & (wide.short_side() >= rules.min_unclipped_px)
    kept = good.nonzero()[:, 0]
    corners, score = wide.select(kept).corners(), found.score.index_select(0, kept)
    return _ranked(corners, score, found.page.index_select(0, kept), found.overflow, rules.max_candidates)


def _components(prob_map: Tensor, bin_thresh: float, min_size_px: float, connectivity: int) -> tuple[_Table, Tensor]:
    """Components that may be large enough, at most MAX_COMPONENTS a page, and the (N,) overflow flags.

    With w, h the extents of a component's pixel centres, its smallest rectangle has at most the area w h, so its short
    side is at most sqrt(w h), and one pixel more after growing: below min_size_px it can go before its hull is known.
    """
    pages, height, width = prob_map.shape
    runs = find_runs(prob_map, bin_thresh)
    roots, owner = number(unite(len(runs.row), *link_runs(runs, width + 1, connectivity)))
    line = runs.row * (width + 1)
    left, right = runs.start - line, runs.stop - line - 1
    extremes = torch.zeros((3, len(roots)), dtype=torch.int64, device=owner.device)
    values = torch.stack([left, -right, -runs.row])
    extremes.scatter_reduce_(1, owner.expand(3, -1), values, "amin", include_self=False)
    first, last, bottom = extremes[0], -extremes[1], -extremes[2]
    top = runs.row.index_select(0, roots)
    page = top // (height + 1)
    fits = (bottom - top) * (last - first) >= max(min_size_px - 1, 0) ** 2
    rank = _rank_in_page(page[fits], pages)
    overflow = torch.bincount(page[fits], minlength=pages) > MAX_COMPONENTS
    kept = fits.nonzero()[:, 0][rank < MAX_COMPONENTS]
    area = torch.zeros_like(top).scatter_add_(0, owner, right - left + 1)
    spans = Spans(top, bottom - top + 1, owner, runs.row, left, right)
    if len(kept) < len(roots):
        page, area, spans = page.index_select(0, kept), area.index_select(0, kept), _select(spans, kept)
    return _Table(page, area, spans), overflow


def _select(spans: Spans, kept: Tensor) -> Spans:
    """The given components, renumbered, and their runs."""
    new = torch.full_like(spans.top, -1).scatter_(0, kept, torch.arange(len(kept), device=kept.device))
    owner = new.index_select(0, spans.owner)
    runs = (owner >= 0).nonzero()[:, 0]
    top, height = (part.index_select(0, kept) for part in (spans.top, spans.height))
    row, left, right = (part.index_select(0, runs) for part in (spans.row, spans.left, spans.right))
    return Spans(top, height, owner.index_select(0, runs), row, left, right)


def _rank_in_page(page: Tensor, pages: int) -> Tensor:
    """(C,) position of each component among those of its page; `page` ascends."""
    size = torch.bincount(page, minlength=pages)
    return torch.arange(len(page), device=page.device) - (size.cumsum(0) - size).index_select(0, page)


def _slow_scores(prob_map: Tensor, table: _Table) -> Tensor:
    """(C,) float64 mean probability over the pixels of each component."""
    spans, width = table.spans, prob_map.shape[2]
    row = spans.row - table.page.index_select(0, spans.owner)  # without the empty rows between pages
    sums = interval_sums(prob_map, row * width + spans.left, spans.right - spans.left + 1)
    total = torch.zeros_like(table.area).scatter_add_(0, spans.owner, sums)
    return total / (table.area.double() * FIXED_POINT)


def _fast_scores(prob_map: Tensor, box: Rectangles, page: Tensor) -> Tensor:
    """(C,) float64 mean probability over the pixels whose centres lie in each rectangle."""
    _, height, width = prob_map.shape
    owner, row, column, count = pixel_intervals(box, height, width, ON_EDGE_PX)
    first = (page * (height * width)).index_select(0, owner) + row * width + column
    sums = torch.stack([interval_sums(prob_map, first, count), count])
    totals = sums.new_zeros((2, len(page))).scatter_add_(1, owner.expand(2, -1), sums)
    return totals[0] / (totals[1].clamp(min=1).double() * FIXED_POINT)


def interval_sums(prob_map: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """(I,) int64 sums of probabilities, in steps of 2^-24, over `count` pixels from flat index `first`.

    Values are clamped to 0..1 and NaN counts as 0. Sums are differences of a running total: of the listed pixels, or of
    the whole map where the lists are longer than half of it (large or overlapping regions), so the work is bounded.
    """
    flat = prob_map.view(-1)
    stop = count.cumsum(0)
    if len(stop) and 2 * int(stop[-1]) > len(flat):
        start, stop = first, first + count
    else:
        start, stop = stop - count, stop
        flat = flat.index_select(0, unroll(first, count))
    steps = (flat.nan_to_num(0.0).clamp_(0.0, 1.0) * FIXED_POINT).int()
    running = steps.new_zeros(len(steps) + 1, dtype=torch.int64)
    torch.cumsum(steps, 0, out=running[1:])
    return running.index_select(0, stop) - running.index_select(0, start)


def _ranked(corners: Tensor, score: Tensor, page: Tensor, overflow: Tensor, capacity: int) -> Quads:
    """Sorts by page, then by falling score, equal scores in raster order; keeps `capacity` per page."""
    pages = len(overflow)
    score = score.float()
    order = torch.argsort(2 * page - score.double(), stable=True)  # scores are at most 1
    page = page.index_select(0, order)
    rank = _rank_in_page(page, pages)
    within = (rank < capacity).nonzero()[:, 0]
    order, page = order.index_select(0, within), page.index_select(0, within)
    slot = page * capacity + rank.index_select(0, within)
    quads = corners.new_zeros((pages * capacity, 4, 2), dtype=torch.float32)
    scores = score.new_zeros(pages * capacity)
    quads.index_copy_(0, slot, corners.index_select(0, order).float())
    scores.index_copy_(0, slot, score.index_select(0, order))
    counts = torch.bincount(page, minlength=pages)
    return Quads(quads.view(pages, capacity, 4, 2), scores.view(pages, capacity), counts, overflow)
