"""From probability maps to text regions in source pixels.

    found = detect(maps, matrices, sizes_wh, config.post)    # one Detections a page: polygons and scores, best first

`begin` and `finish` are its two halves, for callers that have other work while a GPU is busy.

`post.shape` chooses the kind of region. Quadrilaterals come from `kernels.components`, on the device of the maps.
Polygons are traced on the host: OpenCV finds and simplifies contours, clipper moves them outwards. Both kinds see the
same pixels: centres at i + 0.5, growth by D' = A' r' / L', ranked by score.
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import pyclipper
import torch
from scipy import ndimage

from engine.config import PostConfig
from kernels.components import MAX_COMPONENTS, Quads, find_quads, label, to_host

CLIPPER_SCALE = 1000  # clipper works on integers: a thousandth of a pixel
# Of round joins; 8 px out this is 20 vertices a turn, 0.00025 px (clipper's default) would be 400.
ARC_TOLERANCE_PX = 0.1
MIN_AREA_PX2 = 1.0  # less than a source pixel left on the page is no region

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detections:
    """Text regions of one page, best first."""

    polygons: list[np.ndarray]  # (n, 2) float32 x, y in source pixels, within the page
    scores: np.ndarray  # (k,) float32 mean probability, descending


class _Region(NamedTuple):
    polygon: np.ndarray  # (n, 2) canvas pixels
    score: float


@dataclass(frozen=True)
class Maps:
    """What polygons are traced on, on the host."""

    prob: torch.Tensor  # (N, H, W) float32 probabilities, NaN as 0
    labels: torch.Tensor | None  # (N, H, W) int32 component numbers, with 4 neighbours only

    def __len__(self) -> int:
        return len(self.prob)


@dataclass(frozen=True)
class Pending:
    """Results of N maps on their way to the host."""

    found: Quads | Maps  # as post.shape says
    ready: torch.cuda.Event | None  # passes when all of it is there; None: it is there


def detect(
    prob_maps: torch.Tensor,
    matrices: np.ndarray,
    sizes_wh: np.ndarray,
    post: PostConfig,
    implementation: str = "auto",
) -> list[Detections]:
    """Text regions of N pages: `begin` and `finish` at once, see there for arguments, result and errors."""
    return finish(begin(prob_maps, post, implementation), matrices, sizes_wh, post)


def begin(prob_maps: torch.Tensor, post: PostConfig, implementation: str = "auto") -> Pending:
    """Starts finding text regions; on a GPU with the Triton kernels nothing here waits for it.

    Args:
        prob_maps: (N, H, W) float probabilities on any device.
        implementation: as `trainer.kernels`.

    Raises:
        ValueError: wrong shape.
    """
    if prob_maps.ndim != 3:
        raise ValueError(f"begin: prob_maps must be (N, H, W), not {tuple(prob_maps.shape)}")
    found: Quads | Maps
    if post.shape == "quad":
        found = to_host(_quads(prob_maps, post, implementation))
    else:
        maps, labels = prob_maps.float().nan_to_num(0.0).clamp(0.0, 1.0), None
        if post.connectivity == 4:  # OpenCV joins diagonal neighbours; with 4 every component is traced by itself
            labels = _to_host(label(maps > post.bin_thresh, 4, implementation=implementation))
        found = Maps(_to_host(maps), labels)
    ready = None
    if prob_maps.device.type == "cuda":
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(prob_maps.device))
    return Pending(found, ready)


def finish(pending: Pending, matrices: np.ndarray, sizes_wh: np.ndarray, post: PostConfig) -> list[Detections]:
    """Waits for what `begin` started (sync) and brings it to source pixels.

    Args:
        pending: of N pages.
        matrices: (N, 2, 3) source to canvas pixels.
        sizes_wh: (N, 2) width and height of the source pages.
        post: the settings given to `begin`.

    Returns:
        one Detections per page: corners clipped to the page; regions whose middle is off the page (in the letterbox's
        padding) or with less than one source pixel on it are dropped.

    Raises:
        ValueError: counts or shapes do not match.
    """
    matrices, sizes_wh = np.asarray(matrices, np.float64), np.asarray(sizes_wh)
    found = pending.found
    pages = len(found.counts) if isinstance(found, Quads) else len(found)
    if matrices.shape != (pages, 2, 3) or sizes_wh.shape != (pages, 2):
        raise ValueError(
            f"finish: {pages} maps need (N, 2, 3) matrices and (N, 2) sizes, not {matrices.shape} and {sizes_wh.shape}"
        )
    if pending.ready is not None:
        pending.ready.synchronize()
    regions = _read(found) if isinstance(found, Quads) else _polygons(found, post)
    return [_to_source(*page) for page in zip(regions, matrices, sizes_wh, strict=True)]


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in pinned memory that is under way; the tensor itself on a CPU."""
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def _quads(prob_maps: torch.Tensor, post: PostConfig, implementation: str) -> Quads:
    return find_quads(
        prob_maps,
        bin_thresh=post.bin_thresh,
        box_thresh=post.box_thresh,
        unclip_ratio=post.unclip_ratio,
        min_size_px=post.min_size_px,
        min_unclipped_px=post.min_unclipped_px,
        max_candidates=post.max_candidates,
        connectivity=post.connectivity,
        score_mode=post.score_mode,
        implementation=implementation,
    )


