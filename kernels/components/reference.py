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
    Extremes,
    Rectangles,
    convex_hulls,
    half_pixel,
    pixel_intervals,
    smallest_rectangles,
    unclip_distance,
)
from kernels.components.runs import Runs, expand, find_runs, link_runs, number, padded_mask, unite

MAX_COMPONENTS = 4096  # per page; a dense receipt has 300 lines, an untrained network's noise 50,000 specks
FIXED_POINT = 1 << 24  # a float32 probability has 24 significant bits
ON_EDGE_PX = 1e-3  # a pixel centre this close outside a rectangle counts as inside: those that define it lie on it


class Quads(NamedTuple):
    """Quadrilaterals of N pages, best score first, padded with zeros to K = max_candidates."""

    quads: Tensor  # (N, K, 4, 2) float32 x, y in canvas pixels: top left, top right, bottom right, bottom left
    scores: Tensor  # (N, K) float32 mean probability
    counts: Tensor  # (N,) int64 how many of the K are there
    overflow: (
        Tensor  # (N,) bool: the page had more than MAX_COMPONENTS regions of sufficient size, the last were left out
    )


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
    """C components in raster order of their first pixels, all int64, and the runs that belong to them."""

    page: Tensor  # (C,)
    top: Tensor  # (C,) first row, counted through the pages
    height: Tensor  # (C,)
    area: Tensor  # (C,) pixels
    runs: Runs
    owner: Tensor  # (R,) component of each run


def label_reference(mask: Tensor, connectivity: int) -> Tensor:
    """(N, H, W) int32 component numbers from 1 per page, 0 = background; see `op.label`."""
    pages, height, width = mask.shape
    padded = padded_mask((pages, height, width), mask.device)
    padded.inner.copy_(mask)
    runs = find_runs(padded)
    roots, owner = number(unite(len(runs.row), *link_runs(runs, height, width, connectivity)))
    page = runs.row.index_select(0, roots).div(height, rounding_mode="floor")
    rank = _rank_in_page(page, pages)
    labels = torch.zeros((pages, height, width), dtype=torch.int32, device=mask.device)
    value = (rank + 1).to(torch.int32).index_select(0, owner)
    labels[padded.inner] = value.repeat_interleave(runs.stop - runs.start)
    return labels


def find_quads_reference(prob_map: Tensor, rules: QuadRules, upcast: bool = True) -> Quads:
    """Text quadrilaterals of (N, H, W) float probability maps; see `op.find_quads`.

    Args:
        prob_map: contiguous, float32 or float64.
        rules: checked settings.
        upcast: geometry in float64 instead of float32.
    """
    pages, height, width = prob_map.shape
    padded = padded_mask((pages, height, width), prob_map.device)
    torch.gt(prob_map, rules.bin_thresh, out=padded.inner)
    table, overflow = _components(find_runs(padded), (pages, height, width), rules)
    hulls = convex_hulls(_row_extremes(table), len(table.page))
    box = smallest_rectangles(hulls, torch.float64 if upcast else torch.float32)
    box = box.grow(half_pixel(box, table.area))
    origin = torch.stack([torch.zeros_like(table.page), table.page * height], 1)  # rows count through the pages
    box = box._replace(centre=box.centre - origin + 0.5)
    large = (box.short_side() >= rules.min_size_px).nonzero()[:, 0]
    box, page = box.select(large), table.page.index_select(0, large)
    score = _slow_scores(prob_map, table)[large] if rules.score_mode == "slow" else _fast_scores(prob_map, box, page)
    wide = box.grow(unclip_distance(box, rules.unclip_ratio))
    kept = ((score >= rules.box_thresh) & (wide.short_side() >= rules.min_unclipped_px)).nonzero()[:, 0]
    return _ranked(wide.select(kept).corners(), score[kept], page.index_select(0, kept), overflow, rules.max_candidates)


def _components(runs: Runs, shape: tuple[int, int, int], rules: QuadRules) -> tuple[_Table, Tensor]:
    """Components that may be large enough, at most MAX_COMPONENTS a page, and the (N,) overflow flags.

    With w, h the extents of a component's pixel centres, its smallest rectangle has at most the area w h, so its
    short side is at most sqrt(w h), and one pixel more after growing: below min_size_px it can go before its hull is
    known.
    """
    pages, height, width = shape
    roots, owner = number(unite(len(runs.row), *link_runs(runs, height, width, rules.connectivity)))
    top = runs.row.index_select(0, roots)
    bottom, right = (_reduce(owner, v, len(roots), "amax") for v in (runs.row, runs.stop - 1))
    left = _reduce(owner, runs.start, len(roots), "amin")
    fits = (bottom - top) * (right - left) >= max(rules.min_size_px - 1, 0) ** 2
    page = top.div(height, rounding_mode="floor")
    large = fits.nonzero()[:, 0]
    rank = _rank_in_page(page.index_select(0, large), pages)
    overflow = torch.zeros(pages, dtype=torch.bool, device=top.device)
    overflow[page.index_select(0, large[rank >= MAX_COMPONENTS])] = True
    kept = large[rank < MAX_COMPONENTS]
    new = torch.full((len(roots),), -1, device=top.device)
    new[kept] = torch.arange(len(kept), device=top.device)
    owner = new.index_select(0, owner)
    of_kept = (owner >= 0).nonzero()[:, 0]
    runs, owner = Runs(*(part.index_select(0, of_kept) for part in runs)), owner.index_select(0, of_kept)
    area = torch.zeros(len(kept), dtype=torch.int64, device=top.device).scatter_add_(0, owner, runs.stop - runs.start)
    page, top, bottom = (part.index_select(0, kept) for part in (page, top, bottom))
    return _Table(page, top, bottom - top + 1, area, runs, owner), overflow


