"""The record of a run: its folder, where it came from, its metrics, what is shown while it runs.

    runs/NAME/config.yaml     the resolved settings; `preset=runs/NAME/config.yaml` starts the same run again
    runs/NAME/run.json        one entry a session: command, git state, versions, device, start time
    runs/NAME/metrics.jsonl   one JSON object a line: {"kind": "train" or "validation", "step": ..., "epoch": ..., ...}

metrics.jsonl is the source of truth; W&B, if it is on, gets a copy. torch is imported nowhere here.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import Config
from engine.config.load import to_dict, to_yaml
from engine.console import reason, warn
from engine.files import json_lines, replace_text
from engine.run.folder import sessions
from engine.run.progress import Progress
from engine.run.provenance import device_name, provenance
from engine.run.tracker import Tracker
from pipelines.errors import UserError

if TYPE_CHECKING:
    from engine.distributed import Ranks

BACKLOG_BYTES = 2**24  # of records that wait for the disk: 40,000 or so


def plain(value: Any) -> Any:
    """A value as JSON has it: numpy scalars and arrays become Python's, NaN and infinity None, the unknown its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not isinstance(value, (bool, int, float, str, type(None))):
        return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Appends JSON lines to metrics.jsonl, each written and flushed whole.

    A run is not thrown away for its log. What cannot be written (full or read-only disk) is kept, up to BACKLOG_BYTES,
    and written with a later record, from the very byte on at which the disk stopped. A file that was deleted under the
    run is made anew from what the open one still holds, with `beside` (name: text), the other files of its folder.
    """

    def __init__(self, path: Path, resumed_step: int = 0, beside: Mapping[str, str] | None = None) -> None:
        self.path, self.lost = path, 0
        self._beside, self._backlog, self._problem = beside or {}, b"", ""
        if path.exists():
            read = read_metrics(path)  # what went wrong did, also in steps that are done again
            kept = [r for r in read if r.get("step", 0) <= resumed_step or r.get("kind") == "incident"]
            replace_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; numbers that are not finite are written as null."""
        if len(self._backlog) < BACKLOG_BYTES:
            self._backlog += (json.dumps(plain(record), allow_nan=False) + "\n").encode()
        else:
            self.lost += 1
        self._flush()

    def _flush(self) -> None:
        """Writes what is to be written; says so when that begins to fail, and when it works again."""
        problem = ""
        try:
            if self._deleted():
                self._renew()
            while self._backlog:
                self._backlog = self._backlog[os.write(self._file, self._backlog) :]
        except OSError as error:
            problem = reason(error)
        if problem and not self._problem:
            warn(f"WARNING: {self.path} cannot be written ({problem}); training goes on, records wait in memory")
        elif self._problem and not problem:
            warn(f"note: {self.path} is written again, {f'{self.lost} records' if self.lost else 'nothing'} is missing")
        self._problem = problem

    def _deleted(self) -> bool:
        """Whether the path is not, or no longer, the open file."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def _renew(self) -> None:
        missing = not self.path.exists()  # else somebody has put another file there, and it is gone on with
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        if missing:
            self._backlog = os.pread(self._file, os.fstat(self._file).st_size, 0) + self._backlog
            warn(f"WARNING: {self.path} was deleted under the run; it, config.yaml and run.json are made anew")
        os.close(self._file)
        self._file = file
        for name, text in self._beside.items():
            if not (self.path.parent / name).exists():
                replace_text(self.path.parent / name, text)

    def close(self) -> None:
        """Closes the file and says how many records were lost, if any."""
        self._flush()
        os.close(self._file)
        missing = self.lost + self._backlog.count(b"\n")
        if missing:
            warn(f"WARNING: {missing} records are missing in {self.path}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl in file order; lines torn by a kill or a full disk are passed over.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return [record for _, record in json_lines(path) if record is not None]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


class RunLog:
    """What a running training reports to; silent on ranks above 0, where every part is None."""

    def __init__(self, metrics: MetricsLog | None, progress: Progress | None, tracker: Tracker | None) -> None:
        self.metrics, self.progress, self.tracker = metrics, progress, tracker

    def say(self, text: str) -> None:
        """Shows one line."""
        if self.progress is not None:
            self.progress.say(text)

    def train(self, record: Mapping[str, Any]) -> None:
        """Logs a window of steps: step, epoch (finished ones), lr, losses, images_per_second, data_wait_share, ..."""
        self._log("train", record)

    def validation(self, record: Mapping[str, Any]) -> None:
        """Logs an evaluation: step, epoch, hmean, precision, recall, score, ..."""
        self._log("validation", record)

    def incident(self, step: int, text: str) -> None:
        """Logs and shows something that went wrong and was dealt with."""
        if self.metrics is not None:
            self.metrics.write({"kind": "incident", "step": step, "text": text})
        self.say(f"step {step}: {text}")

    def _log(self, kind: str, record: Mapping[str, Any]) -> None:
        if self.metrics is None or self.progress is None:
            return
        record = plain(record)
        self.metrics.write({"kind": kind, **record})
        if kind == "train":
            self.progress.train(record)
        else:
            self.progress.validation(record)
        if self.tracker is not None:
            prefix = "val" if kind == "validation" else "train"
            known = {f"{prefix}/{key}": value for key, value in record.items() if key != "step" and value is not None}
            self.tracker.log(known, record["step"])

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures, for W&B's summary."""
        if self.tracker is not None:
            self.tracker.summary(plain(values))

    def close(self) -> None:
        """Ends the display, closes the file, gives the tracker a few seconds."""
        for part in (self.progress, self.metrics, self.tracker):
            if part is not None:
                part.close()


def open_run(folder: Path, config: Config, ranks: "Ranks", step: int = 0, steps_per_epoch: int = 0) -> RunLog:
    """Makes the run's folder and opens its log.

    Args:
        folder: as `engine.run.folder.claim` gave it.
        ranks: those above 0 get a silent log and write nothing.
        step: step the run goes on from; later records of an earlier session are cut off, in one move.
        steps_per_epoch: for the time left; 0 = unknown.

    Raises:
        UserError: the folder cannot be written.
    """
    if not ranks.main:
        return RunLog(None, None, None)
    session = {**provenance(config, ranks.world_size, device_name(ranks.device)), "first_step": step}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = sessions(folder / "run.json") if step else []
        record = json.dumps({"sessions": [*before, session]}, indent=1) + "\n"
        beside = {"run.json": record, "config.yaml": to_yaml(config)}
        for name, text in beside.items():
            replace_text(folder / name, text)
        metrics = MetricsLog(folder / "metrics.jsonl", step, beside)
    except OSError as error:
        raise UserError(f"{folder}: the run's folder cannot be written ({error.strerror})") from None
    limit = config.trainer.max_steps or math.inf
    total = min(limit, config.trainer.max_epochs * steps_per_epoch) if steps_per_epoch else config.trainer.max_steps
    progress = Progress(int(total), config.trainer.max_epochs, step)
    tracker = None
    if config.wandb:
        labels = {"group": config.wandb_group, "job_type": config.wandb_job_type}
        tracker = Tracker(config.wandb_project, folder.name, to_dict(config), folder, labels)
    return RunLog(metrics, progress, tracker)