def _read(found: Quads) -> list[list[_Region]]:
    quads, scores, counts, overflow = (field.numpy() for field in found)
    if overflow.any():
        log.warning(
            "%d of %d probability maps have more than %d regions; the last of them were left out "
            "(an untrained network, or post.bin_thresh too low)",
            overflow.sum(),
            len(overflow),
            MAX_COMPONENTS,
        )
    return [
        [_Region(quad, score) for quad, score in zip(quads[page, :count], scores[page, :count], strict=True)]
        for page, count in enumerate(counts)
    ]


def _polygons(maps: Maps, post: PostConfig) -> list[list[_Region]]:
    numbered = [None] * len(maps) if maps.labels is None else maps.labels.numpy()
    result = []
    masks = (maps.prob > post.bin_thresh).numpy().view(np.uint8)
    for prob, mask, numbers in zip(maps.prob.numpy(), masks, numbered, strict=True):
        regions = []
        for outline in outlines(prob, mask, numbers, post):
            polygon = offset(outline, post.unclip_ratio) if outline.score >= post.box_thresh else None
            if polygon is not None and short_side(polygon) >= post.min_unclipped_px:
                regions.append(_Region(polygon, outline.score))
        regions.sort(key=lambda region: -region.score)  # stable: equal scores keep their order
        result.append(regions[: post.max_candidates])
    return result


class Outline(NamedTuple):
    """The traced outline of a region before it is moved out."""

    points: np.ndarray  # (n, 2) int32 canvas pixels, simplified
    short_side: float  # canvas pixels, grown
    growth: float  # pixels, 0 to 0.5
    area: float  # canvas pixels, grown
    perimeter: float
    score: float  # mean probability


def outlines(prob: np.ndarray, mask: np.ndarray, labels: np.ndarray | None, post: PostConfig) -> list[Outline]:
    """Outlines of one map that are at least min_size_px wide, in raster order of their regions' first pixels.

    Of the settings box_thresh, unclip_ratio, min_unclipped_px and max_candidates play no part.

    Args:
        prob: (H, W) float32 probabilities. mask: (H, W) uint8, 1 = text.
        labels: (H, W) int32 component numbers for 4 neighbours; None: 8.
    """
    contours = _outlines(mask) if labels is None else _outlines_by_label(labels)
    measured = [_measured(contour, prob, mask, post) for contour in contours]
    return [outline for outline in measured if outline is not None]


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """(n, 2) int32 outer contours in raster order of their first points, which are their regions' first pixels.

    Not RETR_EXTERNAL: that would lose text inside a frame too. Holes have a parent and are left out.
    """
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [c[:, 0] for c, links in zip(contours, hierarchy[0] if contours else (), strict=True) if links[3] < 0]
    return sorted(outer, key=lambda c: (c[0, 1], c[0, 0]))


def _outlines_by_label(labels: np.ndarray) -> list[np.ndarray]:
    """(n, 2) int32 outer contours of (H, W) component numbers, in their order."""
    result = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        crop = (labels[rows, columns] == number).view(np.uint8)
        result += [outline + (columns.start, rows.start) for outline in _outlines(crop)]
    return result


