"""Where a page goes on the canvas: 2x3 float64 matrices, and what they do to the text polygons.

Coordinates are pixels with centres at i + 0.5, so a page of width w spans 0..w. All matrices map source to canvas,
as column vectors: (x', y') = M[:, :2] @ (x, y) + M[:, 2]. The image and its polygons use the same matrix.

Placement of a training page: the page is fitted into the canvas, flipped, scaled and stretched, then rotated; what is
left is its translation. Along an axis where the result fits, it is centred and shifted by the drawn share, within the
canvas; where it does not fit (larger page, or corners turned out by the rotation), placements are tried until one cuts
no text instance, else the one that cuts fewest wins. Instances wholly outside the canvas are dropped; an instance cut
by the border stays whole if at least 70 % of its area (MIN_INSIDE) is on the canvas, else it is flagged ignore.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from pipelines.augment import Draw

MIN_INSIDE = 0.7  # below this share of its area on the canvas an instance is ignored: too little of the line is seen
ANTIALIAS = 1.5  # a stronger shrink goes through an antialiased resize first: one bilinear warp would skip pixels


def compose(*matrices: np.ndarray) -> np.ndarray:
    """(2, 3) matrix that applies the given ones from right to left: compose(a, b)(p) = a(b(p))."""
    result = matrices[-1]
    for m in reversed(matrices[:-1]):
        result = np.concatenate([m[:, :2] @ result[:, :2], m[:, :2] @ result[:, 2:] + m[:, 2:]], axis=1)
    return result


def invert(matrix: np.ndarray) -> np.ndarray:
    """(2, 3) inverse of a (2, 3) affine matrix. Raises numpy.linalg.LinAlgError when it is singular."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, 2) float64 images of (n, 2) points."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def scaling(sx: float, sy: float) -> np.ndarray:
    """(2, 3) matrix of a scaling about the origin."""
    return np.array([[sx, 0.0, 0.0], [0.0, sy, 0.0]])


def translation(dx: float, dy: float) -> np.ndarray:
    """(2, 3) matrix of a shift in pixels."""
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])


def orient(orientation: int, raw_wh: tuple[int, int]) -> np.ndarray:
    """(2, 3) matrix from pixels as stored (`raw_wh`) to upright ones, for EXIF orientation 1..8; 5 to 8 swap the sides.

    Decoding ignores the tag and this matrix is folded into the warp: it costs nothing, is the same for every codec and
    keeps clear of the decoders' own handling (nvImageCodec has had orientation faults, NVIDIA/DALI#6344).
    """
    w, h = raw_wh
    rows = {
        1: [[1, 0, 0], [0, 1, 0]],
        2: [[-1, 0, w], [0, 1, 0]],
        3: [[-1, 0, w], [0, -1, h]],
        4: [[1, 0, 0], [0, -1, h]],
        5: [[0, 1, 0], [1, 0, 0]],
        6: [[0, -1, h], [1, 0, 0]],
        7: [[0, -1, h], [-1, 0, w]],
        8: [[0, 1, 0], [-1, 0, w]],
    }
    return np.array(rows[int(orientation)], np.float64)


def letterbox(size_wh: tuple[int, int], canvas_hw: tuple[int, int]) -> np.ndarray:
    """(2, 3) matrix that fits a page into the canvas, centred, enlarging a small one.

    The fitted size is rounded to whole pixels and so is the margin, hence the two axes may differ in scale by less than
    one pixel over the page: a strong shrink is then one antialiased resize and a shift by whole pixels, no second blur.
    """
    (w, h), (canvas_h, canvas_w) = size_wh, canvas_hw
    scale = min(canvas_w / w, canvas_h / h)
    new_w, new_h = (min(max(1, round(side * scale)), limit) for side, limit in ((w, canvas_w), (h, canvas_h)))
    dx, dy = (canvas_w - new_w) // 2, (canvas_h - new_h) // 2
    return np.array([[new_w / w, 0.0, dx], [0.0, new_h / h, dy]])


class Labels(NamedTuple):
    """Polygons of one page in CSR form."""

    points: np.ndarray  # (V, 2) float32
    offsets: np.ndarray  # (P + 1,) int64
    ignore: np.ndarray  # (P,) bool

    def polygons(self) -> list[np.ndarray]:
        """(n, 2) views of the points, one a polygon."""
        return [self.points[a:b] for a, b in itertools.pairwise(self.offsets)]


