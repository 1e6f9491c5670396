"""Growth of a training's host memory, seen from outside: resident sets of its processes, once a second."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from conftest import ROOT, TINY

from engine.runlog import read_metrics

WARM_UP_EPOCHS = 3  # pools of DALI and of the allocator reach their size, the first evaluations load their libraries
LONG = ("data.synthetic_train=200", "trainer.max_epochs=20", "trainer.log_every=20", "trainer.ema=true")


@dataclasses.dataclass(frozen=True)
class Growth:
    """Memory of a run, in MiB, after the warm-up: the line through all samples, at its two ends."""

    first: float
    last: float
    steps: int
    samples: list[tuple[int, float]]  # (epochs done, MiB), the warm-up among them

    @property
    def share(self) -> float:
        """Growth as a share of the memory after the warm-up."""
        return self.last / self.first - 1


def descendants(pid: int) -> list[int]:
    """A process and all below it, by /proc."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # gone
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def resident(pid: int) -> float:
    """Resident set of a process and all below it, in MiB; pages that they share count once each."""
    pages = 0
    for one in descendants(pid):
        try:
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(folder: Path, *settings: str) -> Growth:
    """Trains 20 epochs of 100 steps in `folder` and watches.

    Args:
        folder: an empty one.
        settings: more keys of the run.
    """
    command = [sys.executable, "-m", "engine.train", *TINY, *LONG, "name=run", f"run_root={folder}", *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    metrics, samples = folder / "run" / "metrics.jsonl", []
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            epochs = sum(r["kind"] == "validation" for r in read_metrics(metrics)) if metrics.exists() else 0
            samples.append((epochs, resident(process.pid)))
            time.sleep(1)
    assert process.returncode == 0, (folder / "log").read_text()[-2000:]
    steps = max(record["step"] for record in read_metrics(metrics))
    warm = np.array([mib for epochs, mib in samples if WARM_UP_EPOCHS <= epochs < 20])
    slope, start = np.polyfit(np.arange(len(warm)), warm, 1)
    return Growth(start, start + slope * (len(warm) - 1), steps, samples)
