"""What the Triton kernels of the DB loss share: how they walk over the pixels, read the maps, and compute sigmoids.

Pixels are read in tiles of 2048, 8 neighbours a lane: one 16-byte load of 2-byte logits, two of float32 ones, 8 bytes
of each uint8 map. With 16 a lane, for 16 bytes of those too, the kernels take up to 150 registers instead of 95, one
spills, and fewer programs fit. Sizes that 16 does not divide are read one pixel at a time.

Logits may be strided views: a page must be a run of pixels at one distance, 1 for logits[:, 0] of a contiguous
(N, 2, H, W) tensor, 2 for one in channels_last; anything else is copied first.

Example: logits[:, 1] of a contiguous (16, 2, 1280, 1280) tensor is 16 pages of 1638400 pixels, 3276800 elements from
page to page, 1 from pixel to pixel, read in 16 x 800 tiles.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # logits the kernels read
TILE = 2048
WARPS = 8
LANES = tl.constexpr(32 * WARPS)


class Pages(NamedTuple):
    """Two logit maps as `pages` runs of `pixels` pixels; the other maps are contiguous in the same order."""

    x: Tensor
    y: Tensor
    pages: int
    pixels: int  # of one page
    x_batch: int  # elements from page to page
    y_batch: int
    x_step: int  # elements from pixel to pixel
    y_step: int

    @property
    def tiles_per_page(self) -> int:
        return triton.cdiv(self.pixels, TILE)

    @property
    def tiles(self) -> int:
        return self.pages * self.tiles_per_page

    @property
    def geometry(self) -> tuple[int, ...]:
        """The five integers that every kernel takes."""
        return self.pixels, self.tiles, self.tiles_per_page, self.x_batch, self.y_batch


def lay_out(x: Tensor, y: Tensor) -> Pages:
    """(N, H, W) logits as pages; copies a map only where a page is not a run of pixels at one distance.

    Tiles never cross pages, so the sums' order, and with it the result to the last bit, is the same for any strides.
    """
    pages, height, width = x.shape
    (x, x_batch, x_step), (y, y_batch, y_step) = _run(x), _run(y)
    return Pages(x, y, pages, height * width, x_batch, y_batch, x_step, y_step)


def _run(logits: Tensor) -> tuple[Tensor, int, int]:
    """(logits or a contiguous copy, elements from page to page, elements from pixel to pixel)."""
    _, height, width = logits.shape
    batch, row, column = logits.stride()
    step = column if width > 1 else row if height > 1 else 1  # the stride of a dimension of one is anything
    if (height > 1 and width > 1 and row != width * column) or step >= 1 << 20:  # int32 holds a tile's 2048 steps
        return logits.contiguous(), height * width, 1
    return logits, batch, step


@triton.jit
def tile_pixels(tile, pixels, tiles_per_page, TILE: tl.constexpr):
    """(page, first pixel in it, both int64; int32 mask of the tile's pixels that the page has)."""
    page = tile // tiles_per_page
    first = (tile - page * tiles_per_page).to(tl.int64) * TILE
    return page.to(tl.int64), first, tl.arange(0, TILE) < tl.minimum(pixels - first, TILE).to(tl.int32)


@triton.jit
def load_logits(logits, page, first, inside, batch, STEP: tl.constexpr):
    """Float32 logits of a tile, 0 outside the page."""
    at = tl.arange(0, inside.shape[0]) * STEP  # small: the large part of the address is one scalar a tile
    return tl.load(logits + (page * batch + first * STEP) + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_map(pixel_map, flat, inside):
    """A tile of a contiguous map from its pixel `flat` on, 0 outside the page."""
    return tl.load(pixel_map + flat + tl.arange(0, inside.shape[0]), mask=inside, other=0)


@triton.jit
def store_map(pixel_map, flat, inside, values):
    """Writes a tile of a contiguous map from its pixel `flat` on."""
    tl.store(pixel_map + flat + tl.arange(0, inside.shape[0]), values, mask=inside)


@triton.jit
def load_classes(shrink, shrink_mask, flat, inside, MASKED: tl.constexpr):
    """(positive: G M, counted: M) of a tile, false outside the page."""
    positive = load_map(shrink, flat, inside) != 0
    counted = inside
    if MASKED:
        counted = load_map(shrink_mask, flat, inside) != 0
        positive = positive & counted
    return positive, counted


@triton.jit
def load_band(thresh, thresh_mask, flat, inside, MASKED: tl.constexpr):
    """(float32 threshold map t, whether it counts: M') of a tile."""
    banded = inside
    if MASKED:
        banded = load_map(thresh_mask, flat, inside) != 0
    return load_map(thresh, flat, inside).to(tl.float32), banded


@triton.jit
def exp(x):
    """exp(x), 0 below 2^-126: exp2 is one instruction behind its product, tl.exp five, to keep the denormals."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def reciprocal(x):
    """1 / x within an ulp for 1 <= x < 2^127: one Newton step on rsqrt squared.

    Four instructions. A division takes nine, to guard against denormals and overflow, and is 2 ulp (div.full). With
    this and exp2, pass 1 has 80 instructions a pixel instead of 97, and the gradient 81 instead of 107 (sm_90).
    """
    root = tl.rsqrt(x)
    close = root * root
    return tl.fma(close, tl.fma(-x, close, 1.0), close)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), 2^-125 where it is less."""
    return reciprocal(1.0 + tl.exp2(tl.minimum(x * -1.4426950408889634, 125.0)))


@triton.jit
def sigmoid_parts(x):
    """(sigmoid(x), sigmoid(-x), their product) without cancellation: each is right to a few ulp for any x."""
    small = exp(-tl.abs(x))
    near = reciprocal(1.0 + small)
    far = small * near
    up = x >= 0
    return tl.where(up, near, far), tl.where(up, far, near), near * far


@triton.jit
def cross_entropy(x, positive):
    """log(1 + exp(x)) - G x = log(1 + u) + max(x or -x, 0) with u = exp(-|x|) in [0, 1].

    log(1 + u) is u times a polynomial fitted to log(1 + u) / u with relative error 5e-9, 1.6 ulp in all as computed:
    log of the rounded 1 + u would lose a loss of 1e-5 (a well learned pixel) to 0.6 percent, and a log1p exists only in
    libdevice, which the interpreter lacks.
    """
    u = exp(-tl.abs(x))
    series = tl.fma(u, -0.00324390898, 0.0198509451)
    series = tl.fma(u, series, -0.0569585785)
    series = tl.fma(u, series, 0.106035598)
    series = tl.fma(u, series, -0.153055370)
    series = tl.fma(u, series, 0.196759209)
    series = tl.fma(u, series, -0.249541298)
    series = tl.fma(u, series, 0.333299607)
    series = tl.fma(u, series, -0.499999017)
    series = tl.fma(u, series, 1.0)
    return tl.fma(u, series, tl.maximum(tl.where(positive, -x, x), 0.0))