def pack(polygons: list[np.ndarray], ignore: np.ndarray) -> Labels:
    """CSR form of a list of (n, 2) polygons and their (P,) ignore flags."""
    offsets = np.zeros(len(polygons) + 1, np.int64)
    np.cumsum([len(p) for p in polygons], out=offsets[1:])
    points = np.concatenate(polygons) if polygons else np.zeros((0, 2))
    return Labels(np.asarray(points, np.float32).reshape(-1, 2), offsets, np.asarray(ignore, bool).reshape(-1))


def place(draw: Draw, size_wh: tuple[int, int], canvas_hw: tuple[int, int], labels: Labels) -> np.ndarray:
    """The (2, 3) matrix from the upright page to the canvas that a draw asks for (see the module's text).

    With nothing drawn (no flip, rotation, scale or shift) it is exactly `letterbox`. Labels are in upright pixels.
    """
    base = letterbox(size_wh, canvas_hw)
    plain = not draw.hflip and draw.angle_deg == 0 and draw.scale == 1 and draw.aspect == 1 and not np.any(draw.shift)
    if plain:
        return base
    stretch = math.sqrt(draw.aspect)
    sx, sy = base[0, 0] * draw.scale * stretch, base[1, 1] * draw.scale / stretch
    turn = math.radians(draw.angle_deg)
    rotate = np.array([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0]])
    centre = translation(-size_wh[0] / 2, -size_wh[1] / 2)
    matrix = compose(rotate, scaling(-sx if draw.hflip else sx, sy), centre)  # page centre now at the origin
    corners = apply(matrix, np.array([[0, 0], [size_wh[0], 0], [0, size_wh[1]], list(size_wh)]))
    shifts = _candidates(draw, np.ptp(corners, axis=0), np.array([canvas_hw[1], canvas_hw[0]], np.float64))
    low, high = _boxes(apply(matrix, labels.points), labels.offsets)
    best = _least_cutting(shifts, low[~labels.ignore], high[~labels.ignore], canvas_hw)
    return compose(translation(*shifts[best]), matrix)


