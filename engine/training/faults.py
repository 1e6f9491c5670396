"""What goes wrong in a step, and what is said and kept of it: skipped steps, their inputs, memory that is not there."""

import contextlib
import dataclasses
import json
import resource
from pathlib import Path

import torch

from engine.checkpoint.store import write_safetensors
from engine.checkpoint.writer import DISK
from engine.config import Config
from engine.console import one_line, reason, warn
from engine.data import Data, build_train_loader, canvas_at
from engine.distributed import Ranks
from engine.training.resume import Position
from engine.training.run import Run
from engine.training.skip import Place
from pipelines.errors import UserError

MAX_DUMPS = 3  # of one run: 16 pages at 1280 are 160 MB


class Diverged(UserError):
    """The training has lost its way; `rollback_factor` is the factor on the learning rate it was tried with."""

    def __init__(self, what: str, position: Position, run: Run) -> None:
        other = "" if run.config.trainer.on_nonfinite == "rollback" else ", or trainer.on_nonfinite=rollback"
        super().__init__(
            f"diverged at step {position.step}: {what}: lower models.optimizer.lr, set trainer.clip_norm{other}; what "
            f"was saved before is in {run.folder / 'checkpoints'}"
        )
        self.rollback_factor = position.rollback_factor


def report_skipped_steps(run: Run, wait: bool) -> int:
    """Logs the steps that were skipped since the last call. Returns how many it were in a row, at the most.

    One rank, the first whose own loss was no number, writes what went into a skipped step. With `wait`, a sync, it is
    told of all steps so far, else of those that are known by now.
    """
    most = 0
    for skipped in run.train_state.skipper.skipped(wait):
        most = max(most, skipped.in_a_row)
        step = skipped.place.step
        run.log.incident(step, f"skipped: loss or gradient is not finite ({skipped.in_a_row} in a row)")
        if skipped.to_dump and len(list(run.folder.glob("nonfinite/*"))) < MAX_DUMPS:
            target = run.folder / "nonfinite" / f"step_{step:08d}_rank{run.ranks.rank}"
            try:
                dump_inputs(target, run.config, run.ranks, run.data, skipped.place)
            except (*DISK, UserError) as error:
                warn(f"WARNING: {target}: the inputs of a skipped step are not written ({reason(error)})")
    return most


def dump_inputs(target: Path, config: Config, ranks: Ranks, data: Data, place: Place) -> None:
    """Writes the batches of a step: `info.json` and, for each forward pass, `batch_<k>.safetensors`.

    Nothing was kept of them. Augmentation is keyed by (seed, epoch, row), so they are made again, on the CPU: a GPU's
    warp and decoder round otherwise.

    Raises:
        OSError, SafetensorError: the folder cannot be written.
        UserError: the pages cannot be read any more.
    """
    target.mkdir(parents=True, exist_ok=True)
    on_cpu = dataclasses.replace(ranks, device=torch.device("cpu"))
    pages = []
    with contextlib.closing(build_train_loader(config, data.train, on_cpu, place.epoch, place.step_in_epoch)) as loader:
        for micro in range(config.trainer.accumulate):
            batch = next(loader)
            tensors = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
            tensors = {k: torch.as_tensor(v).contiguous() for k, v in tensors.items() if k != "image"}
            tensors["image"] = batch.image.half().contiguous()
            write_safetensors(tensors, target / f"batch_{micro}.safetensors")
            pages.append([str(data.train.path(int(row))) for row in batch.index])
    canvas = canvas_at(config, place.epoch)
    info = {"step": place.step, "epoch": place.epoch, "rank": ranks.rank, "canvas": canvas, "pages": pages}
    (target / "info.json").write_text(json.dumps(info, indent=1) + "\n")


def out_of_memory(error: BaseException, config: Config, ranks: Ranks) -> UserError:
    """A message with batch, resolution, peak, and what to change, instead of a traceback."""
    height, width = config.data.image_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    where = "host"
    if ranks.device.type == "cuda":
        peak, where = torch.cuda.max_memory_allocated(ranks.device) / 2**30, torch.cuda.get_device_name(ranks.device)
    batch = f"data.batch_size={config.data.batch_size} at {height}x{width} (eval.batch_size={config.eval.batch_size})"
    halve = "halve data.batch_size and double trainer.accumulate, which keeps the global batch; or "
    return UserError(
        f"out of memory on rank {ranks.rank} ({where}, peak {peak:.1f} GiB) with {batch}: "
        f"{halve if config.data.batch_size > 1 else ''}lower data.image_size, eval.batch_size or speed.memory_budget; "
        "`--dry-run` shows the peak. "
        f"torch says: {one_line(error, 200)}"
    )