def _reduce(owner: Tensor, value: Tensor, num: int, how: str) -> Tensor:
    return value.new_zeros(num).scatter_reduce_(0, owner, value, how, include_self=False)


def _rank_in_page(page: Tensor, pages: int) -> Tensor:
    """(C,) position of each component among those of its page; `page` ascends."""
    size = torch.bincount(page, minlength=pages)
    return torch.arange(len(page), device=page.device) - (size.cumsum(0) - size).index_select(0, page)


def _row_extremes(table: _Table) -> Extremes:
    """A connected component has pixels in every row from its top to its bottom."""
    offset = table.height.cumsum(0) - table.height
    owner, y = expand(table.top, table.height)
    slot = (offset - table.top).index_select(0, table.owner) + table.runs.row
    left = _reduce(slot, table.runs.start, len(owner), "amin")
    right = _reduce(slot, table.runs.stop - 1, len(owner), "amax")
    return Extremes(owner, y, left, right)


def _slow_scores(prob_map: Tensor, table: _Table) -> Tensor:
    """(C,) float64 mean probability over the pixels of each component."""
    runs = table.runs
    sums = interval_sums(prob_map, runs.row * prob_map.shape[2] + runs.start, runs.stop - runs.start)
    total = torch.zeros_like(table.area).scatter_add_(0, table.owner, sums)
    return total.double() / (table.area * FIXED_POINT)


def _fast_scores(prob_map: Tensor, box: Rectangles, page: Tensor) -> Tensor:
    """(C,) float64 mean probability over the pixels whose centres lie in each rectangle."""
    _, height, width = prob_map.shape
    owner, row, column, count = pixel_intervals(box, height, width, ON_EDGE_PX)
    sums = interval_sums(prob_map, (page.index_select(0, owner) * height + row) * width + column, count)
    total, area = (torch.zeros_like(page).scatter_add_(0, owner, part) for part in (sums, count))
    return total.double() / (area.clamp(min=1) * FIXED_POINT)


def interval_sums(prob_map: Tensor, first: Tensor, count: Tensor) -> Tensor:
    """(I,) int64 sums of probabilities, in steps of 2^-24, over `count` pixels from flat index `first`.

    Values are clamped to 0..1 and NaN counts as 0. Sums are differences of a running total: of the listed pixels, or
    of the whole map where the lists are longer than half of it (large or overlapping regions), so the work is
    bounded.
    """
    flat = prob_map.reshape(-1)
    if 2 * int(count.sum()) > flat.numel():
        running = torch.nn.functional.pad(_fixed_point(flat).cumsum(0), (1, 0))
        return running.index_select(0, first + count) - running.index_select(0, first)
    _, pixel = expand(first, count)
    running = torch.nn.functional.pad(_fixed_point(flat.index_select(0, pixel)).cumsum(0), (1, 0))
    stop = count.cumsum(0)
    return running.index_select(0, stop) - running.index_select(0, stop - count)


def _fixed_point(prob: Tensor) -> Tensor:
    return (prob.nan_to_num(0.0).clamp(0.0, 1.0) * FIXED_POINT).long()


def _ranked(corners: Tensor, score: Tensor, page: Tensor, overflow: Tensor, capacity: int) -> Quads:
    """Sorts by page, then by falling score, equal scores in raster order; keeps `capacity` per page."""
    pages = len(overflow)
    order = torch.argsort(score.float(), descending=True, stable=True)
    order = order.index_select(0, torch.argsort(page.index_select(0, order), stable=True))
    page = page.index_select(0, order)
    rank = _rank_in_page(page, pages)
    order, page, rank = (part[rank < capacity] for part in (order, page, rank))
    quads = torch.zeros((pages, capacity, 4, 2), dtype=torch.float32, device=score.device)
    scores = torch.zeros((pages, capacity), dtype=torch.float32, device=score.device)
    quads[page, rank] = corners.index_select(0, order).float()
    scores[page, rank] = score.index_select(0, order).float()
    return Quads(quads, scores, torch.bincount(page, minlength=pages), overflow)
