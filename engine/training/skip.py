"""A step whose loss or gradient is no number changes nothing, on all ranks alike, and without a wait for the device.

    skipper.save_buffers()                              # before the forward passes
    bad = skipper.undo_if_bad(losses, gradient_norm)    # after the backward passes: 1.0 or 0.0, on the device
    update(optimizer, bad)
    skipper.record(place)
    for skipped in skipper.skipped(): ...               # some steps later: which ones it were

What happens in a bad step:

    weights, optimizer state:  untouched (`found_inf` of torch's fused optimizers, what GradScaler uses)
    BatchNorm statistics:      buffer <- bad x saved + (1 - bad) x buffer, on their bits as integers: 0 x NaN is NaN

Bytes a step: the buffers (HRNet-W44: 975, 0.4 MB) 9 times, in 4 multi-tensor operators; 2 numbers over the ranks.
The average (`engine.training.ema`) goes on toward weights that have not changed.
"""

import collections
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from engine.distributed import Ranks
from engine.training.metrics import LateCopies


class Place(NamedTuple):
    """Which step of a run is meant."""

    step: int  # counted from 1
    epoch: int  # epochs finished
    step_in_epoch: int  # counted from 0


class SkippedStep(NamedTuple):
    """A step that changed nothing."""

    place: Place
    in_a_row: int  # skipped steps in a row, this one included
    to_dump: bool  # this rank is the one that writes what went into it


class StepSkipper:
    """Finds bad steps, undoes what they did to the buffers, and counts those in a row.

    Args:
        model: the bare model, on its device; its buffers must stay the same tensors.
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
        self._in_a_row = torch.zeros((), dtype=torch.int32, device=ranks.device)
        self._to_dump = torch.zeros((), dtype=torch.bool, device=ranks.device)
        self._ranks = ranks
        self._verdicts: LateCopies[Place] = LateCopies()

    @torch.no_grad()
    def save_buffers(self) -> None:
        """Keeps a copy of the buffers; to be called before the forward passes of a step."""
        for saved, live in zip(self._saved, self._live, strict=True):
            torch._foreach_copy_(saved, live)

    @torch.no_grad()
    def undo_if_bad(self, losses: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """1.0 for a bad step, else 0.0: () float32 on the device, equal on all ranks; undoes the buffers if bad.

        Args:
            losses: (n,) this rank's losses.
            norm: () gradient norm over the ranks.
        """
        rank, nobody = self._ranks.rank, self._ranks.world_size
        own_bad = ~torch.isfinite(losses).all()
        # One reduction, by MAX, tells both whether a rank saw something bad and which is the first whose own loss it
        # was: the lowest rank is the largest negative one, and a rank with a good loss names a rank that nobody has.
        flags = torch.stack([own_bad | ~torch.isfinite(norm), torch.where(own_bad, -rank, -nobody)]).float()
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)  # NCCL: queued on the device's stream, no wait
        bad, first_bad_rank = flags[0], -flags[1]
        dumping_rank = torch.where(first_bad_rank == nobody, 0, first_bad_rank)  # a bad gradient is no rank's own
        self._to_dump = (bad > 0) & (dumping_rank == rank)
        self._in_a_row = (self._in_a_row + 1) * bad.int()
        self._restore_buffers(bad)
        return bad

    def _restore_buffers(self, bad: torch.Tensor) -> None:
        """The saved buffers where `bad` is 1, else the live ones; see the module docstring."""
        for saved, live in zip(self._saved, self._live, strict=True):
            kind = live[0].dtype
            torch._foreach_mul_(saved, bad.to(kind))
            torch._foreach_mul_(live, (1 - bad).to(kind))
            torch._foreach_add_(live, saved)

    def record(self, place: Place) -> None:
        """Starts the copy of the last step's verdict to the host."""
        self._verdicts.put(place, torch.stack([self._in_a_row, self._to_dump.int()]))

    def skipped(self, wait: bool = False) -> list[SkippedStep]:
        """The bad steps whose verdict has arrived on the host; with `wait`, a sync, those of all steps so far."""
        verdicts = self._verdicts.arrived(wait)
        return [SkippedStep(place, in_a_row, bool(dump)) for place, (in_a_row, dump) in verdicts if in_a_row]


def update(optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
    """`optimizer.step()`, unless `bad` is 1.0; decided on the device by a fused optimizer.

    Others run on the CPU here, where reading a number waits for nothing.
    """
    if optimizer.param_groups[0].get("fused"):
        optimizer.grad_scale = None  # type: ignore[attr-defined]  # torch's stub has neither; GradScaler sets both
        optimizer.found_inf = bad  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad.item():
        optimizer.step()
