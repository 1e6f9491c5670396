"""DB training targets as Triton kernels. The definition, its symbols and its source are in `reference.py`.

    kernel   programs                          each does
    measure  1 per polygon                     D, text or masked out, the tiles it can touch; looks for a core pixel
    bin      1 per word and BINNED tiles       bit i of a tile's word = the box of the word's polygon i touches the tile
    draw     1 per page and tile of 32 x 32    its polygons from the bits; all four maps of the tile, written once

Per pixel of a polygon in a tile, with s the least squared distance to its edges:

    ratio = s / D^2,   core = inside and ratio >= 1,   band = inside or ratio <= 1

The tile keeps the least ratio over its bands, held at 1, so that one square root a pixel is enough:
value = thresh_min + (thresh_max - thresh_min) (1 - sqrt(least ratio)). `measure` looks for the core by the function
that `draw` uses, on the same tiles, so a polygon that counts as text has a core pixel on the canvas in both.

Vertices are placed relative to the middle of the tile in float32, so precision depends on how long an edge is (1e-4 px
at 1,000 px), not on where on a large canvas it lies. An edge further than D from the tile is not measured, and one that
passes none of its rows or lies wholly left of it is not counted for "inside". Where coordinates exceed 1e15 px squares
overflow: what they draw is undefined.

Bytes. Reads: a few hundred a tile. Writes: 3 a pixel for the uint8 maps and 2 for a bfloat16 threshold map. For 16 x
1280 x 1280: 131 MB, 30 us at 4.3 TB/s. Arithmetic weighs more: with 100 lines a page a tile sees 0.75 polygons and half
of their edges are near, 7 instructions a pixel each. That, the setup of every edge and the writing are about 2,000
instructions of a warp a tile, 60 us of an H100's issue slots (counted in the machine code, not timed). So products and
sums are fused by hand in the inner loop (10 instructions otherwise), which `runtime.launch` leaves apart.

Words. Page n of P_n polygons has ceil(P_n / 32) words a tile, from word page_offsets[n] // 32 + n on: the words before
are never more, as each page rounds up by at most 31 / 32. So P // 32 + N words hold all, a size known from shapes.

Example: 40 x 70 pixels are 3 x 2 tiles of 32. The box (4, 4) to (60, 24) has D = 56 * 20 * 0.84 / 152 = 6.19 and can
touch pixels up to 66.19, so its tiles are columns 0 to 2 of row 0, and of the tiles' words 0, 1 and 2 have its bit. The
search for its core starts in tile 1 and ends there. Tiles 3 to 5 have no bit set: draw writes 0, 1, thresh_min and 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime
from kernels.db_targets.measure import drawable, extremes, offset_distance, span
from kernels.db_targets.reference import DBTargets, Rules

TILE = 32  # pixels; 2 warps hold 16 neighbouring pixels a thread: 16 bytes of a uint8 map, twice 16 of bfloat16
CHUNK = 16  # vertices measured at once: a quad fills a quarter of it, 256 pairs are 2 a thread
BINNED = 64  # tiles a program of `bin` compares with its 32 boxes
PAGES = 256  # pages looked at at once, to find the page of a word
FAR = tl.constexpr(1e30)  # squared pixels, stands for infinity
LEAST_DISTANCE = tl.constexpr(1e-12)  # pixels, lower bound of D: D^2 stays a normal float32
CORE, MASKED = tl.constexpr(1), tl.constexpr(-(2**31))  # bits of a pixel; the second is the sign that `odd` has
MAX_REGISTERS = 128  # of a thread of `draw`: 16 warps a processor. ptxas takes 167 if it may, which leaves 12
POINT = tl.constexpr(1e-30)  # squared pixels: a shorter edge is a point
OUTSIDE = tl.constexpr(2.0)  # ratio of a pixel in no band


@triton.jit
def polygon_on_tile(points, start, count, distance, tile_x, tile_y, TILE: tl.constexpr):
    """(x, y) int32 odd, negative where inside, and float32 ratio, large beyond D. distance: D in pixels, or negative.

    A negative distance asks for "inside" only. x comes first: Triton then gives a thread pixels of one row, for which
    all that belongs to an edge and a row is computed once.
    """
    offset = tl.arange(0, TILE) + (0.5 - TILE // 2)  # pixel centres from the tile's middle, exact
    column, row = offset[:, None], offset[None, :]
    edge_of_tile: tl.constexpr = TILE / 2 - 0.5
    middle_x = tile_x * TILE + TILE // 2
    middle_y = tile_y * TILE + TILE // 2
    squared = tl.full((TILE, TILE), FAR, tl.float32)
    odd = tl.full((TILE, TILE), 0, tl.int32)
    reach = distance + 0.7072 * TILE  # from the tile's middle to an edge that is within D of one of its pixels
    last = points + 2 * (start + count - 1)
    x1, y1 = tl.load(last) - middle_x, tl.load(last + 1) - middle_y
    for vertex in range(count):
        x0, y0 = x1, y1
        at = points + 2 * (start + vertex)
        x1, y1 = tl.load(at) - middle_x, tl.load(at + 1) - middle_y
        edge_x, edge_y = x1 - x0, y1 - y0
        if distance > 0:
            length2 = edge_x * edge_x + edge_y * edge_y
            point = length2 < POINT
            inverse = tl.rsqrt(tl.maximum(length2, POINT))
            unit_x, unit_y = tl.where(point, 1.0, edge_x * inverse), tl.where(point, 0.0, edge_y * inverse)
            half = 0.5 * length2 * inverse
            across = unit_y * x0 - unit_x * y0  # of the tile's middle to the edge's line, and along the line from
            along = -(unit_x * x0 + unit_y * y0) - half  # the edge's middle
            past = tl.maximum(tl.abs(along) - half, 0.0)
            if across * across + past * past <= reach * reach:
                away = tl.fma(column, -unit_y, tl.fma(row, unit_x, across))
                beyond = tl.maximum(tl.abs(tl.fma(column, unit_x, tl.fma(row, unit_y, along))) - half, 0.0)
                squared = tl.minimum(squared, tl.fma(away, away, beyond * beyond))
        low, high = tl.minimum(y0, y1), tl.maximum(y0, y1)
        passes = (low < high) & (low <= edge_of_tile) & (high > -edge_of_tile)
        if passes & (tl.maximum(x0, x1) > -edge_of_tile):
            crossing = tl.where((low <= row) & (row < high), x0 + (row - y0) * (edge_x / edge_y), -FAR)
            odd = odd ^ (column - crossing).to(tl.int32, bitcast=True)  # the sign bit: one more edge right of the pixel
    return odd, squared * (1.0 / (distance * distance))


@triton.jit
def _has_core(points, start, count, distance, first_x, last_x, first_y, last_y, height, width, TILE: tl.constexpr):
    """1 where a pixel of the canvas lies in the core, else 0. Looks at tiles from the middle one on."""
    across, down = last_x - first_x + 1, last_y - first_y + 1
    middle = down // 2 * across + across // 2
    found, step = 0, 0
    while (found == 0) & (step < across * down):
        tile = (middle + step) % (across * down)
        tile_x, tile_y = first_x + tile % across, first_y + tile // across
        odd, ratio = polygon_on_tile(points, start, count, distance, tile_x, tile_y, TILE)
        x, y = tile_x * TILE + tl.arange(0, TILE)[:, None], tile_y * TILE + tl.arange(0, TILE)[None, :]
        core = (odd < 0) & (ratio >= 1) & (x < width) & (y < height)
        found = tl.max(tl.max(core.to(tl.int32), 1), 0)
        step += 1
    return found


@triton.jit
def _pixels(low, high, reach, size):
    """First and last pixel along one axis whose centre can lie in [low - reach, high + reach], on the canvas."""
    first = tl.minimum(tl.maximum(tl.ceil(low - reach - 0.5), 0.0), size)
    last = tl.minimum(tl.maximum(tl.floor(high + reach - 0.5), -1.0), size - 1)
    return first.to(tl.int32), last.to(tl.int32)


@triton.jit(do_not_specialize=["num_points"])
def measure_kernel(points, poly_offsets, ignore, boxes, distances, num_points, height, width,
    SHRINK: tl.constexpr, MIN_SIZE: tl.constexpr, PAPER: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """boxes[p] = first and last tile column, first and last tile row; distances[p] = D, or -1 where masked out."""
    polygon = tl.program_id(0)
    start, count = span(poly_offsets, polygon, num_points)
    box = boxes + 4 * polygon.to(tl.int64)
    distance, first_x, last_x, first_y, last_y = -1.0, 0, -1, 0, -1  # no tile: it leaves no trace
    if drawable(points, start, count, CHUNK):
        area, perimeter, left, right, top, bottom = extremes(points, start, count, CHUNK)
        ignored = tl.load(ignore + polygon).to(tl.int32)
        exact = offset_distance(points, start, count, area, perimeter, ignored, SHRINK, MIN_SIZE, PAPER, CHUNK)
        reach = tl.maximum(exact, 0.0)
        x0, x1 = _pixels(left, right, reach, width)
        y0, y1 = _pixels(top, bottom, reach, height)
        distance = tl.where(exact > 0, tl.maximum(exact.to(tl.float32), LEAST_DISTANCE), -1.0)
        if (x0 <= x1) & (y0 <= y1):
            first_x, last_x, first_y, last_y = x0 // TILE, x1 // TILE, y0 // TILE, y1 // TILE
            if PAPER:  # noqa: SIM102 - the first is decided when compiling, the second by the device
                if distance > 0:
                    found = _has_core(
                        points, start, count, distance, first_x, last_x, first_y, last_y, height, width, TILE
                    )
                    distance = tl.where(found > 0, distance, -1.0)
    tl.store(box, first_x)
    tl.store(box + 1, last_x)
    tl.store(box + 2, first_y)
    tl.store(box + 3, last_y)
    tl.store(distances + polygon, distance)


@triton.jit
def _tile_words(first, count, page, tile, tiles):
    """Where the words of a tile begin. Those of one tile are neighbours: all but the first come from the L1 cache."""
    return (first // 32 + page) * tiles + tile * ((count + 31) // 32).to(tl.int64)


@triton.jit(do_not_specialize=["pages", "polygons"])
def bin_kernel(boxes, page_offsets, words, pages, polygons, tiles_x, tiles, PAGES: tl.constexpr, BINNED: tl.constexpr):
    """Bits of the polygons of one word whose boxes hold a tile of their page, for BINNED tiles."""
    word = tl.program_id(0)
    page = -1  # the last page whose first word is at or before this one
    for first in range(0, pages, PAGES):
        index = first + tl.arange(0, PAGES)
        begin = tl.load(page_offsets + index, mask=index < pages, other=0)
        begin = tl.minimum(tl.maximum(begin, 0), polygons) // 32 + index
        page += tl.sum(((begin <= word) & (index < pages)).to(tl.int32), 0)
    page = tl.maximum(page, 0)
    first, count = span(page_offsets, page, polygons)
    rank = (word - (first // 32 + page)) * 32
    if (rank >= 0) & (rank < count):  # else no page's word: nobody reads it
        bit = tl.arange(0, 32)
        there = rank + bit < count
        box = boxes + 4 * (first + rank + bit)[None, :]
        first_x = tl.load(box, mask=there[None, :], other=0)
        last_x = tl.load(box + 1, mask=there[None, :], other=-1)
        first_y = tl.load(box + 2, mask=there[None, :], other=0)
        last_y = tl.load(box + 3, mask=there[None, :], other=-1)
        tile = tl.program_id(1) * BINNED + tl.arange(0, BINNED)
        x, y = (tile % tiles_x)[:, None], (tile // tiles_x)[:, None]
        touches = (x >= first_x) & (x <= last_x) & (y >= first_y) & (y <= last_y)
        bits = tl.sum(touches.to(tl.uint32) << bit.to(tl.uint32)[None, :], 1)
        at = _tile_words(first, count, page, tile, tiles) + rank // 32
        tl.store(words + at, bits.to(tl.int32, bitcast=True), mask=tile < tiles)


@triton.jit
def _add_polygons(bits, polygon, points, poly_offsets, distances, num_points, tile_x, tile_y, least, flags,
    TILE: tl.constexpr,
):  # fmt: skip
    """Adds the polygons `polygon` + i, for every set bit i, to the tile.

    least: the least ratio over the bands, held at 1 inside. flags: int32, CORE is set in a core, and MASKED inside a
    polygon that is masked out.
    """
    while bits != 0:
        lowest = bits & (0 - bits)  # a power of two: float32 holds it exactly, and its exponent is the bit's index
        index = (lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        bits = bits & (bits - 1)
        distance = tl.load(distances + polygon + index)
        start, count = span(poly_offsets, polygon + index, num_points)
        odd, ratio = polygon_on_tile(points, start, count, distance, tile_x, tile_y, TILE)
        if distance > 0:
            least = tl.minimum(least, tl.where(odd < 0, tl.minimum(ratio, 1.0), ratio))
            flags = flags | tl.where((odd < 0) & (ratio >= 1), CORE, 0)
        else:
            flags = flags | (odd & MASKED)
    return least, flags


@triton.jit
def _write(shrink_map, shrink_mask, thresh_map, thresh_mask, at, here, core, counts, band, value):
    tl.store(shrink_map + at, core.to(tl.uint8), mask=here)
    tl.store(shrink_mask + at, counts.to(tl.uint8), mask=here)
    tl.store(thresh_map + at, value.to(thresh_map.dtype.element_ty), mask=here)
    tl.store(thresh_mask + at, band.to(tl.uint8), mask=here)


@triton.jit(do_not_specialize=["num_points", "polygons"])
def draw_kernel(points, poly_offsets, page_offsets, words, distances, shrink_map, shrink_mask, thresh_map,
    thresh_mask, num_points, polygons, height, width, tiles_x, tiles, thresh_min, thresh_range,
    PAPER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Writes one tile of the four maps of one page."""
    page, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    tile_x, tile_y = tile % tiles_x, tile // tiles_x
    first, count = span(page_offsets, page, polygons)
    word = words + _tile_words(first, count, page, tile, tiles)
    least = tl.full((TILE, TILE), OUTSIDE, tl.float32)
    flags = tl.full((TILE, TILE), 0, tl.int32)
    seen = 0
    for rank in range(0, count, 32):
        bits = tl.load(word + rank // 32)
        seen = seen | bits
        least, flags = _add_polygons(
            bits.to(tl.uint32, bitcast=True), first + rank, points, poly_offsets, distances, num_points,
            tile_x, tile_y, least, flags, TILE,
        )  # fmt: skip
    x, y = tile_x * TILE + tl.arange(0, TILE)[:, None], tile_y * TILE + tl.arange(0, TILE)[None, :]
    at = (page.to(tl.int64) * height + y) * width + x
    here = (x < width) & (y < height)
    none = tl.full((TILE, TILE), 0, tl.int1)
    everywhere = none == 0
    if seen == 0:  # half of the tiles of a text page
        value = tl.full((TILE, TILE), 0.0, tl.float32) + thresh_min
        band = none if PAPER else everywhere
        _write(shrink_map, shrink_mask, thresh_map, thresh_mask, at, here, none, everywhere, band, value)
    else:
        value = (1.0 - tl.sqrt(tl.minimum(least, 1.0))) * thresh_range + thresh_min
        counts = flags >= 0 if PAPER else everywhere
        band = counts & (least <= 1) if PAPER else everywhere
        core = (flags & CORE) != 0
        _write(shrink_map, shrink_mask, thresh_map, thresh_mask, at, here, core, counts, band, value)


def db_targets_triton(
    points_xy: Tensor,
    poly_offsets: Tensor,
    page_offsets: Tensor,
    ignore: Tensor,
    rules: Rules,
    thresh_dtype: torch.dtype,
) -> DBTargets:
    """See `kernels.db_targets.db_targets`. Offsets are not checked but held within range, so no read leaves the arrays.

    Three launches, none of whose sizes depends on a value; nothing is read back to the host.
    """
    points, poly_offsets, page_offsets = points_xy.contiguous(), poly_offsets.contiguous(), page_offsets.contiguous()
    pages, polygons, num_points = page_offsets.numel() - 1, ignore.numel(), points.shape[0]
    height, width, shrink_ratio, thresh_min, thresh_max, min_text_size_px, mode = rules
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    tiles, num_words = tiles_x * tiles_y, polygons // 32 + pages
    shrink_map, shrink_mask, thresh_mask = (
        torch.empty(pages, height, width, dtype=torch.uint8, device=points.device) for _ in range(3)
    )
    thresh_map = torch.empty(pages, height, width, dtype=thresh_dtype, device=points.device)
    boxes = torch.empty(polygons, 4, dtype=torch.int32, device=points.device)
    distances = torch.empty(polygons, dtype=torch.float32, device=points.device)
    # Zero: with wrong offsets `bin` skips words that `draw` reads, and what lay there would be taken for polygons.
    words = torch.zeros(num_words, tiles, dtype=torch.int32, device=points.device)
    paper = mode == "paper"
    runtime.launch(
        measure_kernel, (polygons,),
        points, poly_offsets, ignore.contiguous(), boxes, distances, num_points, height, width,
        num_warps=4, SHRINK=1 - shrink_ratio**2, MIN_SIZE=min_text_size_px, PAPER=paper, TILE=TILE, CHUNK=CHUNK,
    )  # fmt: skip
    runtime.launch(
        bin_kernel, (num_words if polygons and pages else 0, -(-tiles // BINNED)),
        boxes, page_offsets, words, pages, polygons, tiles_x, tiles,
        num_warps=4, PAGES=PAGES, BINNED=BINNED,
    )  # fmt: skip
    runtime.launch(
        draw_kernel, (pages * tiles,),
        points, poly_offsets, page_offsets, words, distances, shrink_map, shrink_mask, thresh_map, thresh_mask,
        num_points, polygons, height, width, tiles_x, tiles, thresh_min, thresh_max - thresh_min,
        num_warps=2, maxnreg=MAX_REGISTERS, PAPER=paper, TILE=TILE,
    )  # fmt: skip
    return DBTargets(shrink_map, shrink_mask, thresh_map, thresh_mask)
