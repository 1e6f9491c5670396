"""On the device, one warp a component: row extremes -> convex hull -> smallest rectangle. Called by geometry.py.

Hull: only the rightmost and the leftmost pixel of each row can be vertices. Down the right side with the values -x,
then up the left side with the values x, each side's part is the lower hull of (row, value): from a vertex at row r the
next one is the row j with the least slope

    (value[j] - value[r]) / (j - r)        equal slopes: the farthest row, so no vertex lies between two others

(gift wrapping, Jarvis 1973). Different fractions of numbers below 2^16 are 2^-32 or more apart, their float64 quotients
are off by 2^-37 at most and equal fractions have equal quotients: the choice is exact. Same vertices in the same order
as rectangles.convex_hulls.

Rectangle: one side lies on a hull edge (Freeman and Shapira 1975), so for every edge with unit vector (ux, uy) the
extents of all vertices along (x ux + y uy) and across (y ux - x uy) it; the first edge with the least area, up to TIE.
Lanes are edges, a loop goes over the vertices. Same formulas in float64 as rectangles.smallest_rectangles.

Cost: a component of h rows and V vertices reads 8 h bytes (its two extremes a row) at most V times, out of the cache
after the first, and needs V^2 products. A line of text has h = 10-40, V = 5-25. A whole page of 1280 rows: V < 200,
1280 rows are 40 loads of 32 lanes: at most 200 x 40 rounds of some 220 cycles, for a disc about 1.2 ms of the one warp
(counted in its machine code).

Example: ### (columns 0-2 of row 0, column 1 of row 1)
         .#.
    right values -2, -1: vertices (2, 0), (1, 1); left, from the bottom, 1, 0: vertices (1, 1), (0, 0)
    edges (-1, 1), bottom row (-1, 0), (-1, -1), top row (1, 0): areas 1.41 x 1.41, 2 x 1, 1.41 x 1.41, 2 x 1
    all four are 2 up to rounding: the first, at 45 degrees, is taken
"""

import triton
import triton.language as tl

from kernels.components import rectangles

TIE = tl.constexpr(rectangles.TIE)
LANES = tl.constexpr(32)  # rows or edges worked on together: one warp
VERTICES = tl.constexpr(8)  # seen by each edge at once; more need more registers, fewer wait longer for loads


@triton.jit
def float64(number):
    """A constant or an argument of a kernel; Triton takes Python's numbers for float32 in places (comparisons)."""
    return tl.full((), number, tl.float64)


@triton.jit
def hull(left_gap, right_end, begin, rows, top, width, x, y):
    """Writes the hull's vertices to x and y (2 * rows places), clockwise on the screen, and returns their number.

    left_gap, right_end: pointers to the page's rows; the component's are the entries begin to begin + rows - 1.
    """
    lowest = top + rows - 1
    num = _side(right_end, begin, 1, rows, 1, -1, top, x, y, 0)
    return _side(left_gap, begin + rows - 1, -1, rows, width, 1, lowest, x, y, num)


@triton.jit
def _side(entries, first, step, rows, base, sign, first_y, x, y, num):
    """Appends one side's vertices after the `num` there are; returns the new number.

    The value of row k, counted along the side, is base - entries[first + k step], its column sign * value.
    """
    lane = tl.arange(0, LANES)
    row = 0
    value = base - tl.load(entries + first)
    tl.store(x + num, sign * value)
    tl.store(y + num, first_y)
    num += 1
    while row < rows - 1:
        least = tl.full([LANES], float("inf"), tl.float64)
        farthest = tl.zeros([LANES], tl.int32)
        for start in range(row + 1, rows, LANES):
            other = start + lane
            inside = other < rows
            rise = base - tl.load(entries + first + step * other, mask=inside, other=0) - value
            slope = rise.to(tl.float64) / (other - row).to(tl.float64)
            better = inside & (slope <= least)
            least = tl.where(better, slope, least)
            farthest = tl.where(better, other, farthest)
        row = tl.max(tl.where(least == tl.min(least, 0), farthest, 0), 0)
        value = base - tl.load(entries + first + step * row)
        tl.store(x + num, sign * value)
        tl.store(y + num, first_y + step * row)
        num += 1
    return num


