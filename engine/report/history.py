"""What a run's folder says: its records, thinned out while they are read, its sessions and settings. No torch.

    run = read_run(Path("runs/mine"))
    run.history.train.series("loss")                     # (step, mean, least, greatest) of each point

Nothing in the folder is trusted: a file that is damaged becomes a note. A metrics.jsonl of any length is read line by
line into at most 2 x POINTS buckets a kind; when they are full, neighbours are joined. So memory does not grow, and a
bucket keeps the least and greatest value beside the mean.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import files
from engine.config import Config
from engine.config.load import from_dict
from engine.console import one_line
from pipelines.errors import UserError

POINTS = 400  # a chart is 450 pixels wide
INCIDENTS = 1000  # kept; all are counted
RUN_BYTES = 1 << 24  # of run.json: 2 kB a session


Bucket = dict[str, list[float]]  # of records that follow each other: {key: [sum, count, least, greatest]}


def _join(bucket: Bucket, key: str, total: float, count: float, least: float, most: float) -> None:
    known = bucket.setdefault(key, [0.0, 0.0, math.inf, -math.inf])
    known[:] = known[0] + total, known[1] + count, min(known[2], least), max(known[3], most)


class Thinned:
    """A series of records of any length in at most 2 x POINTS buckets."""

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []
        self.size, self._filled, self.count = 1, 0, 0  # records a bucket, in the last one, in all

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record; when all buckets are full they are joined in pairs."""
        if not self.buckets or self._filled == self.size:
            if len(self.buckets) == 2 * POINTS:
                for left, right in zip(self.buckets[::2], self.buckets[1::2], strict=True):
                    for key, values in right.items():
                        _join(left, key, *values)
                self.buckets, self.size = self.buckets[::2], 2 * self.size
            self.buckets.append({})
            self._filled = 0
        for key, value in record.items():
            number = as_number(value)  # null (NaN or infinity when it was written) is none
            if number is not None:
                _join(self.buckets[-1], key, number, 1, number, number)
        self._filled, self.count = self._filled + 1, self.count + 1

    def series(self, key: str) -> list[tuple[float, float | None, float | None, float | None]]:
        """(step, mean, least, greatest) in file order of the buckets that have a step; None: no number."""
        points = []
        for bucket in self.buckets:
            step = bucket.get("step")
            if step is not None:
                values = bucket.get(key)
                shown = (None, None, None) if values is None else (values[0] / values[1], values[2], values[3])
                points.append((step[0] / step[1], *shown))
        return points if any(point[1] is not None for point in points) else []


def as_number(value: Any) -> float | None:
    """A JSON value as a finite float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and abs(number) < 1e30 else None


@dataclass
class History:
    """Records of a run: `best` is the validation record with the highest `score`, `last` the last training one."""

    train: Thinned = field(default_factory=Thinned)
    validation: Thinned = field(default_factory=Thinned)
    incidents: list[tuple[int, str]] = field(default_factory=list)
    num_incidents: int = 0
    odd_lines: int = 0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    last_step: float = 0
    nonfinite: int = 0

    def add(self, record: dict[str, Any]) -> None:
        """Takes in one record of metrics.jsonl."""
        kind = record.get("kind")
        step = as_number(record.get("step"))
        self.last_step = max(self.last_step, step or 0)
        if kind == "incident":
            self.num_incidents += 1
            if len(self.incidents) < INCIDENTS:
                self.incidents.append((int(step or 0), str(record.get("text", ""))[:2000]))
        elif kind == "train":
            self.train.add(record)
            self.nonfinite += record.get("loss", 0) is None
            self.last = {key: n for key in record if (n := as_number(record[key])) is not None}
        elif kind == "validation":
            self.validation.add(record)
            numbers = {key: n for key in record if (n := as_number(record[key])) is not None}
            if judged(numbers) > judged(self.best):
                self.best = numbers


def judged(record: dict[str, float]) -> float:
    """What a validation is ranked by: its score (eval.select), else its H-mean; -1 without either."""
    return record.get("score", record.get("hmean", -1.0))


def read_history(path: Path, tell: Callable[[int, int | None], None] = lambda done, total: None) -> History:
    """The records of a metrics.jsonl; torn lines are counted and passed over. An absent file gives an empty history.

    Args:
        tell: told of (megabytes read, all of them) now and then.

    Raises:
        UserError: the file cannot be read.
    """
    history = History()
    if not path.exists():
        return history
    try:
        if not path.is_file():
            raise UserError(f"{path}: is no regular file")
        total = path.stat().st_size
        for number, (end, record) in enumerate(files.json_lines(path)):
            if number % 5000 == 0:
                tell(end >> 20, total >> 20)
            if record is None:
                history.odd_lines += 1
            else:
                history.add(record)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return history


@dataclass(frozen=True)
class Run:
    """A run's folder as it was found. `config` is None, `settings` maybe empty, where config.yaml is no longer read."""

    folder: Path
    history: History
    sessions: list[dict[str, Any]]
    summary: dict[str, Any]
    settings: dict[str, Any]
    config: Config | None
    notes: list[str]


def read_run(folder: Path, tell: Callable[[int, int | None], None] = lambda done, total: None) -> Run:
    """Everything but the checkpoints and pages of a run. Files that are absent or damaged become notes.

    Raises:
        UserError: `folder` is no run folder.
    """
    known = ("config.yaml", "run.json", "metrics.jsonl", "checkpoints")
    if not folder.is_dir() or not any((folder / name).exists() for name in known):
        what = "holds no run (no config.yaml, run.json or metrics.jsonl)" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; name a run folder, runs/NAME")
    notes: list[str] = []
    history = read_history(folder / "metrics.jsonl", tell)
    if history.odd_lines:
        notes.append(f"metrics.jsonl: {history.odd_lines} lines are torn or no records and were passed over.")
    if not history.train.count and not history.validation.count:
        notes.append("metrics.jsonl holds no records yet.")
    settings, config = _settings(folder / "config.yaml", notes)
    sessions = _json(folder / "run.json", notes).get("sessions", [])
    sessions = [one for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []
    summary = _json(folder / "summary.json", notes) if (folder / "summary.json").exists() else {}
    return Run(folder, history, sessions, summary, settings, config, notes)


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return files.json_object(path, RUN_BYTES)
    except UserError as error:
        notes.append(f"{path.name}: {one_line(error)}.")
        return {}


def _settings(path: Path, notes: list[str]) -> tuple[dict[str, Any], Config | None]:
    """Flat settings as the file has them, and the configuration where it is one."""
    try:
        values = files.yaml_values(files.read_text(path))
        if not isinstance(values, dict):
            raise UserError("holds no settings")
    except UserError as error:
        notes.append(f"config.yaml: {one_line(error)}.")
        return {}, None
    try:
        return dict(_flat(values, "")), from_dict(values)
    except UserError as error:
        notes.append(f"config.yaml is not read by this version of the engine: {one_line(error)}.")
        return dict(_flat(values, "")), None


def _flat(values: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
