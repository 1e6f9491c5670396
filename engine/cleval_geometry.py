"""Areas, overlaps and point tests of one page's polygons, vectorised over pairs.

The reference computes these one pair at a time with Polygon3 (the Generic Polygon Clipper) on vertices cut to integers.
The clipper fills by the even-odd rule, while its area of an unclipped contour is |shoelace|: a bow-tie's two lobes count
against each other in its own area and add up in an overlap. Both are kept here, because the counts depend on them.
"""

import numpy as np
import shapely


class Shapes:
    """The polygons of one page, padded to a common number of vertices.

    Args:
        points: (T, 2) float32 or float64, pixels, all vertices one polygon after the other.
        counts: (P,) int64 vertices of each polygon, all at least 3.
        exact: True keeps the coordinates and repairs with buffer(0) (official polygons); False cuts vertices to
            integers toward zero and fills by the even-odd rule (official quads, contest).

    Attributes:
        points: (P, V, 2), the dtype given; the last vertex repeated up to V, which changes no area and no crossing.
        counts: (P,) int64.
        shape: (P, V, 2) float64, the vertices that areas are computed from.
        low, high: (P, 2) float64 bounding boxes of `shape`.
        cut: (P,) bool, polygons that `without` changed.
    """

    def __init__(self, points: np.ndarray, counts: np.ndarray, exact: bool) -> None:
        size, width = len(counts), int(counts.max(initial=4))
        if (counts == width).all():
            self.points = points.reshape(size, width, 2)
        else:
            column = np.minimum(np.arange(width), counts[:, None] - 1)
            self.points = points[column + (np.cumsum(counts) - counts)[:, None]]
        self.counts, self.exact = counts, exact
        self.shape = self.points.astype(np.float64) if exact else np.trunc(self.points).astype(np.float64)
        self.low, self.high = self.shape.min(1), self.shape.max(1)
        self.cut = np.zeros(size, bool)
        self._geometry = np.full(size, None)

    def __len__(self) -> int:
        return len(self.counts)

    def geometry(self, which: np.ndarray) -> np.ndarray:
        """Valid shapely geometries of the polygons `which` (any index array), each built once."""
        wanted = np.zeros(len(self), bool)
        wanted[which] = True
        missing = np.flatnonzero(wanted & shapely.is_missing(self._geometry))
        rings = shapely.polygons(self.shape[missing])
        if not self.exact:
            rings = shapely.make_valid(rings)  # even-odd; folded-back sides become loose lines
        loose = self.exact | ~np.isin(shapely.get_type_id(rings), (3, 6))
        rings[loose] = shapely.buffer(rings[loose], 0)
        self._geometry[missing] = rings
        return self._geometry[which]

    def signed_areas(self) -> np.ndarray:
        """(P,) float64 shoelace sums in square pixels, positive when the vertices turn from +x to +y."""
        local = self.shape - self.shape[:, :1]  # integers stay exact, and no digits are lost far from the origin
        following = local[:, np.arange(1, local.shape[1] + 1) % local.shape[1]]
        return 0.5 * (local[..., 0] * following[..., 1] - local[..., 1] * following[..., 0]).sum(1)

    def areas(self) -> np.ndarray:
        """(P,) float64 areas as the reference takes them: |shoelace|, or shapely's for `exact`."""
        return shapely.area(self.geometry(np.arange(len(self)))) if self.exact else np.abs(self.signed_areas())


