"""`engine.train`, which also writes the rows of every batch it takes: python -m tests.faults.recorded_train [key=value]

One file a process in the folder of ROWS_FOLDER: a JSON line a batch, {"time", "epoch", "step" in the epoch, "rows"},
flushed before the batch is used.
"""

import json
import os
import time
from pathlib import Path

from engine import cli, train
from engine.data import build_train_loader
from pipelines.batch import Batch
from pipelines.loader import TrainLoader


class Recorded:
    """A train loader that notes what it hands out."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader
        self.steps_per_epoch, self.canvas_hw, self.close = loader.steps_per_epoch, loader.canvas_hw, loader.close
        self.file = (Path(os.environ["ROWS_FOLDER"]) / f"{os.getpid()}.jsonl").open("a")

    def __next__(self) -> Batch:
        epoch, step, _micro = self.loader.position
        batch = next(self.loader)
        line = {"time": time.time(), "epoch": epoch, "step": step, "rows": batch.index.tolist()}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        return batch

    def __getattr__(self, name: str):
        return getattr(self.loader, name)


if __name__ == "__main__":
    train.build_train_loader = lambda *given: Recorded(build_train_loader(*given))
    cli.run(train.main)