def _measured(contour: np.ndarray, prob: np.ndarray, mask: np.ndarray, post: PostConfig) -> Outline | None:
    """One contour simplified, measured and judged; None if it is too small."""
    side = short_side(contour)
    if side + 1 < post.min_size_px:
        return None  # below says why: it grows by at most one pixel
    steps = np.abs(np.diff(contour, axis=0, append=contour[:1])).max(axis=1).sum()
    pixels = cv2.contourArea(contour) + steps / 2 + 1  # Pick's theorem: those inside and on the contour
    perimeter = cv2.arcLength(contour, closed=True)
    points = cv2.approxPolyDP(contour, post.polygon_epsilon * perimeter, closed=True)[:, 0]
    area, perimeter = cv2.contourArea(points), cv2.arcLength(points, closed=True)
    # Through centres it is up to half a pixel short; it grows until its area is the pixel count, as quadrilaterals do.
    growth = (np.sqrt(perimeter**2 + 16 * max(pixels - area, 0.0)) - perimeter) / 8
    growth = min(max(growth, 0.0), 0.5)
    if side + 2 * growth < post.min_size_px:
        return None
    score = _score(contour if post.score_mode == "slow" else points, prob, mask, post.score_mode)
    area, perimeter = area + growth * perimeter + 4 * growth**2, perimeter + 8 * growth
    return Outline(points, side + 2 * growth, growth, area, perimeter, score)


def short_side(points: np.ndarray) -> float:
    """Short side in pixels of the smallest rectangle around (n, 2) points."""
    return min(cv2.minAreaRect(np.asarray(points, np.float32))[1])


def _score(outline: np.ndarray, prob: np.ndarray, mask: np.ndarray, mode: str) -> float:
    """Mean probability over the pixels in an outline; with "slow" over the text pixels among them only."""
    x, y, w, h = cv2.boundingRect(outline)
    inside = cv2.fillPoly(np.zeros((h, w), np.uint8), [outline - (x, y)], 1)
    window = (slice(y, y + h), slice(x, x + w))
    if mode == "slow":
        inside = inside * mask[window]
    return float((prob[window] * inside).sum(dtype=np.float64) / max(int(inside.sum()), 1))


def offset(found: Outline, unclip_ratio: float) -> np.ndarray | None:
    """The largest polygon (n, 2) of an outline moved out by D' = A' r' / L', joins round; None if nothing is left."""
    outline = found.points + 0.5
    distance = found.growth + (found.area * unclip_ratio / found.perimeter if found.perimeter else 0.0)
    if distance <= 0:
        return outline if len(outline) > 2 else None
    clipper = pyclipper.PyclipperOffset(arc_tolerance=ARC_TOLERANCE_PX * CLIPPER_SCALE)
    closed = len(outline) > 2 and cv2.contourArea(outline.astype(np.float32)) > 0
    end = pyclipper.ET_CLOSEDPOLYGON if closed else pyclipper.ET_OPENROUND
    clipper.AddPath(np.rint(outline * CLIPPER_SCALE).astype(np.int64).tolist(), pyclipper.JT_ROUND, end)
    paths = clipper.Execute(distance * CLIPPER_SCALE)
    if not paths:
        return None
    return np.array(max(paths, key=lambda path: abs(pyclipper.Area(path))), np.float64) / CLIPPER_SCALE


def _to_source(regions: list[_Region], matrix: np.ndarray, size_wh: np.ndarray) -> Detections:
    """Maps regions from the canvas to the page, clips their corners to it and drops those that are off it."""
    polygons, on_page = to_page([region.polygon for region in regions], matrix, size_wh)
    kept = np.flatnonzero(on_page)
    return Detections([polygons[i] for i in kept], np.array([regions[i].score for i in kept], np.float32))


def to_page(canvas: list[np.ndarray], matrix: np.ndarray, size_wh: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Polygons from canvas to source pixels, float32 and clipped to the page; (k,) bool which of them are on it.

    Args:
        canvas: k polygons (n, 2). matrix: (2, 3) source to canvas pixels. size_wh: (2,) of the source page.
    """
    if not canvas:
        return [], np.zeros(0, bool)
    start = np.cumsum([0] + [len(polygon) for polygon in canvas[:-1]])
    points = (np.concatenate(canvas).astype(np.float64) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    middle = (np.minimum.reduceat(points, start) + np.maximum.reduceat(points, start)) / 2
    polygons = np.split(np.clip(points, 0, size_wh).astype(np.float32), start[1:])
    on_page = np.all((middle >= 0) & (middle <= size_wh), axis=1)
    return polygons, on_page & np.array([cv2.contourArea(p) >= MIN_AREA_PX2 for p in polygons])
