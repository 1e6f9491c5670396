import math

import pytest
import torch
from norm_examples import DTYPES

from kernels.norm_relu import rows
from tests.conftest import DEVICE


@pytest.mark.parametrize("channels", [1, 3, 44, 48, 64, 88, 130, 176, 256, 352, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_cover_every_row_and_channel(channels, dtype):
    y = torch.empty((3, channels, 7, 11), dtype=dtype, device=DEVICE)
    laid = rows.lay_out(y, 3)
    assert laid.tiles * laid.tile_rows >= laid.rows > (laid.tiles - 1) * laid.tile_rows
    assert laid.grid[1] * laid.block >= channels and 1 <= laid.programs <= laid.tiles
    assert laid.group >= 1 and laid.tile_rows == laid.group * rows.LOADS
    each = laid.block * laid.tile_rows // (32 * rows.WARPS * rows.LOADS)  # neighbouring channels of a lane
    assert each == math.gcd(channels, 16 // y.itemsize) and laid.block & (laid.block - 1) == 0
