"""Convex hulls, smallest rectangles and unclipping of many components at once, in plain PyTorch.

Hull: only the leftmost and the rightmost pixel of every row can be hull vertices, so the hull is two chains of at
most one point per row. A point that does not lie strictly outside the segment between its neighbours is no vertex;
dropping such points until none is left is exact (integers). Rectangle: one side of the smallest one lies on a hull
edge (Freeman and Shapira 1975), and for every edge the three opposite vertices are found by binary search on the
edges' angles, which ascend along the hull (rotating calipers, Toussaint 1983): O(V log V) for all components
together.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.components.runs import expand

TURN = 8.0  # distance between components on the axis of angles, more than 2 pi
TIE = 1e-9  # relative: rectangles as small as the smallest count as equal, the first edge wins


class Extremes(NamedTuple):
    """Leftmost and rightmost pixel of every row of C components; rows of a component are consecutive. All int64."""

    owner: Tensor  # (S,) component, ascending
    y: Tensor  # (S,) row, ascending within a component
    left: Tensor  # (S,) column
    right: Tensor  # (S,) column


class Hulls(NamedTuple):
    """Vertices of C convex polygons, clockwise on the screen (y down): down the right chain, up the left one. int64."""

    owner: Tensor  # (V,)
    x: Tensor  # (V,)
    y: Tensor  # (V,)
    offset: Tensor  # (C + 1,)


class Rectangles(NamedTuple):
    """C rectangles: centre +- half[0] * axis +- half[1] * (axis turned by 90 degrees)."""

    centre: Tensor  # (C, 2) x, y
    axis: Tensor  # (C, 2) unit vector with x > 0 and |y| <= x: within 45 degrees of the rows
    half: Tensor  # (C, 2) half sides along and across the axis

    def select(self, index: Tensor) -> "Rectangles":
        """The rectangles of an index or a mask."""
        return Rectangles(*(part[index] for part in self))

    def short_side(self) -> Tensor:
        """(C,) length of the shorter side."""
        return 2 * self.half.amin(1)

    def grow(self, by: Tensor) -> "Rectangles":
        """All sides moved outwards by (C,) pixels."""
        return self._replace(half=self.half + by[:, None])

    def corners(self) -> Tensor:
        """(C, 4, 2) corners x, y: top left, top right, bottom right, bottom left."""
        along = self.axis * self.half[:, :1]
        across = _turned(self.axis) * self.half[:, 1:]
        c = self.centre
        return torch.stack([c - along - across, c + along - across, c + along + across, c - along + across], 1)


def _turned(axis: Tensor) -> Tensor:
    return torch.stack([-axis[:, 1], axis[:, 0]], 1)


def convex_hulls(extremes: Extremes, num: int) -> Hulls:
    """Strict hull vertices of `num` components, exact. A component of one row gives two vertices, perhaps equal."""
    owner, y, left, right = extremes
    right_owner, right_x, right_y = _chain(owner, -right, y)
    left_owner, left_x, left_y = _chain(owner, left, y)
    num_right = torch.bincount(right_owner, minlength=num)
    size = num_right + torch.bincount(left_owner, minlength=num)
    offset = torch.nn.functional.pad(size.cumsum(0), (1, 0))
    # Right chains keep their order and shift by the left vertices before them; left chains are reversed in place.
    place = torch.arange(len(right_owner), device=y.device)
    place = place + (offset[:-1] - (num_right.cumsum(0) - num_right)).index_select(0, right_owner)
    back = torch.arange(len(left_owner), device=y.device)
    num_left = size - num_right
    back = (offset[1:] - 1 + (num_left.cumsum(0) - num_left)).index_select(0, left_owner) - back
    total = len(right_owner) + len(left_owner)
    hull = torch.empty((3, total), dtype=torch.int64, device=y.device)
    hull[:, place] = torch.stack([right_owner, -right_x, right_y])
    hull[:, back] = torch.stack([left_owner, left_x, left_y])
    return Hulls(hull[0], hull[1], hull[2], offset)


def _chain(owner: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vertices of the hull's left side among points of ascending y; mirrored input (-x) gives the right side.

    A dropped point lies between two points of the set, so dropping many at once is safe; the ends always stay.
    """
    while len(owner) > 2:
        across = (x[1:-1] - x[:-2]) * (y[2:] - y[:-2]) - (x[2:] - x[:-2]) * (y[1:-1] - y[:-2])
        keep = torch.ones(len(owner), dtype=torch.bool, device=owner.device)
        keep[1:-1] = (across < 0) | (owner[1:-1] != owner[:-2]) | (owner[1:-1] != owner[2:])
        kept = keep.nonzero()[:, 0]
        if len(kept) == len(owner):
            break
        owner, x, y = (values.index_select(0, kept) for values in (owner, x, y))
    return owner, x, y


