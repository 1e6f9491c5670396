"""Areas, overlaps and point tests of one page's polygons, vectorised over pairs.

The reference computes these one pair at a time with Polygon3 (the Generic Polygon Clipper) on vertices cut to integers.
The clipper fills by the even-odd rule, while its area of an unclipped contour is |shoelace|: a bow-tie's two lobes
count against each other in its own area and add up in an overlap. Both are kept here, because the counts depend on it.

Coordinates are held as planes, (V, P) for x and for y: a page has few vertices and many polygons, and numpy is 3 to 5
times faster over a long last axis than over a last axis of 4.
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
        x, y: (V, P) float64, the vertices that areas are computed from.
        low, high: (2, P) float64 bounding boxes of these.
        signed_area: (P,) float64 shoelace sums in square pixels, positive when the vertices turn from +x to +y.
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
        planes = self.points.transpose(2, 1, 0).astype(np.float64)
        planes = np.ascontiguousarray(planes if exact else np.trunc(planes))
        self.x, self.y = planes
        self.low, self.high = planes.min(1), planes.max(1)
        x, y = planes - planes[:, :1]  # from the first vertex: no digits are lost far from the origin
        self.signed_area = 0.5 * (x * y[_after(y)] - x[_after(x)] * y).sum(0)
        self.cut = np.zeros(size, bool)
        self._geometry = np.full(size, None)

    def __len__(self) -> int:
        return len(self.counts)

    def geometry(self, which: np.ndarray | int) -> np.ndarray:
        """Valid shapely geometries of the polygons `which` (any index array), each built once."""
        wanted = np.zeros(len(self), bool)
        wanted[which] = True
        missing = np.flatnonzero(wanted & shapely.is_missing(self._geometry))
        rings = shapely.polygons(np.stack([self.x[:, missing].T, self.y[:, missing].T], axis=-1))
        if not self.exact:
            rings = shapely.make_valid(rings)  # even-odd; folded-back sides become loose lines
        loose = self.exact | ~np.isin(shapely.get_type_id(rings), (3, 6))
        rings[loose] = shapely.buffer(rings[loose], 0)
        self._geometry[missing] = rings
        return self._geometry[which]

    def areas(self) -> np.ndarray:
        """(P,) float64 areas as the reference takes them: |shoelace|, or shapely's for `exact`."""
        return shapely.area(self.geometry(np.arange(len(self)))) if self.exact else np.abs(self.signed_area)


def _after(plane: np.ndarray) -> np.ndarray:
    """Index of the following vertex along the first axis."""
    return np.arange(1, len(plane) + 1) % len(plane)


