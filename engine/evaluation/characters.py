"""Characters of a box without character boxes: how many, and where their centres are.

CLEval (Baek et al. 2020, arXiv:2006.06244) cuts a word's box into as many equal parts as its text has letters; the
middle of each part is a pseudo character centre (PCC). A box without text gets a length from its aspect ratio. The
three kinds of box differ in these formulas only:

    quad     official, four vertices: sides by vertex order; centres on the line between the two ends' midpoints
    poly     official, any other page: first half of the vertices is the upper line, the rest the lower, each cut
             to integers between vertices
    contest  as poly, but lengths from the smallest rectangle around the hull
"""

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from engine.evaluation.geometry import Shapes

VERTICAL_ASPECT = 0.5  # an official quad narrower than this is read from top to bottom
MAX_CHARS = {"quad": 10, "poly": 10, "contest": 100}
EPSILON = float(np.finfo(np.float32).eps)


def pseudo_lengths(shapes: Shapes, kind: str, which: np.ndarray) -> np.ndarray:
    """Lengths that stand for missing texts of the polygons `which` (indices): round(0.5 + max(a, 1/a)), (K,) int64."""
    aspect = _aspects(shapes, kind, which)
    longer = np.maximum(aspect, 1 / (aspect + (EPSILON if kind == "contest" else 0.0)))
    return np.minimum(np.rint(0.5 + longer), MAX_CHARS[kind]).astype(np.int64)


def false_chars(shapes: Shapes, kind: str, which: np.ndarray) -> np.ndarray:
    """Characters that the unmatched detections `which` (indices) cost: round(0.5 + 1/a), (K,) int64, 1 or more."""
    aspect = _aspects(shapes, kind, which)
    cost = np.rint(0.5 + 1 / (aspect + (EPSILON if kind == "contest" else 1e-5)))
    return np.minimum(cost, MAX_CHARS[kind]).astype(np.int64)


def _aspects(shapes: Shapes, kind: str, which: np.ndarray) -> np.ndarray:
    """Aspect ratios (K,) float64; which side is the width depends on the kind."""
    if kind == "quad":
        return quad_aspects(shapes.points[which])
    if kind == "poly":
        # The reference adds 1e5 to the ratio where 1e-5 was meant: every length is 10, every false box costs 1.
        return np.full(len(which), 1e5)
    return np.array([hull_aspect(shapes.points[i, : shapes.counts[i]]) for i in which], np.float64)


def quad_aspects(points: np.ndarray) -> np.ndarray:
    """Mean of first and third side over mean of second and fourth, (P, 4, 2) -> (P,) float64."""
    step = np.abs(points - points[:, [1, 2, 3, 0]]).astype(np.float64)
    side = np.sqrt(step[..., 0] * step[..., 0] + step[..., 1] * step[..., 1])
    return ((side[:, 0] + side[:, 2]) / 2 + 1e-5) / ((side[:, 1] + side[:, 3]) / 2 + 1e-5)


def hull_aspect(points: np.ndarray) -> float:
    """Across over along, for the smallest rectangle that has a side on the convex hull; at most 100.

    "Along" is the direction of the first hull side, in Qhull's order, with the least area. For a rectangle all four
    tie: Qhull's first vertex decides between a ratio and its inverse, so Qhull itself is used, and for a turned one
    the last bit of the area decides, so the projections are rounded as the fork's are (`_fused`). One false box of
    19:1 costs 1 or 19 characters by it. (n, 2) pixels. No hull (points on a line) gives 0.
    """
    points = points.astype(np.float32)
    try:
        hull = points[ConvexHull(points).vertices].astype(np.float64)
    except QhullError:
        return 0.0
    x, y = hull.T
    side = np.roll(hull, -1, axis=0) - hull
    unit_x, unit_y = (side / np.sqrt((side * side).sum(1))[:, None]).T[:, :, None]
    along, across = _fused(unit_y, y, unit_x * x), _fused(unit_x, y, -unit_y * x)
    width, height = along.max(1) - along.min(1), across.max(1) - across.min(1)
    best = int(np.argmin(width * height))
    return min(100.0, float(height[best]) / (float(width[best]) + EPSILON))


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c rounded once, float64: what a BLAS dot product of two terms does on processors with FMA.

    Spelled out (Dekker's exact product, Knuth's exact sum), so that every machine scores alike; numpy has no fma.
    """
    high_a, high_b = ((v * 134217729.0) - (v * 134217729.0 - v) for v in (a, b))  # 2^27 + 1: the upper 26 bits
    low_a, low_b = a - high_a, b - high_b
    product = a * b
    lost = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    total = product + c
    part = total - product
    return total + (((product - (total - part)) + (c - part)) + lost)


def centres(shapes: Shapes, kind: str, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Character centres of all polygons, one polygon after the other.

    Args:
        shapes: P polygons.
        kind: quad, poly or contest.
        lengths: (P,) int64 characters of each.

    Returns:
        owner (C,) int64, the polygon of each centre, and xy (C, 2) pixels, C = lengths.sum(). Quads keep the dtype of
        the points: the reference does its sums in the dtype it is given, and a centre on a side is decided by it.
    """
    owner = np.repeat(np.arange(len(shapes)), lengths)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if kind == "quad":
        return owner, _quad_centres(shapes.points, lengths, owner, number)
    return owner, _chain_centres(shapes, lengths, owner, number)


def _quad_centres(points: np.ndarray, lengths: np.ndarray, owner: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Centres i + 1/2 of n on the line from the middle of the left end to the middle of the right end."""
    vertical = quad_aspects(points) < VERTICAL_ASPECT
    points = np.where(vertical[:, None, None], points[:, [3, 0, 1, 2]], points)
    start = (points[:, 0] + points[:, 3]) / 2
    end = (points[:, 1] + points[:, 2]) / 2
    step = (end - start) / np.maximum(lengths, 1).astype(points.dtype)[:, None]
    return (start + step / 2)[owner] + step[owner] * number.astype(points.dtype)[:, None]


def _chain_centres(shapes: Shapes, lengths: np.ndarray, owner: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Mean of the four corners of each part between the upper and the lower line of vertices.

    With S sections of `length` steps each, part c spans the nodes c S to (c + 1) S of either line.
    """
    sections = (shapes.counts // 2 - 1)[owner]
    corners = [_node(shapes, lengths, owner, (number + i) * sections, lower) for lower in (False, True) for i in (0, 1)]
    return (corners[0] + corners[1] + corners[2] + corners[3]) / 4


def _node(shapes: Shapes, lengths: np.ndarray, owner: np.ndarray, node: np.ndarray, lower: bool) -> np.ndarray:
    """Point number `node` of the upper or lower line: vertices as they are, points between them cut to integers."""
    points, counts, length = shapes.points.astype(np.float64), shapes.counts[owner], lengths[owner]
    section, step = node // length, node % length
    half = counts // 2
    is_last = node == (half - 1) * length
    last = half if lower else half - 1  # with an odd number of vertices the lower line has one more than is walked

    def vertex(position: np.ndarray) -> np.ndarray:
        return points[owner, counts - 1 - position if lower else position]

    start = vertex(np.minimum(section, half - 1))
    stop = vertex(np.minimum(section + 1, half - 1))
    between = np.trunc(start + (stop - start) / length[:, None] * step[:, None])
    xy = np.where((step == 0)[:, None], start, between)
    return np.where(is_last[:, None], points[owner, last], xy)