def near_pairs(first: Shapes, second: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs (K,), (K,) whose boxes, grown by a pixel, meet: no other pair overlaps or holds a character centre.

    The pixel covers what cutting to integers moves (a centre comes from uncut vertices).
    """
    reach = np.abs(first.low[:, None] + first.high[:, None] - second.low - second.high)
    sizes = (first.high - first.low)[:, None] + (second.high - second.low) + 4.0
    return np.nonzero((reach <= sizes).all(-1))


def overlap_areas(first: Shapes, second: Shapes, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Areas of first[rows] intersected with second[columns], (K,) float64 in square pixels."""
    result = np.zeros(len(rows))
    fast = np.zeros(len(rows), bool)
    if not first.exact:
        quads_1, convex_1 = _counterclockwise_quads(first)
        quads_2, convex_2 = _counterclockwise_quads(second)
        fast = (convex_1 & ~first.cut)[rows] & convex_2[columns]
        result[fast] = _convex_overlap(quads_1[rows[fast]], quads_2[columns[fast]])
    if not fast.all():
        rows, columns = rows[~fast], columns[~fast]
        result[~fast] = shapely.area(shapely.intersection(first.geometry(rows), second.geometry(columns)))
    return result


def _counterclockwise_quads(shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Quads turned to a positive shoelace sum (P, 4, 2), and (P,) bool: four vertices, convex, positive area."""
    quads = shapes.shape[:, :4]
    edges = quads[:, [1, 2, 3, 0]] - quads
    turns = edges[..., 0] * edges[:, [1, 2, 3, 0], 1] - edges[..., 1] * edges[:, [1, 2, 3, 0], 0]
    area = shapes.signed_areas()
    convex = (shapes.counts == 4) & (area != 0) & ((turns >= 0).all(1) | (turns <= 0).all(1))
    return np.where((area < 0)[:, None, None], quads[:, ::-1], quads), convex


def _convex_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlap of K pairs of convex counterclockwise quads, (K, 4, 2) integers as float64 each -> (K,) float64.

    By Green's theorem the area is the sum of cross(start, end)/2 over the boundary of the overlap, which is made of the
    parts of each quad's sides that lie inside the other. A side shared by both is counted once, with the first quad;
    integer coordinates make that test exact.
    """
    origin = first[:, :1]
    first, second = first - origin, second - origin
    return np.maximum(_side_integral(first, second, True) + _side_integral(second, first, False), 0.0)


def _side_integral(sides: np.ndarray, window: np.ndarray, keep_shared: bool) -> np.ndarray:
    """Sum of cross(start, end)/2 over the parts of `sides` inside the convex `window`; (K, 4, 2) twice -> (K,).

    Each side p + t e, t in 0..1, is cut by the window's four half planes (Cyrus-Beck): t_enter is the largest crossing
    into a half plane, t_leave the smallest out of one.
    """
    side = sides[:, [1, 2, 3, 0]] - sides
    edge = (window[:, [1, 2, 3, 0]] - window)[:, None]
    offset = sides[:, :, None] - window[:, None]
    height = edge[..., 0] * offset[..., 1] - edge[..., 1] * offset[..., 0]  # >= 0: the side starts inside
    slope = edge[..., 0] * side[:, :, None, 1] - edge[..., 1] * side[:, :, None, 0]
    parallel = slope == 0
    t = -height / np.where(parallel, 1.0, slope)
    enter = np.where(slope > 0, t, 0.0).max(-1)
    leave = np.where(slope < 0, t, 1.0).min(-1)
    outside = height < 0
    on_line = (height == 0) & edge.any(-1)
    if keep_shared:
        on_line &= (edge * side[:, :, None]).sum(-1) < 0
    hidden = (parallel & (outside | on_line)).any(-1)
    length = np.where(hidden, 0.0, np.maximum(leave - np.maximum(enter, 0.0), 0.0))
    # cross(p + t0 e, p + t1 e) = (t1 - t0) cross(p, e)
    cross = sides[..., 0] * side[..., 1] - sides[..., 1] * side[..., 0]
    return 0.5 * (length * cross).sum(-1)


def inside(shapes: Shapes, which: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Whether point xy[k] lies in polygon which[k]: (K,) int, (K, 2) float -> (K,) bool.

    Crossing rule: a ray to +x crosses an odd number of sides, half open in y, so a point on the left or upper side is
    in and one on the right or lower side is out. `exact` polygons use shapely: a point on the boundary is out.
    """
    if shapes.exact:
        return shapely.contains_xy(shapes.geometry(which), xy[:, 0], xy[:, 1])
    vertex = shapes.shape
    before = vertex[:, np.arange(-1, vertex.shape[1] - 1)]
    rise, run = before[..., 1] - vertex[..., 1], before[..., 0] - vertex[..., 0]
    x, y = xy[:, :1].astype(np.float64), xy[:, 1:].astype(np.float64)
    top, bottom = vertex[which, :, 1], before[which, :, 1]
    spans = (top <= y) != (bottom <= y)
    slant = np.where(rise == 0, 1.0, rise)[which]  # a level side spans nothing: any divisor will do
    crossing = x < run[which] * (y - top) / slant + vertex[which, :, 0]
    return (spans & crossing).sum(1) % 2 == 1


def without(shapes: Shapes, index: int, removed: np.ndarray) -> None:
    """Cuts the polygons `removed` (indices) out of polygon `index`, in place.

    Only the geometry changes: the vertices, from which characters and boxes come, stay.
    """
    hole = shapely.union_all(shapes.geometry(removed))
    shapes._geometry[index] = shapely.difference(shapes.geometry(index), hole)
    shapes.cut[index] = True
