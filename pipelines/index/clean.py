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
from typing import NamedTuple

import cv2
import numpy as np

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


def clean(page: Page, width: int, height: int, max_points: int = DEFAULT.points) -> Cleaned:
    """A page with only finite polygons of 3 to max_points points inside it; regions keep their order and number.

    But for a region that lies nowhere, which is left out: the caller must refuse the page.

    Args:
        width, height: of the image, oriented pixels; coordinates may span 0..width and 0..height. 0 = not known.
        max_points: most points of a polygon, at least 16.
    """
    problems: dict[str, list[int]] = {"boxed": list(page.boxed)}
    limit = np.array([width, height], np.float32) if width else np.float32(np.inf)
    polygons, kept, ignore = [], [], list(page.ignore)
    sound = _all_sound(page.polygons, max_points)
    for k, stated in enumerate(page.polygons):
        outline, kind = (stated, "") if sound else _outline(stated, limit, max_points)
        if kind:
            problems.setdefault(kind, []).append(k)
            ignore[k] |= kind in ("masked", "too-many-points")
        if kind != "nowhere":
            polygons.append(outline)
            kept.append(k)
    inside, outside = _clip(polygons, limit)
    flat, crossing = flat_and_crossing(inside)
    for row in np.flatnonzero(flat | crossing | outside):
        k = kept[row]
        ignore[k] |= bool(flat[row] or crossing[row])
        odd = (("zero-area", flat[row]), ("self-intersection", crossing[row]), ("out-of-page", outside[row]))
        for kind, is_so in odd:
            if is_so and k not in problems.get("masked", ()):
                problems.setdefault(kind, []).append(k)
    texts = None if page.texts is None else [page.texts[k] for k in kept]
    made = Page(page.path, width, height, inside, [ignore[k] for k in kept], texts)
    return Cleaned(made, {kind: problems[kind] for kind in PROBLEMS if problems.get(kind)})


def _all_sound(polygons: Sequence[np.ndarray], most: int) -> bool:
    """Whether all are outlines of at most so many points: nearly always so, and asked at once it costs a tenth."""
    lengths = [len(polygon) for polygon in polygons]
    if not lengths or min(lengths) < 3 or max(lengths) > most:
        return False
    return bool(np.isfinite(np.concatenate(polygons)).all())


def _clip(polygons: list[np.ndarray], limit: np.ndarray | np.float32) -> tuple[list[np.ndarray], np.ndarray]:
    """Polygons inside the page, as views of one array, and (k,) bool: which of them were not."""
    if not polygons:
        return [], np.zeros(0, bool)
    stated = np.concatenate(polygons)
    inside = np.clip(stated, 0, limit)
    ends = np.cumsum([len(polygon) for polygon in polygons]).tolist()
    starts = [0, *ends[:-1]]
    outside = np.logical_or.reduceat((inside != stated).any(1), starts)
    return [inside[start:end] for start, end in zip(starts, ends, strict=True)], outside


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
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
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


def flat_and_crossing(polygons: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(k,) bool each: below MIN_AREA_PX; two edges properly cross. Polygons of as many points are taken together."""
    flat, crossing = np.zeros(len(polygons), bool), np.zeros(len(polygons), bool)
    lengths = np.array([len(polygon) for polygon in polygons], np.int64)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for part in np.array_split(rows, len(rows) * length**2 // MAX_PAIRS + 1):
            xy = np.stack([polygons[row] for row in part]).astype(np.float64) if len(part) else np.zeros((0, 3, 2))
            crossing[part] = _crosses_itself(xy)
            flat[part] = (_areas(xy) < MIN_AREA_PX) & ~crossing[part]  # the halves of a bow tie cancel
    return flat, crossing


def _areas(xy: np.ndarray) -> np.ndarray:
    """(k,) shoelace areas of (k, n, 2) polygons, square pixels. From the first corner on, so that no digit is lost."""
    xy = xy.astype(np.float64) - xy[:, :1]
    after = np.roll(xy, -1, axis=1)
    return np.abs((xy[..., 0] * after[..., 1] - xy[..., 1] * after[..., 0]).sum(1)) / 2


def _crosses_itself(xy: np.ndarray) -> np.ndarray:
    """(k,) bool: two edges properly cross, by the rule of `kernels.db_targets` (neighbours share a corner: side 0)."""
    edge = np.roll(xy, -1, axis=1) - xy
    reach = xy[:, None] - xy[:, :, None]  # (k, edge, vertex, 2)
    side = np.sign(edge[:, :, None, 0] * reach[..., 1] - edge[:, :, None, 1] * reach[..., 0])
    splits = side * np.roll(side, -1, axis=2) < 0
    return (splits & splits.transpose(0, 2, 1)).any((1, 2))