def smallest_rectangles(hulls: Hulls, dtype: torch.dtype) -> Rectangles:
    """Rectangle of least area around every hull, flush with one of its edges or with the rows.

    Args:
        hulls: C hulls with pixel indices as coordinates (pixel i has its centre at i).
        dtype: of the arithmetic and the result.

    Returns:
        C rectangles through the outermost pixel centres, in the same coordinates; a side may be 0.
    """
    owner, offset = hulls.owner, hulls.offset
    point = torch.stack([hulls.x, hulls.y], 1)
    index = torch.arange(len(owner), device=owner.device)
    after = index + 1
    last = after == offset[1:].index_select(0, owner)
    after = torch.where(last, offset.index_select(0, owner), after)
    dx, dy = (point.index_select(0, after) - point).unbind(1)
    # The edges along the bottom row (leftwards) and the top row (rightwards, the last of its hull) may have no length.
    flat = dy == 0
    dx = torch.where(flat, torch.where(last, dx.clamp(min=1), dx.clamp(max=-1)), dx)
    direction = torch.stack([dx, dy], 1).to(torch.float64)
    angle = torch.atan2(direction[:, 1], direction[:, 0])
    angle = torch.where(flat, torch.where(last, 2 * math.pi, math.pi), torch.where(dy < 0, angle + 2 * math.pi, angle))
    u = (direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)).to(dtype)
    point = point.to(dtype)
    ends = [(u * point.index_select(0, _opposite(owner, offset, angle, turn))).sum(1) for turn in (0.5, 1.5)]
    inwards = _turned(u)
    near = (inwards * point).sum(1)
    far = (inwards * point.index_select(0, _opposite(owner, offset, angle, 1.0))).sum(1)
    best = _least(owner, (ends[0] - ends[1]) * (far - near), len(offset) - 1)
    u, high, low, near, far = (values.index_select(0, best) for values in (u, ends[0], ends[1], near, far))
    centre = u * ((high + low) / 2)[:, None] + _turned(u) * ((near + far) / 2)[:, None]
    return _upright(Rectangles(centre, u, torch.stack([high - low, far - near], 1).clamp(min=0) / 2))


def _opposite(owner: Tensor, offset: Tensor, angle: Tensor, half_turns: float) -> Tensor:
    """For every edge the first vertex whose outgoing edge is turned by at least half_turns * 180 degrees against it."""
    wanted = angle + half_turns * math.pi
    wanted = torch.where(wanted > 2 * math.pi, wanted - 2 * math.pi, wanted)
    base = owner.to(torch.float64) * TURN
    found = torch.searchsorted(base + angle, base + wanted)
    return torch.where(found >= offset[1:].index_select(0, owner), offset.index_select(0, owner), found)


def _least(owner: Tensor, value: Tensor, num: int) -> Tensor:
    """(num,) index of the first least value of every owner, up to rounding."""
    least = torch.full((num,), math.inf, dtype=value.dtype, device=value.device)
    least.scatter_reduce_(0, owner, value, "amin")
    index = torch.arange(len(owner), device=owner.device)
    good = value <= least.index_select(0, owner) * (1 + TIE)
    first = torch.full((num,), len(owner), device=owner.device)
    return first.scatter_reduce_(0, owner, torch.where(good, index, len(owner)), "amin")


