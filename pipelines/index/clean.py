"""What of a page's labels can be learnt and scored: one rule for `check`, `build`, `stats`, training and evaluation.

    cleaned = clean(page, width, height)
    cleaned.page.polygons      # finite, of 3 to max_points points, inside the page
    cleaned.problems           # {"masked": [4]}: what was odd, and of which regions

What is stated and cannot be read never becomes background, where a detector would learn that its text is none:

    boxed               no outline but a box beside it: the box is the region
    masked              no outline; what is finite of it is spanned, and ignored
    nowhere             nothing finite in it: nobody knows where it lies, and the page must not be used
    zero-area           below one pixel: ignored; the targets of training mask it too
    self-intersection   two edges cross: ignored, as the targets do
    many-points         drawn with fewer points; `too-many-points` where that moves the outline: ignored
    out-of-page         clamped to the page
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from pipelines.annotations.packed import Polygons
from pipelines.annotations.page import Page
from pipelines.limits import DEFAULT

# Below one pixel a text has no pixel to be learnt from; the targets would mask it out, so it must not count as usable.
MIN_AREA_PX = 1.0
# A polygon with too many points is drawn with fewer, which moves its outline by this much at most.
MAX_SHIFT_PX = 0.5
# With more points that is not tried: the time goes with their square for a zigzag, 0.9 s for 20,000.
MAX_TRACED = 10_000
# A line or a point of an unreadable region is masked with this much around it: about half a line of text.
MASK_PX = 8.0
MAX_PAIRS = 1 << 19  # edge and vertex pairs compared at once: 30 MB
PROBLEMS = (
    "boxed", "masked", "nowhere", "zero-area", "self-intersection", "many-points", "too-many-points", "out-of-page",
)  # fmt: skip


class Cleaned(NamedTuple):
    """A page fit for the index."""

    page: Page  # with the image's own size
    problems: dict[str, list[int]]  # a kind of PROBLEMS -> regions of the page as it was given, from 0
    lengths: np.ndarray  # (k,) int64 points of each of its polygons
    points: np.ndarray  # (V, 2) float32, of all of them, end to end


def clean(page: Page, width: int, height: int, max_points: int = DEFAULT.points) -> Cleaned:
    """A page with only finite polygons of 3 to max_points points inside it; regions keep their order and number.

    But for a region that lies nowhere, which is left out: the caller must refuse the page.

    Args:
        width, height: of the image, oriented pixels; coordinates may span 0..width and 0..height. 0 = not known.
        max_points: most points of a polygon, at least 16.
    """
    problems: dict[str, list[int]] = {"boxed": list(page.boxed)}
    limit = np.array([width, height], np.float32) if width else np.float32(np.inf)
    ignore = list(page.ignore)
    kept: Sequence[int] = range(len(page.polygons))
    lengths, points = end_to_end(page.polygons)
    if not _all_sound(lengths, points, max_points):
        drawn = [_outline(stated, limit, max_points) for stated in page.polygons]
        for k, (_, kind) in enumerate(drawn):
            if kind:
                problems.setdefault(kind, []).append(k)
                ignore[k] |= kind in ("masked", "too-many-points")
        kept = [k for k, (_, kind) in enumerate(drawn) if kind != "nowhere"]
        lengths, points = end_to_end([drawn[k][0] for k in kept])
    inside = np.clip(points, 0, limit)
    outside = _any(inside != points, lengths)
    flat, crossing = _flat_and_crossing(inside, lengths)
    for row in np.flatnonzero(flat | crossing | outside).tolist():
        k = kept[row]
        ignore[k] |= bool(flat[row] or crossing[row])
        odd = (("zero-area", flat[row]), ("self-intersection", crossing[row]), ("out-of-page", outside[row]))
        for kind, is_so in odd:
            if is_so and k not in problems.get("masked", ()):
                problems.setdefault(kind, []).append(k)
    said = None if page.texts is None else list(page.texts)
    texts = None if said is None else [said[k] for k in kept]
    made = Page(page.path, width, height, _apart(inside, lengths), [ignore[k] for k in kept], texts)
    return Cleaned(made, {kind: problems[kind] for kind in PROBLEMS if problems.get(kind)}, lengths, inside)


def end_to_end(polygons: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(k,) int64 numbers of points, and the (V, 2) float32 points of all polygons."""
    if isinstance(polygons, Polygons):
        lengths, points = polygons.read()
        return lengths.astype(np.int64), points
    lengths = np.array([len(polygon) for polygon in polygons], np.int64)
    return lengths, np.concatenate([np.zeros((0, 2), np.float32), *polygons], dtype=np.float32)


