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

    counts: Tensor  # (N,) int32 components of each page, at most C
    overflow: Tensor  # (N,) int32, 1 where a page had more than C and the last were left out
    top: Tensor  # (N, C) int32 first row
    height: Tensor  # (N, C) int32 rows; every one has at least one pixel
    area: Tensor  # (N, C) int32 pixels
    mass: Tensor  # (N, C) int64 sum of the pixels' probabilities in steps of 2^-24; filled for score_mode "slow" only
    begin: Tensor  # (N, C) int32
    left_gap: Tensor  # (N, E) int32, W - column of the row's leftmost pixel
    right_end: Tensor  # (N, E) int32, column of the row's rightmost pixel + 1


def empty_quads(pages: int, capacity: int, device: torch.device, *, pinned: bool = False) -> Quads:
    """Zero quads whose fields are views of one buffer, so that one copy takes all of them (see `to_host`)."""
    sizes = [8 * pages, 32 * pages * capacity, 4 * pages * capacity, pages]
    buffer = torch.zeros(sum(sizes), dtype=torch.uint8, device=device, pin_memory=pinned)
    counts, quads, scores, overflow = buffer.split(sizes)
    return Quads(
        quads.view(torch.float32).view(pages, capacity, 4, 2),
        scores.view(torch.float32).view(pages, capacity),
        counts.view(torch.int64),
        overflow.view(torch.bool),
    )


def to_host(quads: Quads) -> Quads:
    """The quads in pinned host memory, copied without waiting: read them only after an event recorded now has passed.

    One copy of 36 bytes a place (288 KB for 16 pages of 500) where the fields share a buffer, else one a field. Quads
    on the host are returned as they are.
    """
    if quads.quads.device.type == "cpu":
        return quads
    pages, capacity = quads.scores.shape
    target = empty_quads(pages, capacity, torch.device("cpu"), pinned=True)
    shared = {field.untyped_storage().data_ptr() for field in quads}
    pairs = zip(target, quads, strict=True) if len(shared) > 1 else [(_bytes(target.counts), _bytes(quads.counts))]
    for into, field in pairs:
        into.copy_(field, non_blocking=True)
    return target


def _bytes(field: Tensor) -> Tensor:
    """The whole buffer that a field is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=field.device).set_(field.untyped_storage())