def near_pairs(first: Shapes, second: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs (K,), (K,) whose boxes, grown by a pixel, meet: no other pair overlaps or holds a character centre.

    The pixel covers what cutting to integers moves (a centre comes from uncut vertices).
    """
    low, high = first.low[:, :, None] - 2, first.high[:, :, None] + 2
    x = (low[0] <= second.high[0]) & (second.low[0] <= high[0])
    y = (low[1] <= second.high[1]) & (second.low[1] <= high[1])
    rows, columns = np.nonzero(x & y)
    return rows, columns


def overlap_areas(first: Shapes, second: Shapes, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Areas of first[rows] intersected with second[columns], (K,) float64 in square pixels."""
    result = np.zeros(len(rows))
    fast = np.zeros(len(rows), bool)
    if not first.exact:
        fast = (_convex_quads(first) & ~first.cut)[rows] & (_convex_quads(second) & ~second.cut)[columns]
        result[fast] = _convex_overlap(_turned(first, rows[fast]), _turned(second, columns[fast]))
    if not fast.all():
        rows, columns = rows[~fast], columns[~fast]
        result[~fast] = shapely.area(shapely.intersection(first.geometry(rows), second.geometry(columns)))
    return result


def _convex_quads(shapes: Shapes) -> np.ndarray:
    """(P,) bool: four vertices, convex, not flat."""
    x, y = shapes.x[:4], shapes.y[:4]
    edge_x, edge_y = x[_after(x)] - x, y[_after(y)] - y
    turn = edge_x * edge_y[_after(y)] - edge_y * edge_x[_after(x)]
    same_way = (turn >= 0).all(0) | (turn <= 0).all(0)
    return (shapes.counts == 4) & (shapes.signed_area != 0) & same_way


def _turned(shapes: Shapes, which: np.ndarray) -> np.ndarray:
    """Quads `which` with the vertices in the order of a positive shoelace sum, (2, 4, K)."""
    order = np.where(shapes.signed_area[which] < 0, [[3], [2], [1], [0]], [[0], [1], [2], [3]])
    return np.stack([shapes.x[order, which], shapes.y[order, which]])


def _convex_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlap of K pairs of convex quads with a positive shoelace sum, (2, 4, K) integers as float64 -> (K,) float64.

    By Green's theorem the area is the sum of cross(start, end)/2 over the boundary of the overlap, which is made of the
    parts of each quad's sides that lie inside the other. A side shared by both is counted once, with the first quad;
    integer coordinates make that test exact. Each side p + t e, t in 0..1, is cut by the other's four half planes
    (Cyrus-Beck): `enter` is the largest crossing into a half plane, `leave` the smallest out of one.
    """
    origin = first[:, :1]
    first, second = first - origin, second - origin
    size = first.shape[2]
    x, y = np.concatenate([first, second], axis=2)  # (4, 2K): the sides
    wall_x, wall_y = np.concatenate([second, first], axis=2)  # (4, 2K): the quad that cuts them
    side_x, side_y = x[_after(x)] - x, y[_after(y)] - y
    edge_x, edge_y = wall_x[_after(x)] - wall_x, wall_y[_after(y)] - wall_y

    # (4 half planes, 4 sides, 2K): height above the half plane's edge at the side's start, and its growth along it
    height = edge_x[:, None] * (y - wall_y[:, None]) - edge_y[:, None] * (x - wall_x[:, None])
    slope = edge_x[:, None] * side_y - edge_y[:, None] * side_x
    parallel = slope == 0
    t = -height / np.where(parallel, 1.0, slope)
    enter = np.where(slope > 0, t, 0.0).max(0)
    leave = np.where(slope < 0, t, 1.0).min(0)
    same_way = edge_x[:, None] * side_x + edge_y[:, None] * side_y  # 0: an edge without length, which cuts nothing
    leave_out = same_way < 0
    leave_out[:, :, size:] |= same_way[:, :, size:] > 0
    hidden = (parallel & ((height < 0) | ((height == 0) & leave_out))).any(0)
    length = np.where(hidden, 0.0, np.maximum(leave - enter, 0.0))
    # cross(p + t0 e, p + t1 e) = (t1 - t0) cross(p, e)
    integral = 0.5 * (length * (x * side_y - y * side_x)).sum(0)
    return np.maximum(integral[:size] + integral[size:], 0.0)


def inside(shapes: Shapes, which: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Whether point xy[k] lies in polygon which[k]: (K,) int, (K, 2) float -> (K,) bool.

    Crossing rule: a ray to +x crosses an odd number of sides, half open in y, so a point on the left or upper side is
    in and one on the right or lower side is out. `exact` polygons use shapely: a point on the boundary is out.
    """
    if shapes.exact:
        return shapely.contains_xy(shapes.geometry(which), xy[:, 0], xy[:, 1])
    before = np.arange(-1, len(shapes.x) - 1)
    from_x, from_y = shapes.x[before], shapes.y[before]
    run, rise = from_x - shapes.x, from_y - shapes.y
    rise[rise == 0] = 1.0  # a level side spans no y: any divisor will do
    x, y = xy.T.astype(np.float64)
    side_y = shapes.y[:, which]
    spans = (side_y <= y) != (from_y[:, which] <= y)
    crossing = x < run[:, which] * (y - side_y) / rise[:, which] + shapes.x[:, which]
    return np.logical_xor.reduce(spans & crossing, axis=0)


def without(shapes: Shapes, index: int, removed: np.ndarray) -> None:
    """Cuts the polygons `removed` (indices) out of polygon `index`, in place.

    Only the geometry changes: the vertices, from which characters and boxes come, stay.
    """
    hole = shapely.union_all(shapes.geometry(removed))
    shapes._geometry[index] = shapely.difference(shapes.geometry(index), hole)
    shapes.cut[index] = True
