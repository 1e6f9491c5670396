"""The approximate binary map B = sigmoid(k (sigmoid(x) - sigmoid(y))) of the logits x, y, for inspection and drawing.

Grid: 8 programs an SM stride over tiles of 2048 pixels, each reading both logits and writing B in float32. bfloat16
logits: 4 + 4 bytes a pixel; 16 pages of 1280 x 1280 are 210 MB, at least 49 us at 4.3 TB/s.

Worked example, k = 50: x = 0 and y = -0.4 give P = 0.5, T = 0.4013, so B = sigmoid(4.93) = 0.9929: a probability a
tenth above its threshold is text almost surely.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime
from kernels.db_loss.pixels import TILE, WARPS, lay_out, load_logits, sigmoid, store_map, tile_pixels

PER_SM = 8  # 32 to 40 registers a lane: that many are there at once


def binary_map_reference(x: Tensor, y: Tensor, db_k: float) -> Tensor:
    """B in plain PyTorch: (N, H, W) float32 from logits of any float dtype, computed in float32 or float64."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(dtype).sigmoid() - y.to(dtype).sigmoid()).mul_(db_k).sigmoid_().float().contiguous()


def binary_map_kernel(x: Tensor, y: Tensor, db_k: float) -> Tensor:
    """B by the kernel: contiguous (N, H, W) float32 from logits of one of `pixels.DTYPES`."""
    pages = lay_out(x, y)
    binary = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    programs = runtime.num_programs(x.device, PER_SM, pages.tiles)
    constants = {"X_STEP": pages.x_step, "Y_STEP": pages.y_step, "TILE": TILE}
    given = (pages.x, pages.y, binary, *pages.geometry, db_k)
    runtime.launch(_binary_kernel, (programs,), *given, num_warps=WARPS, **constants)
    return binary


@triton.jit
def _binary_kernel(
    x,
    y,
    binary,
    pixels,
    tiles,
    tiles_per_page,
    x_batch,
    y_batch,
    db_k,
    X_STEP: tl.constexpr,
    Y_STEP: tl.constexpr,
    TILE: tl.constexpr,
):
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        page, first, inside = tile_pixels(tile, pixels, tiles_per_page, TILE)
        a = load_logits(x, page, first, inside, x_batch, X_STEP)
        b = load_logits(y, page, first, inside, y_batch, Y_STEP)
        store_map(binary, page * pixels + first, inside, sigmoid((sigmoid(a) - sigmoid(b)) * db_k))
