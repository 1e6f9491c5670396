"""What labelling hands to geometry on the device, and the one buffer in which the result travels to the host."""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.components.reference import Quads


class Table(NamedTuple):
    """Components of N pages that may be large enough, in raster order of their first pixels, C = MAX_COMPONENTS places.

    Entries at and after a page's count are undefined. A component's rows are the entries begin to begin + height - 1 of
    its page's left_gap and right_end; E = H * ceil(W / 2), the most runs a page can have, is always enough of them.
    """

    count: Tensor  # (N,) int32 components of each page, at most C
    overflow: Tensor  # (N,) int32, 1 where a page had more than C and the last were left out
    top: Tensor  # (N, C) int32 first row
    height: Tensor  # (N, C) int32 rows; every one has at least one pixel
    area: Tensor  # (N, C) int32 pixels
    mass: Tensor  # (N, C) int64 sum of the pixels' probabilities in steps of 2^-24; filled for score_mode "slow" only
    begin: Tensor  # (N, C) int32
    left_gap: Tensor  # (N, E) int32, W - column of the row's leftmost pixel
    right_end: Tensor  # (N, E) int32, column of the row's rightmost pixel + 1


def empty_quads(pages: int, capacity: int, device: torch.device) -> Quads:
    """Zero quads whose fields are views of one buffer, so that one copy takes all of them (see `to_host`)."""
    sizes = [8 * pages, 32 * pages * capacity, 4 * pages * capacity, pages]
    buffer = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
    counts, quads, scores, overflow = buffer.split(sizes)
    return Quads(
        quads.view(torch.float32).view(pages, capacity, 4, 2),
        scores.view(torch.float32).view(pages, capacity),
        counts.view(torch.int64),
        overflow.view(torch.bool),
    )