def _upright(rectangles: Rectangles) -> Rectangles:
    """The same rectangles with an axis within 45 degrees of the rows, pointing right."""
    centre, axis, half = rectangles
    steep = axis[:, 1].abs() > axis[:, 0].abs()
    axis = torch.where(steep[:, None], _turned(axis), axis)
    half = torch.where(steep[:, None], half.flip(1), half)
    return Rectangles(centre, torch.where(axis[:, :1] < 0, -axis, axis), half)


def half_pixel(rectangles: Rectangles, area: Tensor) -> Tensor:
    """(C,) pixels, 0 to 0.5, by which a rectangle through pixel centres grows to cover its component's pixels.

    Solves (w + 2 g)(h + 2 g) = area for g: a rectangle through centres is half a pixel short on each side along the
    rows (area = (w + 1)(h + 1), g = 0.5) but not at an angle, where some centre nearly touches every side (g near 0).
    On perfect shrink maps of lines 12-40 px high this gives a mean IoU with the text of 0.94 upright, 0.98 within 3
    degrees and 0.99 at any angle; always 0 (OpenCV's contour) gives 0.83, 0.97, 0.99 and always 0.5 gives 0.94, 0.87,
    0.86.
    """
    w, h = (2 * rectangles.half).unbind(1)
    root = ((w - h).square() + 4 * area.to(w.dtype)).sqrt()
    return ((root - w - h) / 4).clamp(0.0, 0.5)


def unclip_distance(rectangles: Rectangles, unclip_ratio: float) -> Tensor:
    """(C,) offset D' = A' r' / L' in pixels of DBNet's unclipping (Liao et al. 2020, arXiv 1911.08947, section 3.5).

    Moving the sides out by D' equals clipper's JT_ROUND offset followed by a minimum-area rectangle, without its
    rounding. Example: 69 x 9 and r' = 1.5: 621 * 1.5 / 156 = 5.97 px on every side.
    """
    w, h = (2 * rectangles.half).unbind(1)
    return w * h * unclip_ratio / (2 * (w + h)).clamp(min=torch.finfo(w.dtype).tiny)


def pixel_intervals(rectangles: Rectangles, height: int, width: int, tolerance: float) -> tuple[Tensor, ...]:
    """Rows of pixels whose centres (i + 0.5) lie in the rectangles, up to `tolerance` pixels outside.

    Returns:
        (I,) int64 each: rectangle, row, first column, number of columns (may be 0), clipped to the page.
    """
    (cx, cy), (ux, uy), (a, b) = (part.unbind(1) for part in rectangles)
    a, b = a + tolerance, b + tolerance
    reach = a * uy.abs() + b * ux
    first = (cy - reach - 0.5).ceil().clamp(0, height).long()
    stop = (cy + reach - 0.5).floor().add(1).clamp(0, height).long()
    owner, row = expand(first, (stop - first).clamp(min=0))
    cx, cy, ux, uy, a, b = (values.index_select(0, owner) for values in (cx, cy, ux, uy, a, b))
    dy = row + 0.5 - cy
    # |ux dx + uy dy| <= a and |ux dy - uy dx| <= b; ux >= 0.7, and without uy the second says nothing about dx.
    level = uy.abs() < torch.finfo(uy.dtype).eps
    slope = torch.where(level, 1.0, uy)
    one, two = (ux * dy - b) / slope, (ux * dy + b) / slope
    low = torch.where(level, -math.inf, torch.minimum(one, two)).maximum((-a - uy * dy) / ux)
    high = torch.where(level, math.inf, torch.maximum(one, two)).minimum((a - uy * dy) / ux)
    column = (cx + low - 0.5).ceil().clamp(0, width).long()
    beyond = (cx + high - 0.5).floor().add(1).clamp(0, width).long()
    return owner, row, column, (beyond - column).clamp(min=0)