def _apart(points: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Polygons as views of their points."""
    ends = np.cumsum(lengths).tolist()
    return [points[start:end] for start, end in pairwise([0, *ends])]


def _all_sound(lengths: np.ndarray, points: np.ndarray, most: int) -> bool:
    """Whether all are outlines of at most so many points: nearly always so, and asked at once it costs a tenth."""
    return bool(len(lengths) and lengths.min() >= 3 and lengths.max() <= most and np.isfinite(points).all())


def _any(holds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(k,) bool: whether (V, 2) `holds` anywhere in a polygon; each has a point."""
    starts = np.cumsum(lengths) - lengths
    return np.logical_or.reduceat(holds.any(1), starts) if len(lengths) else np.zeros(0, bool)


def _outline(stated: np.ndarray, limit: np.ndarray | np.float32, most: int) -> tuple[np.ndarray, str]:
    """What is drawn for a stated region, and the problem with it; "" for none."""
    finite = np.isfinite(stated).all(1)
    if len(stated) >= 3 and finite.all():
        if len(stated) <= most:
            return stated, ""
        # what lies outside must not cost points
        fewer, exact = reduce_points(np.clip(stated, 0, limit), most)
        return fewer, "many-points" if exact else "too-many-points"
    known = stated[finite]
    if not len(known):
        return stated, "nowhere"
    return _around(known), "masked"


def _around(points: np.ndarray) -> np.ndarray:
    """The hull of some points; a box with MASK_PX around them where the hull is flat."""
    found = cv2.convexHull(points.astype(np.float32))  # None of points too far away to be on any page
    hull = np.zeros((0, 2), np.float32) if found is None else found[:, 0]
    if len(hull) >= 3 and _areas(hull[None])[0] >= MIN_AREA_PX:
        return hull
    (left, top), (right, bottom) = points.min(0) - MASK_PX, points.max(0) + MASK_PX
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def reduce_points(polygon: np.ndarray, most: int) -> tuple[np.ndarray, bool]:
    """A polygon of at most `most` points, and whether its outline is within MAX_SHIFT_PX of the given one.

    Where that takes more points it is the convex hull, simplified until it fits: a place to be masked out. Method:
    Ramer-Douglas-Peucker (cv2.approxPolyDP).

    Args:
        polygon: (n, 2) float32 pixels, finite.
        most: points, at least 16.
    """
    if len(polygon) <= most:
        return polygon, True
    if len(polygon) <= MAX_TRACED:
        fewer = cv2.approxPolyDP(polygon, MAX_SHIFT_PX, closed=True)[:, 0]
        if 3 <= len(fewer) <= most:
            return fewer, True
    hull, shift = cv2.convexHull(polygon)[:, 0], MAX_SHIFT_PX
    while len(hull) > most:
        hull, shift = cv2.approxPolyDP(hull, shift, closed=True)[:, 0], 2 * shift
    return np.resize(hull, (max(3, len(hull)), 2)), False  # the hull of a line has two


def flat_and_crossing(polygons: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(k,) bool each: below MIN_AREA_PX; two edges properly cross."""
    lengths, points = end_to_end(polygons)
    return _flat_and_crossing(points, lengths)


def _flat_and_crossing(points: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of polygons end to end; those of as many points are taken together."""
    flat, crossing = np.zeros(len(lengths), bool), np.zeros(len(lengths), bool)
    starts = np.cumsum(lengths) - lengths
    for length in sorted(set(lengths.tolist())):
        rows = np.flatnonzero(lengths == length)
        parts = len(rows) * length**2 // MAX_PAIRS + 1
        for part in np.array_split(rows, parts) if parts > 1 else [rows]:
            xy = points[starts[part, None] + np.arange(length)].astype(np.float64)
            crossing[part] = _crosses_itself(xy)
            flat[part] = (_areas(xy) < MIN_AREA_PX) & ~crossing[part]  # the halves of a bow tie cancel
    return flat, crossing


def _next(xy: np.ndarray) -> list[int]:
    """Which corner of (k, n, 2) polygons follows each; np.roll takes three times as long."""
    return [*range(1, xy.shape[1]), 0]


def _areas(xy: np.ndarray) -> np.ndarray:
    """(k,) shoelace areas of (k, n, 2) polygons, square pixels. From the first corner on, so that no digit is lost."""
    xy = xy.astype(np.float64) - xy[:, :1]
    after = xy[:, _next(xy)]
    return np.abs((xy[..., 0] * after[..., 1] - xy[..., 1] * after[..., 0]).sum(1)) / 2


def _crosses_itself(xy: np.ndarray) -> np.ndarray:
    """(k,) bool: two edges properly cross, by the rule of `kernels.db_targets` (neighbours share a corner: side 0)."""
    after = _next(xy)
    edge = xy[:, after] - xy
    reach = xy[:, None] - xy[:, :, None]  # (k, edge, vertex, 2)
    side = np.sign(edge[:, :, None, 0] * reach[..., 1] - edge[:, :, None, 1] * reach[..., 0])
    splits = side * side[:, :, after] < 0
    return (splits & splits.transpose(0, 2, 1)).any((1, 2))
