"""What the functions of a training share, in one record that is made once and passed on.

    run = Run(config=config, ranks=ranks, folder=folder, ...)
    run.log.say(f"step {position.step} after {run.minutes():.1f} minutes")

How far the training has got is apart from it: `engine.training.resume.Position`.
"""

import dataclasses
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from engine import distributed
from engine.checkpoint.writer import Writer
from engine.config import Config
from engine.data import Data
from engine.distributed import Agreement, Ranks
from engine.profiling.recorder import Recorder
from engine.run.log import RunLog
from engine.training.state import TrainState
from engine.training.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Run:
    """A training under way. Only what it trains changes."""

    config: Config
    ranks: Ranks
    folder: Path
    data: Data
    train_state: TrainState
    log: RunLog  # silent on ranks above 0
    writer: Writer | None  # of checkpoints, rank 0's
    pool: ProcessPoolExecutor | None  # scores pages
    started_at: float  # time.monotonic() at which the training time, over all sessions, was 0
    recorder: Recorder  # of trainer.profile
    watchdog: Watchdog
    agreement: Agreement

    def minutes(self) -> float:
        """Training time so far, in minutes, over all sessions of the run."""
        return (time.monotonic() - self.started_at) / 60

    def refuse_unwritten(self, limit: int | None = None) -> None:
        """Ends all ranks (UserError) when `limit` checkpoints in a row could not be written; see `Writer.refuse`."""
        distributed.from_main(self.ranks, lambda: self.writer.refuse(limit) if self.writer else None)


def open_writer(config: Config, ranks: Ranks, folder: Path) -> Writer | None:
    """The thread that writes the run's checkpoints; None on ranks above 0."""
    limits = config.trainer
    if not ranks.main:
        return None
    return Writer(folder / "checkpoints", limits.keep_last, limits.keep_top_k, limits.max_failed_saves)