@triton.jit
def smallest_rectangle(x, y, num):
    """Rectangle through the outermost of `num` vertices: centre x, y, axis x, y and half sides along and across it.

    The axis is within 45 degrees of the rows and points to the right.
    """
    lane = tl.arange(0, LANES)
    least = tl.full([LANES], float("inf"), tl.float64)
    for start in range(0, num, LANES):
        ux, uy = _unit(x, y, num, tl.minimum(start + lane, num - 1))
        least = tl.minimum(least, _area(x, y, num, ux, uy))
    limit = tl.min(least, 0) * float64(1 + TIE)
    # Again rather than kept: more than 32 edges are rare and their number has no small bound.
    best = num
    for start in range(0, num, LANES):
        edge = tl.minimum(start + lane, num - 1)
        ux, uy = _unit(x, y, num, edge)
        best = tl.minimum(best, tl.min(tl.where(_area(x, y, num, ux, uy) <= limit, edge, num), 0))
    ux, uy = _unit(x, y, num, tl.zeros([LANES], tl.int32) + best)  # every lane the same edge
    ahead, behind, far, near = _extents(x, y, num, ux, uy)
    along, across = ahead + behind, far + near
    centre_x = (ux * along - uy * across) / 2
    centre_y = (ux * across + uy * along) / 2
    half, half_across = tl.maximum(ahead - behind, 0.0) / 2, tl.maximum(far - near, 0.0) / 2
    steep = tl.abs(uy) > tl.abs(ux)  # any side may have been the best edge
    ux, uy = tl.where(steep, -uy, ux), tl.where(steep, ux, uy)
    ux, uy = tl.where(ux < 0, -ux, ux), tl.where(ux < 0, -uy, uy)
    a, b = tl.where(steep, half_across, half), tl.where(steep, half, half_across)
    return (
        tl.max(centre_x, 0),
        tl.max(centre_y, 0),
        tl.max(ux, 0),
        tl.max(uy, 0),
        tl.max(a, 0),
        tl.max(b, 0),
    )


@triton.jit
def _unit(x, y, num, edge):
    """Unit vectors of hull edges."""
    after = tl.where(edge + 1 < num, edge + 1, 0)
    dx = tl.load(x + after) - tl.load(x + edge)
    dy = tl.load(y + after) - tl.load(y + edge)
    # The edges along the bottom and the top row may have no length; to the left or to the right is the same rectangle.
    dx = tl.where(dy == 0, 1, dx).to(tl.float64)
    dy = dy.to(tl.float64)
    length = tl.sqrt(dx * dx + dy * dy)
    return dx / length, dy / length


@triton.jit
def _area(x, y, num, ux, uy):
    """Areas of the rectangles along unit vectors."""
    ahead, behind, far, near = _extents(x, y, num, ux, uy)
    return tl.maximum((ahead - behind) * (far - near), 0.0)


@triton.jit
def _extents(x, y, num, ux, uy):
    """The vertices' greatest and least coordinates along unit vectors, then across them."""
    ahead = tl.full([LANES], float("-inf"), tl.float64)
    behind = tl.full([LANES], float("inf"), tl.float64)
    far, near = ahead, behind
    for start in range(0, num, VERTICES):
        vertex = tl.minimum(start + tl.arange(0, VERTICES), num - 1)  # the last one again changes nothing
        px, py = tl.load(x + vertex).to(tl.float64)[:, None], tl.load(y + vertex).to(tl.float64)[:, None]
        along = px * ux[None, :] + py * uy[None, :]
        across = py * ux[None, :] - px * uy[None, :]
        ahead, behind = tl.maximum(ahead, tl.max(along, 0)), tl.minimum(behind, tl.min(along, 0))
        far, near = tl.maximum(far, tl.max(across, 0)), tl.minimum(near, tl.min(across, 0))
    return ahead, behind, far, near
