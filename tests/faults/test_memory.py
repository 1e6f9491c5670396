"""Host memory over 20 epochs of 100 steps: no growth once the run is warm. Resident sets, seen from outside."""

import dataclasses
import os
import statistics
import time
from pathlib import Path

import pytest

from tests.conftest import TINY

from . import harness
from .harness import Outcome

WARM_UP_EPOCHS = 3  # pools of DALI and of the allocator reach their size, the first evaluations load their libraries
EPOCHS, STEPS = 20, 100
LIMIT = 0.01
LONG = (f"data.synthetic_train={2 * STEPS}", f"trainer.max_epochs={EPOCHS}", "trainer.log_every=20", "trainer.ema=true")


@dataclasses.dataclass(frozen=True)
class Growth:
    """Memory of a run in MiB: the median of the first and of the last quarter of the samples after the warm-up.

    Medians, as a sample that falls into the writing of a checkpoint holds its copy too.
    """

    first: float
    last: float
    steps: int
    samples: list[tuple[int, float]]  # (epochs done, MiB) once a second, the warm-up among them

    @property
    def share(self) -> float:
        """Growth as a share of the memory after the warm-up."""
        return self.last / self.first - 1


def resident(pid: int) -> float:
    """Resident set of a process in MiB; 0 for one that has gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(folder: Path, *settings: str) -> Growth:
    """Trains 20 epochs of 100 steps in `folder`, with an evaluation and a checkpoint each, and watches.

    Args:
        folder: an empty one.
        settings: more keys of the run.
    """
    job = harness.start([*TINY, *LONG, "name=run", f"run_root={folder}", *settings], folder)
    samples = []
    while job.process.poll() is None:
        epochs = len(harness.metrics(folder / "run", "validation"))
        samples.append((epochs, sum(resident(pid) for pid in harness.pids(job))))
        time.sleep(1)
    assert harness.finish(job) == 0, harness.output(job)
    warm = [mib for epochs, mib in samples if WARM_UP_EPOCHS <= epochs < EPOCHS]
    quarter = len(warm) // 4
    first, last = statistics.median(warm[:quarter]), statistics.median(warm[-quarter:])
    return Growth(first, last, harness.last_step(folder / "run"), samples)


def growth(folder: Path) -> Outcome:
    """The row of the report."""
    found = measure(folder)
    fine = found.share < LIMIT and found.steps == EPOCHS * STEPS
    note = f"{found.steps} steps, {found.first:.0f} to {found.last:.0f} MiB"
    return Outcome(f"{EPOCHS} epochs", 1, int(fine), growth=found.share, note=note)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_host_memory_does_not_grow(tmp_path, workers):
    found = measure(tmp_path, f"eval.workers={workers}", f"data.workers={workers}")
    print(f"{found.first:.0f} -> {found.last:.0f} MiB, {found.share:+.2%}, {found.steps} steps")
    assert found.steps == EPOCHS * STEPS and len(found.samples) > 20
    assert found.share < LIMIT
