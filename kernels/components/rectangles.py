"""Convex hulls, smallest rectangles and unclipping of many components at once, in plain PyTorch.

Hull: only the leftmost and the rightmost pixel of every row can be hull vertices, so the hull is two chains of at most
one point per row. A point that does not lie strictly outside the segment between its neighbours is no vertex; dropping
such points until none is left is exact (integers). Rectangle: one side of the smallest one lies on a hull edge
(Freeman and Shapira 1975), and for every edge the three opposite vertices are found by binary search on the edges'
angles, which ascend along the hull (rotating calipers, Toussaint 1983): O(V log V) for all components together.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.components.runs import expand

TURN = 8.0  # distance between components on the axis of angles, more than 2 pi
TIE = 1e-9  # relative: rectangles as small as the smallest count as equal, the first edge wins


class Spans(NamedTuple):
    """The runs of C components, and where the components are; all int64."""

    top: Tensor  # (C,) first row
    height: Tensor  # (C,) rows; every one has a run
    owner: Tensor  # (R,) component of a run
    row: Tensor  # (R,)
    left: Tensor  # (R,) first column
    right: Tensor  # (R,) last column


class Hulls(NamedTuple):
    """Vertices of C convex polygons, clockwise on the screen (y down): down the right side, up the left one; int64."""

    owner: Tensor  # (V,) ascending
    x: Tensor  # (V,) column
    y: Tensor  # (V,) row
    begin: Tensor  # (C,) first vertex
    end: Tensor  # (C,) after the last vertex


class Rectangles(NamedTuple):
    """C rectangles: centre +- half[0] * axis +- half[1] * (axis turned by 90 degrees)."""

    centre: Tensor  # (C, 2) x, y
    axis: Tensor  # (C, 2) unit vector with x > 0 and |y| <= x: within 45 degrees of the rows
    half: Tensor  # (C, 2) half sides along and across the axis

    def select(self, index: Tensor) -> "Rectangles":
        """The rectangles of an index."""
        return Rectangles(*(part.index_select(0, index) for part in self))

    def short_side(self) -> Tensor:
        """(C,) length of the shorter side."""
        return 2 * self.half.amin(1)

    def grow(self, by: Tensor) -> "Rectangles":
        """All sides moved outwards by (C,) pixels."""
        return self._replace(half=self.half + by[:, None])

    def corners(self) -> Tensor:
        """(C, 4, 2) corners x, y: top left, top right, bottom right, bottom left."""
        along = self.axis * self.half[:, :1]
        across = torch.stack([-self.axis[:, 1], self.axis[:, 0]], 1) * self.half[:, 1:]
        diagonals = torch.stack([along + across, across - along], 1)
        return torch.cat([self.centre[:, None] - diagonals, self.centre[:, None] + diagonals], 1)


def convex_hulls(spans: Spans, width: int) -> Hulls:
    """Strict hull vertices of C components of columns below `width`, exact. One row gives two vertices, perhaps equal.

    The extreme columns of a component's h rows form one sequence of 2 h values: -right from top to bottom, then left
    from bottom to top; both sides' hulls are then lower hulls over the position. All sequences are joined into one,
    and slopes that rise from side to side by more than columns can differ make every joint convex, so one lower hull
    holds all.
    """
    top, height, owner, row, left, right = spans
    offset = 2 * (height.cumsum(0) - height)
    sides = torch.repeat_interleave(height.repeat_interleave(2))  # 2 c on component c's right, 2 c + 1 on its left
    down = (offset - top).index_select(0, owner) + row
    up = (offset + 2 * height + top - 1).index_select(0, owner) - row
    value = torch.zeros_like(sides)
    value.scatter_reduce_(0, torch.cat([down, up]), torch.cat([-right, left]), "amin", include_self=False)
    kept = _lower_hull(value + 4 * width * (2 * sides.cumsum(0) - sides))
    side, value = sides.index_select(0, kept), value.index_select(0, kept)
    owner, is_left = side // 2, side % 2
    depth = kept - offset.index_select(0, owner)
    depth = torch.where(is_left == 1, 2 * height.index_select(0, owner) - 1 - depth, depth)
    end = torch.bincount(owner, minlength=len(top)).cumsum(0)
    begin = torch.cat([end.new_zeros(1), end[:-1]])[: len(end)]
    return Hulls(owner, value * (2 * is_left - 1), top.index_select(0, owner) + depth, begin, end)


def _lower_hull(value: Tensor) -> Tensor:
    """Positions of the lower hull's vertices among the points (position, value), ends included.

    A dropped point is on or above a segment between two points of the set, so dropping many at once is safe.
    """
    place = torch.arange(len(value), device=value.device)
    while len(place) > 2:
        rise, step = value[1:] - value[:-1], place[1:] - place[:-1]
        convex = rise[:-1] * step[1:] < rise[1:] * step[:-1]
        kept = torch.nn.functional.pad(convex, (1, 1), value=True).nonzero()[:, 0]
        if len(kept) == len(place):
            break
        place, value = place.index_select(0, kept), value.index_select(0, kept)
    return place


def smallest_rectangles(hulls: Hulls) -> Rectangles:
    """Rectangle of least area around every hull, flush with one of its edges or with the rows; float64.

    It goes through the outermost pixels' own coordinates; a side may be 0. Points are complex numbers x + i y here:
    multiplying with the conjugate of an edge's unit vector gives the coordinates along (real) and across (imaginary)
    that edge.
    """
    owner, begin, end = hulls.owner, hulls.begin, hulls.end
    index = torch.arange(len(owner), device=owner.device)
    last = torch.zeros_like(owner, dtype=torch.bool).index_fill_(0, end - 1, True)
    after = torch.where(last, begin.index_select(0, owner), index + 1)
    dx, dy = hulls.x.index_select(0, after) - hulls.x, hulls.y.index_select(0, after) - hulls.y
    # The edges along the bottom row (leftwards) and along the top row (rightwards, the last) may have no length.
    dx = torch.where(dy == 0, torch.where(last, 1, -1), dx)
    dx, dy = dx.double(), dy.double()
    angle = torch.atan2(dy, dx)
    angle = torch.where(angle > 0, angle, angle + 2 * math.pi)
    unit = torch.sgn(torch.complex(dx, dy))
    vertex = torch.complex(hulls.x.double(), hulls.y.double())
    back = torch.conj_physical(unit)
    seen = vertex.index_select(0, _opposite(hulls, angle).view(-1)).view(3, -1) * back
    ahead, behind, far, near = seen[0].real, seen[2].real, seen[1].imag, (vertex * back).imag
    best = _least(owner, ((ahead - behind) * (far - near)).clamp(min=0), len(begin))  # rounding may give -1e-13
    ahead, behind, far, near = torch.stack([ahead, behind, far, near]).index_select(1, best)
    unit = unit.index_select(0, best)
    centre = unit * torch.complex(ahead + behind, far + near) / 2
    half = torch.stack([ahead - behind, far - near], 1).clamp(min=0) / 2
    # Any of the four sides may have been the best edge: turn the axis to within 45 degrees of the rows.
    steep = unit.imag.abs() > unit.real.abs()
    unit = torch.where(steep, unit * 1j, unit)
    unit = torch.where(unit.real < 0, -unit, unit)
    half = torch.where(steep[:, None], half.flip(1), half)
    return Rectangles(torch.view_as_real(centre), torch.view_as_real(unit), half)


def _opposite(hulls: Hulls, angle: Tensor) -> Tensor:
    """(3, V) for every edge the first vertex whose outgoing edge is turned by at least 90, 180, 270 degrees against it.

    These are the vertices farthest along, farthest across and farthest back.
    """
    turn = torch.tensor([[0.5], [1.0], [1.5]], dtype=torch.float64, device=angle.device) * math.pi
    wanted = angle + turn
    wanted = torch.where(wanted > 2 * math.pi, wanted - 2 * math.pi, wanted)
    base = hulls.owner * TURN
    found = torch.searchsorted(base + angle, base + wanted)
    end, begin = hulls.end.index_select(0, hulls.owner), hulls.begin.index_select(0, hulls.owner)
    return torch.where(found < end, found, begin)


def _least(owner: Tensor, value: Tensor, num: int) -> Tensor:
    """(num,) index of the first least value of every owner, up to rounding."""
    least = value.new_full((num,), math.inf).scatter_reduce_(0, owner, value, "amin")
    good = (value <= least.index_select(0, owner) * (1 + TIE)).nonzero()[:, 0]
    first = owner.new_full((num,), len(owner))
    return first.scatter_reduce_(0, owner.index_select(0, good), good, "amin")


def half_pixel(rectangles: Rectangles, area: Tensor) -> Tensor:
    """(C,) pixels, 0 to 0.5, by which a rectangle through pixel centres grows to cover its component's pixels.

    Solves (w + 2 g)(h + 2 g) = area for g: a rectangle through centres is half a pixel short on each side along the
    rows (area = (w + 1)(h + 1), g = 0.5) but not at an angle, where some centre nearly touches every side (g near 0).
    On perfect shrink maps of lines 12-40 px high this gives a mean IoU with the text of 0.94 upright, 0.98 within 3
    degrees and 0.99 at any angle; always 0 (OpenCV's contour) gives 0.83, 0.97, 0.99 and always 0.5 gives 0.94, 0.87,
    0.86.
    """
    w, h = (2 * rectangles.half).unbind(1)
    root = ((w - h).square() + 4 * area).sqrt()
    return ((root - w - h) / 4).clamp(0.0, 0.5)


def unclip_distance(rectangles: Rectangles, unclip_ratio: float) -> Tensor:
    """(C,) offset D' = A' r' / L' in pixels of DBNet's unclipping (Liao et al. 2020, arXiv 1911.08947, section 3.5).

    Moving the sides out by D' equals clipper's JT_ROUND offset followed by a minimum-area rectangle, without its
    rounding. Example: 69 x 9 and r' = 1.5: 621 * 1.5 / 156 = 5.97 px on every side.
    """
    w, h = (2 * rectangles.half).unbind(1)
    return w * h * unclip_ratio / (2 * (w + h)).clamp(min=torch.finfo(w.dtype).tiny)


class Intervals(NamedTuple):
    """Rows of pixels within rectangles, all (I,) int64; a length may be 0."""

    owner: Tensor  # rectangle, ascending
    row: Tensor
    column: Tensor  # first column
    length: Tensor  # columns


def pixel_intervals(rectangles: Rectangles, height: int, width: int, tolerance: float) -> Intervals:
    """Pixels of a height x width page whose centres (i + 0.5) lie in the rectangles, up to `tolerance` pixels outside.

    In the row at dy below the centre: -a <= ux dx + uy dy <= a and -b <= ux dy - uy dx <= b, two intervals of dx.
    Each of the four bounds is linear in the row; lower ones and negated upper ones are rounded up alike.
    """
    (cx, cy), (ux, uy), (a, b) = (part.unbind(1) for part in rectangles)
    a, b = a + tolerance, b + tolerance
    reach = a * uy.abs() + b * ux
    first = (cy - reach - 0.5).ceil().clamp(0, height).long()
    stop = (cy + reach + 0.5).floor().clamp(0, height).long()
    owner, row = expand(first, (stop - first).clamp(min=0))
    level = uy == 0  # then b bounds the rows only
    s, t = -uy / ux, torch.where(level, 0.0, ux / uy)
    slope = torch.stack([s, t, -s, -t], 1)
    x = cx - 0.5
    a, b = a / ux, torch.where(level, math.inf, b / uy.abs())
    bound = torch.stack([x - a, x - b, -x - a, -x - b], 1) + slope * (0.5 - cy)[:, None]
    bounds = bound.index_select(0, owner) + slope.index_select(0, owner) * row[:, None]
    low, high = bounds.view(-1, 2, 2).amax(2).ceil().unbind(1)
    column = low.clamp(0, width).long()
    return Intervals(owner, row, column, ((1 - high).clamp(0, width).long() - column).clamp(min=0))