def _candidates(draw: Draw, extent: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """(tries, 2) positions of the page's centre on the canvas. The first is the drawn shift off the canvas' centre."""
    slack = (canvas - extent) / 2  # negative: the page is larger than the canvas along this axis
    first = canvas / 2 + np.clip(draw.shift * canvas, -np.abs(slack), np.abs(slack))
    tries = canvas / 2 + (2 * draw.crop - 1) * np.abs(slack)
    tries = np.where(slack < 0, tries, first)  # where the page fits there is nothing to search
    over = np.any(slack < 0) and np.any(extent > 1.5 * canvas)
    return tries if over else np.concatenate([first[None], tries])


def _boxes(points: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) least and (P, 2) greatest x, y of every polygon; an empty polygon gives an empty box at infinity."""
    count = len(offsets) - 1
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    owner = np.repeat(np.arange(count), np.diff(offsets))
    np.minimum.at(low, owner, points)
    np.maximum.at(high, owner, points)
    return low, high


def _least_cutting(shifts: np.ndarray, low: np.ndarray, high: np.ndarray, canvas_hw: tuple[int, int]) -> int:
    """First shift that cuts no box and shows one, else of those that show one the least cutting, then showing most.

    A polygon crosses the canvas border exactly when its bounding box does, but for corners; boxes suffice here.
    """
    limit = np.array([canvas_hw[1], canvas_hw[0]], np.float64)
    lo, hi = low[None] + shifts[:, None], high[None] + shifts[:, None]
    inside = np.all((lo >= 0) & (hi <= limit), axis=2)
    seen = np.all((hi > 0) & (lo < limit), axis=2)
    cut, shown = (seen & ~inside).sum(1), inside.sum(1)
    count = len(low) + 1
    penalty = np.where(shown == 0, count * count, cut * count - shown)
    penalty[(cut == 0) & (shown > 0)] = -count  # all equally good: argmin takes the first
    return int(np.argmin(penalty))


def transform(labels: Labels, matrix: np.ndarray, canvas_hw: tuple[int, int]) -> Labels:
    """Polygons moved by a (2, 3) matrix to canvas pixels; those wholly outside dropped, those mostly outside ignored.

    A mirroring matrix reverses the order of the vertices, so that a polygon keeps its sense of rotation. Points may lie
    beyond the border.
    """
    points, offsets = apply(matrix, labels.points), labels.offsets
    sizes = np.diff(offsets)
    if np.linalg.det(matrix[:, :2]) < 0 and len(points):
        points = points[np.repeat(offsets[:-1] + offsets[1:] - 1, sizes) - np.arange(len(points))]
    limit = np.array([canvas_hw[1], canvas_hw[0]], np.float64)
    low, high = _boxes(points, offsets)
    keep = np.all((high > 0) & (low < limit), axis=1)
    ignore = labels.ignore.copy()
    for row in np.flatnonzero(keep & np.any((low < 0) | (high > limit), axis=1)):
        share = inside_share(points[offsets[row] : offsets[row + 1]], canvas_hw)
        keep[row] = share > 0
        ignore[row] |= share < MIN_INSIDE
    left = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[keep])])
    return Labels(points[np.repeat(keep, sizes)].astype(np.float32), left, ignore[keep])


def area(polygon: np.ndarray) -> float:
    """Area in px^2 of an (n, 2) polygon, without sign (shoelace formula)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def inside_share(polygon: np.ndarray, canvas_hw: tuple[int, int]) -> float:
    """Share in 0..1 of an (n, 2) polygon's area that lies on the canvas; 1 for a polygon without area.

    Clipped by Sutherland and Hodgman ("Reentrant polygon clipping", CACM 1974); the bridges it leaves in a concave
    polygon have no area.
    """
    whole = area(polygon)
    if whole <= 0:
        return 1.0
    clipped = polygon
    for axis, bound, sign in ((0, 0.0, 1), (0, canvas_hw[1], -1), (1, 0.0, 1), (1, canvas_hw[0], -1)):
        clipped = _clip(clipped, axis, bound, sign)
        if len(clipped) < 3:
            return 0.0
    return min(1.0, area(clipped) / whole)


def _clip(polygon: np.ndarray, axis: int, bound: float, sign: int) -> np.ndarray:
    """The part of an (n, 2) polygon where sign * (coordinate - bound) >= 0."""
    depth = sign * (polygon[:, axis] - bound)
    result = []
    for i in range(len(polygon)):
        j = i - 1
        if (depth[i] >= 0) != (depth[j] >= 0):
            result.append(polygon[j] + (polygon[i] - polygon[j]) * (depth[j] / (depth[j] - depth[i])))
        if depth[i] >= 0:
            result.append(polygon[i])
    return np.array(result, np.float64).reshape(-1, 2)


class Warp(NamedTuple):
    """How a decoded image becomes the canvas: an antialiased resize (when shrinking much), then one bilinear warp."""

    resize: bool  # whether to resize at all
    size_hw: np.ndarray  # (2,) float32 size to resize to
    inverse: np.ndarray  # (2, 3) float32 canvas -> resized image, for warp_affine(inverse_map=True)


def plan_warp(matrix: np.ndarray, raw_wh: tuple[int, int]) -> Warp:
    """Splits a (2, 3) matrix from stored pixels to the canvas into a resize and a warp.

    When an axis shrinks by more than ANTIALIAS, the image is first resized so that the warp keeps the scale; the size
    is whole pixels, so the factor folded into the matrix is the exact ratio of sizes. Inverted in float64 and
    rounded to float32 last: at 7000 px that is 0.0004 px.
    """
    w, h = raw_wh
    scale = np.hypot(matrix[0, :2], matrix[1, :2])  # lengths of the images of one source pixel along x and y
    if scale.min() * ANTIALIAS >= 1:
        return Warp(False, np.array([h, w], np.float32), invert(matrix).astype(np.float32))
    new_w, new_h = (max(1, round(side * min(1.0, s))) for side, s in zip((w, h), scale))
    folded = compose(matrix, scaling(w / new_w, h / new_h))
    return Warp(True, np.array([new_h, new_w], np.float32), invert(folded).astype(np.float32))
