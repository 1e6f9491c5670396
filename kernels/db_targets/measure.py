"""One polygon on the device, measured in float64 with the reference's own operations: what it is, and its distance D.

A polygon has E vertices v_i and edges e_i = v_(i+1) - v_i, the last one back to v_0. Everything runs over chunks of
CHUNK vertices (pairs of chunks where edges meet vertices), so any E works: a text line takes one step, 60 points 16.
Lanes past the end hold an edge from v_0 to v_0, whose length is 0: it adds nothing and crosses nothing.

    area   = |sum (v_i - v_0) x (v_(i+1) - v_0)| / 2
    D      = area (1 - r^2) / sum |e_i|
    extent = least over edges of (max - min) of the vertices across the edge: a quad's short side
    crossed: two edges, each of which properly separates the ends of the other

Differences of float32 coordinates are exact in float64, and so are the signs that decide `crossed` (products are never
fused, see `runtime.launch`). Area, D and extent may differ from the reference's in the last of 53 bits.
"""

import triton
import triton.language as tl

MIN_AREA_PX2 = tl.constexpr(1.0)  # as the reference's
TINY = tl.constexpr(1e-300)  # keeps a division by a length of 0 finite


@triton.jit
def span(offsets, index, total):
    """First element and number of elements of group `index`, held within 0 to total whatever the offsets say."""
    first = tl.minimum(tl.maximum(tl.load(offsets + index), 0), total)
    past = tl.minimum(tl.maximum(tl.load(offsets + index + 1), first), total)
    return first, (past - first).to(tl.int32)


@triton.jit
def _vertices(points, index):
    x = tl.load(points + 2 * index).to(tl.float64)
    y = tl.load(points + 2 * index + 1).to(tl.float64)
    return x, y


@triton.jit
def _edges(points, start, count, index):
    """Both ends of the edges `index`: lanes at or past count have both ends at vertex 0."""
    x, y = _vertices(points, start + tl.where(index < count, index, 0))
    next_x, next_y = _vertices(points, start + tl.where(index + 1 < count, index + 1, 0))
    return x, y, next_x, next_y


@triton.jit
def _length(x, y):
    return tl.sqrt(x * x + y * y)


@triton.jit
def drawable(points, start, count, CHUNK: tl.constexpr):
    """Whether a polygon has three vertices or more, and all of them finite."""
    good = count >= 3
    for first in range(0, count, CHUNK):
        index = first + tl.arange(0, CHUNK)
        x, y = _vertices(points, start + tl.where(index < count, index, 0))
        finite = (tl.abs(x) < float("inf")) & (tl.abs(y) < float("inf"))
        good = good & (tl.min(finite.to(tl.int32), 0) > 0)
    return good


@triton.jit
def extremes(points, start, count, CHUNK: tl.constexpr):
    """Area and perimeter, and the least and largest x and y, float64."""
    origin_x, origin_y = _vertices(points, start)
    area, perimeter = origin_x * 0, origin_x * 0
    left, right, top, bottom = origin_x, origin_x, origin_y, origin_y
    for first in range(0, count, CHUNK):
        x, y, next_x, next_y = _edges(points, start, count, first + tl.arange(0, CHUNK))
        area += tl.sum((x - origin_x) * (next_y - origin_y) - (y - origin_y) * (next_x - origin_x), 0)
        perimeter += tl.sum(_length(next_x - x, next_y - y), 0)
        left, right = tl.minimum(left, tl.min(x, 0)), tl.maximum(right, tl.max(x, 0))
        top, bottom = tl.minimum(top, tl.min(y, 0)), tl.maximum(bottom, tl.max(y, 0))
    return 0.5 * tl.abs(area), perimeter, left, right, top, bottom


@triton.jit
def _separates(a_x, a_y, edge_x, edge_y, p_x, p_y, q_x, q_y):
    """Whether p and q lie on different sides of the line through a along the edge, neither of them on it."""
    side_p = edge_x * (p_y - a_y) - edge_y * (p_x - a_x)
    side_q = edge_x * (q_y - a_y) - edge_y * (q_x - a_x)
    return ((side_p < 0) & (side_q > 0)) | ((side_p > 0) & (side_q < 0))


@triton.jit
def shape(points, start, count, CHUNK: tl.constexpr):
    """Least extent perpendicular to an edge, float64, and the number of places where two edges properly cross."""
    origin_x, origin_y = _vertices(points, start)
    least, crossings = origin_x * 0 + float("inf"), 0
    for first in range(0, count, CHUNK):
        x, y, next_x, next_y = _edges(points, start, count, (first + tl.arange(0, CHUNK))[:, None])
        edge_x, edge_y = next_x - x, next_y - y
        length = _length(edge_x, edge_y)
        normal_x, normal_y = -edge_y / tl.maximum(length, TINY), edge_x / tl.maximum(length, TINY)
        low = tl.full((CHUNK,), float("inf"), tl.float64)
        high = tl.full((CHUNK,), float("-inf"), tl.float64)
        for other in range(0, count, CHUNK):
            p_x, p_y, q_x, q_y = _edges(points, start, count, (other + tl.arange(0, CHUNK))[None, :])
            across = (p_x - origin_x) * normal_x + (p_y - origin_y) * normal_y
            low, high = tl.minimum(low, tl.min(across, 1)), tl.maximum(high, tl.max(across, 1))
            crossed = _separates(x, y, edge_x, edge_y, p_x, p_y, q_x, q_y) & _separates(
                p_x, p_y, q_x - p_x, q_y - p_y, x, y, next_x, next_y
            )
            crossings += tl.sum(tl.sum(crossed.to(tl.int32), 1), 0)
        extent = tl.where(tl.reshape(length, (CHUNK,)) == 0, float("inf"), high - low)
        least = tl.minimum(least, tl.min(extent, 0))
    return least, crossings


@triton.jit
def offset_distance(points, start, count, area, perimeter, ignored,
    SHRINK: tl.constexpr, MIN_SIZE: tl.constexpr, PAPER: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """D in pixels, float64, or -1 where the polygon is no text. SHRINK = 1 - r^2, MIN_SIZE in pixels."""
    distance = area * SHRINK / tl.maximum(perimeter, TINY)
    if PAPER:
        least, crossings = shape(points, start, count, CHUNK)
        text = (ignored == 0) & (area >= MIN_AREA_PX2) & (least >= tl.full((), MIN_SIZE, tl.float64)) & (crossings == 0)
    else:
        text = distance > 0
    return tl.where(text, distance, -1.0)
