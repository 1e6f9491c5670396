"""A step whose loss or gradient is no number changes nothing, on all ranks alike, and without a wait for the device.

    bad = 1 if a loss of any rank or the gradient norm is NaN or infinite, else 0
    weights, optimizer state:  untouched where bad (`found_inf` of torch's fused optimizers, what GradScaler uses)
    BatchNorm statistics:      buffer <- bad x saved + (1 - bad) x buffer, on their bits as integers: 0 x NaN is NaN

Bytes a step: the buffers (HRNet-W44: 975, 0.4 MB) 9 times, in 4 multi-tensor operators; 2 numbers over the ranks.
The average (`engine.training.ema`) goes on toward weights that have not changed.
"""

import collections

import torch
import torch.distributed as dist
from torch import nn

from engine.distributed import Ranks
from engine.training.metrics import LateCopies


class StepSkipper:
    """Finds bad steps, undoes what they did to the buffers, and counts those in a row.

    Args:
        model: the bare model, on its device; its buffers must stay the same tensors.
        ranks: who we are.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        # Viewed as integers of their own width, by width: a multi-tensor kernel takes one dtype.
        widths = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        by_width = collections.defaultdict(list)
        for buffer in buffers:
            by_width[buffer.element_size()].append(buffer.detach().view(widths[buffer.element_size()]))
        self._live = list(by_width.values())
        self._saved = [[torch.empty_like(b) for b in group] for group in self._live]
        self._row = torch.zeros((), dtype=torch.int32, device=ranks.device)  # bad steps in a row
        self._here = torch.zeros((), dtype=torch.bool, device=ranks.device)  # this rank is to write its inputs
        self._rank, self._nobody = ranks.rank, ranks.world_size
        self._verdicts: LateCopies[tuple[int, int, int]] = LateCopies()

    @torch.no_grad()
    def save_buffers(self) -> None:
        """Saves the buffers; to be called before the forward passes of a step."""
        for saved, live in zip(self._saved, self._live, strict=True):
            torch._foreach_copy_(saved, live)

    @torch.no_grad()
    def undo_if_bad(self, losses: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """1.0 for a bad step, else 0.0: () float32 on the device, equal on all ranks; undoes the buffers if bad.

        Args:
            losses: (n,) this rank's losses.
            norm: () gradient norm over the ranks.
        """
        own = ~torch.isfinite(losses).all()
        whose = torch.where(own, -self._rank, -self._nobody)  # the lowest rank whose own loss is bad, negative
        flags = torch.stack([own | ~torch.isfinite(norm), whose]).float()
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)  # NCCL: queued on the device's stream, no wait
        bad, lowest = flags[0], -flags[1]
        self._row = (self._row + 1) * bad.int()
        mine = lowest == self._rank
        if self._rank == 0:  # a bad gradient alone is nobody's own loss
            mine = mine | (lowest == self._nobody)
        self._here = (bad > 0) & mine
        for saved, live in zip(self._saved, self._live, strict=True):
            kind = live[0].dtype
            torch._foreach_mul_(saved, bad.to(kind))
            torch._foreach_mul_(live, (1 - bad).to(kind))
            torch._foreach_add_(live, saved)
        return bad

    def record(self, place: tuple[int, int, int]) -> None:
        """Starts the copy of a step's verdict to the host; `skipped` hands it out with `place` once it has arrived."""
        self._verdicts.put(place, torch.stack([self._row, self._here.int()]))

    def skipped(self, wait: bool = False) -> list[tuple[tuple[int, int, int], int, bool]]:
        """Bad steps whose verdict has arrived: (place, bad ones in a row so far, whether this rank shows its inputs).

        With `wait`, a sync, those of all steps so far.
        """
        return [(place, row, bool(here)) for place, (row, here) in self._verdicts.arrived(wait) if row]


def update(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """`optimizer.step()`, unless `bad` is 1.0; decided on the device by a fused optimizer.

    Others run on the CPU here, where reading a number waits for nothing.
    """
    if optimizer.param_groups[0].get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, bad
        optimizer.step()
    elif not bad.item():
        optimizer.step()
