"""DB training targets by exact distance, in plain PyTorch: the definition of correct and the CPU path.

Per polygon of area A and perimeter L, with shrink ratio r (Liao et al. 2020, DBNet, arXiv 1911.08947; Vatti's offset):

    D     = A (1 - r^2) / L                        pixels
    d(p)  = least Euclidean distance of pixel centre p = (x + 0.5, y + 0.5) to the polygon's boundary
    core  = inside and d >= D                      -> shrink_map 1
    band  = inside, or outside and d <= D          -> counts for the threshold map
    value = thresh_min + (thresh_max - thresh_min) (1 - min(d / D, 1))       largest over polygons, thresh_min elsewhere

An inward offset with round joins IS the set of points at distance >= D, and an outward one the set within D, so this is
what clipper computes, without its integer rounding. "Inside" is the even-odd rule.

Example: a box 100 wide and 25 high, r = 0.4: D = 2500 * 0.84 / 250 = 8.4 px, so the core is 83.2 x 8.2 and the band
reaches 8.4 px out; a pixel centre 2.1 px inside the top side has the value 0.3 + 0.4 * (1 - 2.1 / 8.4) = 0.6.

How it stays fast on a CPU. Each row of a polygon's window is cut into strips of 32 pixels aligned to the canvas.
Along a strip the signed distance to an edge's line and the position along the edge are linear, so two numbers per
(edge, strip) bound the distance from below and above; only edges that can be the nearest within D are evaluated per
pixel (1.0 of 4 for a text line). Rows of 32 floats are then merged into the canvas by a row-wise maximum.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.components.runs import expand

STRIP = 32  # pixels; 32 floats = two cache lines, and long enough to pay for the culling done once per strip
MAX_STRIPS = 1 << 16  # strips drawn at once (2.1 M pixels, 8 MB per temporary): bounds memory for 1,000 large polygons
FAR = 1e30  # squared pixels, stands for infinity: the square root of inf takes 6x longer
BLOCK = 1 << 12  # rows of 32 pixels evaluated at once on a CPU: 512 KB per temporary, stays in the L2 cache
MAX_MEASURED = 1 << 22  # vertex pairs compared at once by the self-intersection test
MIN_AREA_PX2 = 1.0  # below one pixel of area a polygon is degenerate (also mmocr's rule)


class DBTargets(NamedTuple):
    """Training targets of N pages. Masks: 1 = the pixel counts in the loss."""

    shrink_map: Tensor  # (N, H, W) uint8
    shrink_mask: Tensor  # (N, H, W) uint8
    thresh_map: Tensor  # (N, H, W) float32, bfloat16 or float16
    thresh_mask: Tensor  # (N, H, W) uint8


class Rules(NamedTuple):
    """Settings of `db_targets`, checked."""

    height: int
    width: int
    shrink_ratio: float
    thresh_min: float
    thresh_max: float
    min_text_size_px: float
    mode: str


class _Polygons(NamedTuple):
    xy: Tensor  # (P, E, 2) float64 canvas pixels; short ones repeat their last vertex (zero-length edges do no harm)
    page: Tensor  # (P,) int64
    distance: Tensor  # (P,) float64, D in pixels; 1 where is_text is false
    is_text: Tensor  # (P,) bool; false: only the interior matters, it is masked out


class _Canvas(NamedTuple):
    value: Tensor  # (N * H * strips, STRIP) float: 1 - min(d / D, 1), negative outside every band
    core: Tensor  # same shape, uint8
    ignored: Tensor  # same shape, uint8
    height: int
    width: int
    strips: int  # strips per row


class _Strips(NamedTuple):
    polygon: Tensor  # (S,) int64
    canvas_row: Tensor  # (S,) int64, row of _Canvas.value
    column: Tensor  # (S,) int64, strip index within the row
    line: Tensor  # (E, S) signed distance of the strip's middle to each edge's line
    along: Tensor  # (E, S) position of the strip's middle along each edge, from the edge's middle
    crossing: Tensor  # (E, S) x of the edge's crossing with the row, from the strip's middle; -inf: does not cross
    edges: tuple[Tensor, Tensor, Tensor]  # (E, P) unit direction x and y, half length


def db_targets_reference(
    points_xy: Tensor, poly_offsets: Tensor, page_offsets: Tensor, ignore: Tensor, rules: Rules
) -> DBTargets:
    """See `kernels.db_targets.db_targets`. Computes, and returns thresh_map, in points_xy's dtype."""
    pages, device, paper = page_offsets.numel() - 1, points_xy.device, rules.mode == "paper"
    strips = -(-rules.width // STRIP)
    shape = (pages * rules.height * strips, STRIP)
    value = torch.full(shape, -1.0, dtype=points_xy.dtype, device=device)
    core, ignored = (torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(2))
    canvas = _Canvas(value, core, ignored, rules.height, rules.width, strips)
    page = torch.repeat_interleave(page_offsets.diff())
    min_size = rules.min_text_size_px if paper else None
    for xy, chosen in _groups(points_xy, poly_offsets):
        polygons = _measure(xy, page[chosen], ignore[chosen], rules.shrink_ratio, min_size)
        for part in _bounded(polygons, canvas):
            _draw(part, canvas, keep_empty=not paper)
    return _finish(canvas, pages, rules.thresh_min, rules.thresh_max, masked=paper)


def _groups(points_xy: Tensor, poly_offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields ((P, E, 2) float64 vertices, (P,) int64 polygon index), polygons of 3-4, 5-8, 9-16, ... vertices together.

    Polygons with fewer than three points or a non-finite coordinate have no interior: they are left out.
    """
    count, start = poly_offsets.diff(), poly_offsets[:-1]
    longest = int(count.max()) if count.numel() else 0
    low, high = 2, 4
    while low < longest:
        for chosen in ((count > low) & (count <= high)).nonzero().squeeze(1).split(max(1, MAX_MEASURED // high**2)):
            if not chosen.numel():
                continue
            vertices = torch.arange(int(count[chosen].max()), device=count.device)
            xy = points_xy[start[chosen, None] + torch.minimum(vertices, count[chosen, None] - 1)].double()
            finite = xy.isfinite().flatten(1).all(1)
            yield xy[finite], chosen[finite]
        low, high = high, high * 2


def _measure(xy: Tensor, page: Tensor, ignore: Tensor, shrink_ratio: float, min_size: float | None) -> _Polygons:
    """Offset distances, and which polygons are text. min_size None (baseline): everything with an area is."""
    edge = xy.roll(-1, 1) - xy
    length = edge.norm(dim=2)
    from_first = xy - xy[:, :1]
    area = 0.5 * _cross(from_first, from_first.roll(-1, 1)).sum(1).abs()
    distance = area * (1 - shrink_ratio**2) / length.sum(1)
    if min_size is None:
        is_text = distance > 0
    else:
        small = _least_extent(from_first, edge, length) < min_size
        is_text = ~(ignore | (area < MIN_AREA_PX2) | small | _self_intersects(xy, edge))
    return _Polygons(xy, page, torch.where(is_text, distance, 1.0), is_text)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _least_extent(xy: Tensor, edge: Tensor, length: Tensor) -> Tensor:
    """(P,) least extent perpendicular to an edge: a quad's short side, the width of a convex polygon."""
    normal = torch.stack((-edge[..., 1], edge[..., 0]), 2) / length.clamp_min(1e-300)[..., None]
    across = (xy[:, :, None] * normal[:, None]).sum(3)
    extent = across.amax(1) - across.amin(1)
    return extent.masked_fill(length == 0, torch.inf).amin(1)


def _self_intersects(xy: Tensor, edge: Tensor) -> Tensor:
    """(P,) bool: two edges properly cross. Neighbours share a vertex, whose side is exactly 0, so they never do."""
    side = _cross(edge[:, :, None], xy[:, None] - xy[:, :, None]).sign()  # (P, edge, vertex)
    splits = side * side.roll(-1, 2) < 0  # the line of edge i separates the ends of edge j
    return (splits & splits.transpose(1, 2)).flatten(1).any(1)


def _bounded(polygons: _Polygons, canvas: _Canvas) -> Iterator[_Polygons]:
    """Cuts a group so that the windows of one part hold about MAX_STRIPS strips (one polygon at least).

    Above 8 edges fewer: an (edge, strip) pair takes memory too.
    """
    if not polygons.page.numel():
        return
    size = polygons.xy.amax(1) - polygons.xy.amin(1) + 2 * polygons.distance[:, None]
    windows = (size[:, 0] / STRIP + 2).clamp(max=canvas.strips) * (size[:, 1] + 2).clamp(max=canvas.height)
    part = (windows.cumsum(0) * max(1, polygons.xy.shape[1] / 8) / MAX_STRIPS).floor().long()
    for count in part.unique_consecutive(return_counts=True)[1].tolist():
        yield _Polygons(*(field[:count] for field in polygons))
        polygons = _Polygons(*(field[count:] for field in polygons))


def _draw(polygons: _Polygons, canvas: _Canvas, *, keep_empty: bool) -> None:
    """Adds polygons to the canvas. keep_empty (baseline): a polygon whose core vanished still has its band."""
    strips = _cut(polygons, canvas)
    polygon, row = strips.polygon, strips.canvas_row
    if not polygon.numel():
        return
    inside, core, value = _pixels(polygons, strips, canvas)
    has_core = core.view(torch.int64).ne(0).any(1)  # eight pixels at a time
    alive = polygons.is_text
    if not keep_empty:
        alive = alive & torch.zeros_like(alive).index_fill_(0, polygon.index_select(0, has_core.nonzero()[:, 0]), True)
    alive = alive.index_select(0, polygon)
    dead = (~alive).nonzero().squeeze(1)
    if not keep_empty:
        _merge(canvas.ignored, row.index_select(0, dead), inside.view(torch.uint8).index_select(0, dead))
    _merge(canvas.value, row, value.index_fill_(0, dead, -1.0))
    cored = (has_core & alive).nonzero().squeeze(1)
    _merge(canvas.core, row.index_select(0, cored), core.view(torch.uint8).index_select(0, cored))


def _pixels(polygons: _Polygons, strips: _Strips, canvas: _Canvas) -> tuple[Tensor, Tensor, Tensor]:
    """(S, STRIP) inside bool, core bool, and 1 - min(d / D, 1) in the band, negative outside it."""
    dtype, device = canvas.value.dtype, canvas.value.device
    offset = torch.arange(STRIP, dtype=dtype, device=device) - (STRIP - 1) / 2
    inside = _inside(strips, offset)
    if canvas.width % STRIP:  # the last strip of a row hangs over the canvas: no core there
        inside &= strips.column[:, None] * STRIP + offset < canvas.width - STRIP / 2
    value, core = inside.view(torch.uint8).to(dtype), torch.empty_like(inside)  # bool to float takes 9x longer
    distance = torch.where(polygons.is_text, polygons.distance, -1.0).to(dtype)
    squared = _squared_distance(strips, distance, offset)
    limit = distance.abs()[strips.polygon, None]
    for ratio, floor, hit, within, most in zip(*(_blocks(t) for t in (squared, value, core, inside, limit))):
        ratio.sqrt_().div_(most)
        torch.maximum(floor.sub_(1), 1 - ratio, out=floor)
        torch.logical_and(within, ratio.ge_(1).bool(), out=hit)  # in place: 3x faster than to bool
    return inside, core, value


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(BLOCK if rows.device.type == "cpu" else max(1, len(rows)))


def _merge(into: Tensor, row: Tensor, values: Tensor) -> None:
    into.scatter_reduce_(0, row[:, None].expand(-1, STRIP), values, "amax")


def _cut(polygons: _Polygons, canvas: _Canvas) -> _Strips:
    """Cuts the windows into strips and places every edge relative to every strip."""
    dtype = canvas.value.dtype
    reach = torch.where(polygons.is_text, polygons.distance, 0.0)
    origin = polygons.xy.amin(1).floor()  # edges are placed from here: float32 then keeps 1e-5 px at any canvas size
    start = (polygons.xy - origin[:, None]).to(dtype).permute(2, 1, 0).contiguous()  # (2, E, P)
    ax, ay = start
    ux, uy, half = edges = _directions(start)
    first_row = (polygons.xy[..., 1].amin(1) - reach - 0.5).ceil().clamp(0, canvas.height).long()
    last_row = (polygons.xy[..., 1].amax(1) + reach - 0.5).floor().clamp(-1, canvas.height - 1).long()
    of_row, row = expand(first_row, (last_row - first_row + 1).clamp_min(0))  # (R,)
    origin_x, origin_y = origin.t().contiguous()
    y = (row + 0.5 - origin_y.index_select(0, of_row)).to(dtype)
    down = y - _at(ay, of_row)  # (E, R)
    left, right, crossing = _row_extent(start, of_row, y, reach.to(dtype).index_select(0, of_row))
    shift = origin_x.index_select(0, of_row)
    first = (left + shift).floor().clamp(0, canvas.width).long() // STRIP
    past = (right + shift).ceil().clamp(0, canvas.width).long() + STRIP - 1
    of_strip, column = expand(first, (past // STRIP - first).clamp_min(0))  # (S,)
    polygon = of_row.index_select(0, of_strip)
    x = (column * STRIP + STRIP / 2 - shift.index_select(0, of_strip)).to(dtype)
    line = _at(_at(ux, of_row) * down + _at(uy * ax, of_row), of_strip) - _at(uy, polygon) * x
    along = _at(_at(uy, of_row) * down - _at(ux * ax + half, of_row), of_strip) + _at(ux, polygon) * x
    canvas_row = ((polygons.page.index_select(0, of_row) * canvas.height + row) * canvas.strips).index_select(
        0, of_strip
    ) + column
    return _Strips(polygon, canvas_row, column, line, along, _at(crossing, of_strip).sub_(x), edges)


def _directions(start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(E, P) unit direction x and y, and half length, of every edge; a zero-length edge points along x."""
    edge = start.roll(-1, 1) - start
    length = torch.hypot(edge[0], edge[1])
    zero = length == 0
    safe = length.masked_fill(zero, 1.0)
    return (edge[0] / safe).masked_fill(zero, 1.0), edge[1] / safe, 0.5 * length


def _at(per_item: Tensor, item: Tensor) -> Tensor:
    """(E, items) -> (E, M); index_select takes a fifth of the time of per_item[:, item]."""
    return per_item.index_select(1, item)


def _row_extent(start: Tensor, of_row: Tensor, y: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: left and right end of the pixels that can lie within reach (R,), and where edges cross it (E, R)."""
    (ax, ay), (bx, by) = start, start.roll(-1, 1)
    flat = (by - ay).abs() < 1e-3  # a slope would amplify rounding: take the whole edge
    slope = torch.where(flat, 0.0, (bx - ax) / torch.where(flat, 1.0, by - ay))
    low, high = _at(torch.minimum(ay, by), of_row), _at(torch.maximum(ay, by), of_row)
    x0, y0, k = _at(ax, of_row), _at(ay, of_row), _at(slope, of_row)
    at_low = x0 + (torch.maximum(low, y - reach) - y0) * k
    at_high = x0 + (torch.minimum(high, y + reach) - y0) * k
    wide = _at((bx - ax).abs().masked_fill(~flat, 0.0), of_row)
    far = (low > y + reach) | (high < y - reach)
    left = (torch.minimum(at_low, at_high) - wide).masked_fill(far, torch.inf).amin(0) - reach
    right = (torch.maximum(at_low, at_high) + wide).masked_fill(far, -torch.inf).amax(0) + reach
    x_cross = x0 + (y - y0) * _at((bx - ax) / (by - ay), of_row)
    return left - 0.5, right + 0.5, torch.where((low > y) | (high <= y), -torch.inf, x_cross)


def _inside(strips: _Strips, offset: Tensor) -> Tensor:
    """(S, STRIP) bool, even-odd: edges that cross the row to the right of the pixel centre are counted."""
    crosses_right = strips.crossing > offset[-1]  # of every pixel of the strip
    odd = torch.zeros(crosses_right.shape[1], dtype=torch.bool, device=offset.device)
    for edge in crosses_right:
        odd ^= edge
    inside = odd[:, None].repeat(1, STRIP)
    mixed = ((strips.crossing > offset[0]) ^ crosses_right).any(0).nonzero().squeeze(1)
    parity = torch.zeros(mixed.numel(), STRIP, dtype=torch.bool, device=offset.device)
    for crossing in strips.crossing.index_select(1, mixed):
        parity ^= crossing[:, None] > offset
    return inside.index_copy_(0, mixed, parity)


def _squared_distance(strips: _Strips, distance: Tensor, offset: Tensor) -> Tensor:
    """(S, STRIP) d^2 in square pixels where d is at most D; elsewhere any number above D^2.

    distance (P,): D in pixels, negative for polygons that are not text: no edge is near them.
    """
    edges = strips.edges[0].shape[1]
    ux, uy, half, line, along = (part.reshape(-1) for part in (*strips.edges, strips.line, strips.along))
    polygon = strips.polygon
    squared = torch.full((polygon.numel(), STRIP), FAR, dtype=offset.dtype, device=offset.device)
    for near, has_end in zip(_near_pairs(strips, distance.index_select(0, polygon)), (False, True)):
        for pair in _blocks(near):
            strip = pair % polygon.numel()
            edge = pair // polygon.numel() * edges + polygon.index_select(0, strip)  # into the flattened (E, P)
            away = uy.index_select(0, edge)[:, None] * -offset
            away.add_(line.index_select(0, pair)[:, None]).square_()
            if has_end:
                past = ux.index_select(0, edge)[:, None] * offset
                past.add_(along.index_select(0, pair)[:, None]).abs_()
                past.sub_(half.index_select(0, edge)[:, None]).clamp_min_(0)
                away.addcmul_(past, past)
            squared.scatter_reduce_(0, strip[:, None].expand(-1, STRIP), away, "amin")
    return squared


def _near_pairs(strips: _Strips, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Flat (edge, strip) indices of the edges that may be nearest to a pixel of the strip, within limit pixels.

    First those beside which the whole strip lies, so that only the line's distance matters (most of them, at a third of
    the work per pixel), then those past an end of which some pixels lie.
    """
    ux, uy, half = strips.edges
    polygon, reach = strips.polygon, (STRIP - 1) / 2
    across, beyond = strips.line.abs(), strips.along.abs().sub_(_at(half, polygon))
    swing_across, swing_along = _at(uy.abs() * reach, polygon), _at(ux.abs() * reach, polygon)
    least = (across - swing_across).clamp_min_(0).square_().add_((beyond - swing_along).clamp_min_(0).square_())
    past_end = (beyond + swing_along).clamp_min_(0)
    most = (across + swing_across).square_().addcmul_(past_end, past_end)
    bound = torch.minimum(most.amin(0), limit * limit.abs())  # negative limit: nothing is near
    near = least <= bound * 1.0001 + 1e-3 * (limit > 0)
    beside = past_end == 0
    return (near & beside).flatten().nonzero().squeeze(1), (near & ~beside).flatten().nonzero().squeeze(1)


def _finish(canvas: _Canvas, pages: int, thresh_min: float, thresh_max: float, *, masked: bool) -> DBTargets:
    def crop(rows: Tensor) -> Tensor:
        return rows.view(pages, canvas.height, canvas.strips * STRIP)[:, :, : canvas.width].contiguous()

    band = torch.ones_like(canvas.ignored)
    bits = torch.finfo(canvas.value.dtype).bits
    integers = torch.int32 if bits == 32 else torch.int64
    for value, counts, within in zip(_blocks(canvas.value), _blocks(canvas.ignored), _blocks(band)):
        counts.bitwise_xor_(1)
        if masked:  # the sign bit is 1 where nothing was drawn; value >= 0 is not vectorised, 0.55 ms a page, not 0.2
            within.copy_((value.view(integers) >> (bits - 1)).add_(1)).mul_(counts)
        value.clamp_min_(0).mul_(thresh_max - thresh_min).add_(thresh_min)
    return DBTargets(crop(canvas.core), crop(canvas.ignored), crop(canvas.value), crop(band))
