"""The ledger of a study: `trials.jsonl`, append-only, and the lock that only one driver holds.

What a search knows is the sum of these lines and nothing else. The driver changes its `Study` only by appending an
event, with the same `fold` that reads the file later, so what it acts on and what a resume finds cannot differ.

    {"event": "study", ...}    the first line: space, metric, method, budget, arguments, ...
    {"event": "extend", ...}   --resume with another budget, agents or runner
    {"event": "trial", ...}    a configuration is decided; nothing runs yet
    {"event": "start", ...}    an attempt begins; its id fences it
    {"event": "epoch", ...}    one validation record; the same epoch twice: the later wins
    {"event": "cut", ...}      the attempt is over, the trial is not: it goes back to asked
    {"event": "end", ...}      finished, stopped or infeasible

Each line is one write(2) on an O_APPEND descriptor, followed by fsync. A line torn by a kill or a full disk is passed
over by readers; the next writer starts on a line of its own.
"""

import contextlib
import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.console import warn
from engine.files import flock
from engine.search.space import is_number, space_from_json, space_to_json
from engine.search.study import ENDED, Confirmation, Runner, Study, Trial
from pipelines.errors import UserError

FILE, LOCK = "trials.jsonl", "lock"
VERSION = 1
PLAIN = (  # fields of Study that stand in the first line as they are
    "name", "metric", "goal", "method", "budget", "agents", "seed", "max_epochs", "early_stop", "arguments", "first",
    "objective",
)  # fmt: skip
TRIAL = ("values", "kind", "seed", "repeats", "folder", "name")  # fields of Trial in its event
RUNS = ("executor", "timeout", "stall", "baseline", "fixed", "looked")  # of Runner, under their own names
TEXT, WHOLE, NUMBER, TABLE, LIST = "a text", "a whole number", "a number", "an object", "a list"
MOST = 10**9  # model.stopping.LONGEST; a curve's model keeps numbers for the epochs it has seen only
NEEDED = {
    "study": ("name", "metric", "goal", "method", "budget", "agents", "space"),
    "extend": (),
    "trial": ("trial", "time", "values", "kind", "seed", "folder", "name"),
    "start": ("trial", "time", "attempt"),
    "epoch": ("trial", "time", "epoch", "value"),
    "cut": ("trial", "time"),
    "end": ("trial", "time", "state"),
}
FIELDS = {
    **dict.fromkeys(("name", "metric", "goal", "method", "kind", "folder", "state", "objective", "reason"), TEXT),
    **dict.fromkeys(("budget", "agents", "trial", "seed", "attempt", "epoch", "max_epochs", "repeats"), WHOLE),
    **dict.fromkeys(("time", "value", "minutes"), NUMBER),
    **dict.fromkeys(("values", "early_stop", "first", "runner", "scores"), TABLE),
    **dict.fromkeys(("space", "arguments", "estimate"), LIST),
}
RUNNER = {
    "executor": TEXT, "timeout": NUMBER, "stall": NUMBER, "baseline": NUMBER, "fixed": TABLE, "looked": WHOLE,
    "confirm": WHOLE, "chosen": LIST, "chosen_after": WHOLE,
}  # fmt: skip


class Ledger:
    """A study open for writing: `study` is always what reading the file would give.

    Args:
        folder: the study's folder; its lock is held until `close` or the end of the process.

    Raises:
        UserError: another driver holds the lock, or the folder holds no study.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = take_lock(folder)
        try:
            self._fold = _folded(folder)
        except UserError:
            os.close(self._lock)
            raise
        self.study = self._fold.study
        self._file = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND)
        if not (folder / FILE).read_bytes().endswith(b"\n"):  # its writer did not get to end the last line
            os.write(self._file, b"\n")

    def append(self, event: str, **fields: Any) -> None:
        """Writes one event durably, then adds it to `study`."""
        self.append_all([{"event": event, **fields}])

    def append_all(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Writes several events in one write, e.g. trials that are decided together."""
        lines = [_stamped(item) for item in events]
        _write(self._file, self.folder / FILE, lines)
        for line in lines:
            self._fold.add(json.loads(json.dumps(line)))

    def seen_minutes(self, number: int) -> float:
        """Minutes from the start of a trial's last attempt to the last sign of it: all that is known of a lost one."""
        start, last = self._fold.spans.get(number, (0.0, 0.0))
        return (last - start) / 60

    def close(self) -> None:
        """Gives the lock back."""
        os.close(self._file)
        os.close(self._lock)


def create(study: Study, events: Iterable[Mapping[str, Any]] = ()) -> Ledger:
    """Makes the folder and the ledger of a new study and opens it.

    Args:
        study: without trials.
        events: of trials that are known from elsewhere.

    Raises:
        UserError: the folder holds a study already, or cannot be written.
    """
    path = study.folder / FILE
    fields = {name: getattr(study, name) for name in PLAIN}
    fields |= {"runner": _runner_to_json(study), "space": space_to_json(study.space)}
    lines = [_stamped({"event": "study", "version": VERSION, **fields}), *map(_stamped, events)]
    temporary = study.folder / f".{FILE}.{os.getpid()}"
    make_folder(study.folder)
    try:
        with temporary.open("wb") as file:
            _write(file.fileno(), path, lines)
    except OSError as error:
        raise _unwritable(study.folder, error) from None
    try:
        os.link(temporary, path)  # whole or not at all, and never over another
    except FileExistsError:
        raise exists(study.folder) from None
    finally:
        temporary.unlink()
    return Ledger(study.folder)


def make_folder(folder: Path) -> None:
    """Makes a study's folder, if it is not there.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: the study's folder cannot be written ({error.strerror})")


def _stamped(event: Mapping[str, Any]) -> dict[str, Any]:
    return {"event": event["event"], "time": round(time.time(), 3), **event}


def exists(folder: Path) -> UserError:
    """The refusal of a new study in a folder that holds one."""
    return UserError(f"{folder} exists already: --resume {folder} goes on with it, or give another --study NAME")


def read(folder: Path) -> Study:
    """The study of a folder, without its lock: what the ledger's events add up to.

    Raises:
        UserError: there is no study, or its first line is not readable.
    """
    return _folded(folder).study


def trial_event(trial: Trial) -> dict[str, Any]:
    """The event that decides a trial."""
    return {"event": "trial", "trial": trial.number} | {name: getattr(trial, name) for name in TRIAL}


def extend_event(study: Study, **changes: Any) -> dict[str, Any]:
    """The event that gives some of a study's budget, agents, runner and confirmation other values; it names no others.

    The last two are one object in the file.
    """
    changed = dataclasses.replace(study, **changes)
    event = {name: value for name, value in changes.items() if name in ("budget", "agents")}
    if len(event) < len(changes):
        event["runner"] = _runner_to_json(changed)
    return {"event": "extend"} | event


def _runner_to_json(study: Study) -> dict[str, Any]:
    """Runner and Confirmation as one object; the fields of what has not happened are left out."""
    fields = {name: getattr(study.runner, name) for name in RUNS} | {"confirm": study.confirmation.seeds}
    if study.confirmation.after is not None:
        fields |= {"chosen": list(study.confirmation.chosen), "chosen_after": study.confirmation.after}
    return {name: value for name, value in fields.items() if name not in ("fixed", "looked") or value}


def _runner_from_json(fields: dict[str, Any]) -> tuple[Runner, Confirmation]:
    runner = Runner(**{name: fields[name] for name in RUNS if fields.get(name) is not None})
    chosen = tuple(fields.get("chosen") or ())
    return runner, Confirmation(fields.get("confirm") or 0, chosen, fields.get("chosen_after"))


def imported_events(trial: Trial) -> Iterator[dict[str, Any]]:
    """The events that bring in a trial that ran elsewhere, with its curve (or its value alone) and its end."""
    yield trial_event(dataclasses.replace(trial, kind="imported"))
    known = [] if trial.value is None else [(max(trial.epochs, 1), trial.value)]
    for epoch, value in trial.curve or known:
        scores = trial.scores if value == trial.value else {}
        yield {"event": "epoch", "trial": trial.number, "attempt": 0, "epoch": epoch, "value": value, "scores": scores}
    yield {
        "event": "end", "trial": trial.number, "attempt": 0, "state": trial.state, "reason": trial.reason,
        "minutes": trial.minutes, "estimate": trial.estimate,
    }  # fmt: skip


def _write(descriptor: int, path: Path, lines: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, data)
        os.fsync(descriptor)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free the disk, then --resume") from None
    if written != len(data):
        os.ftruncate(descriptor, size)  # this process holds the lock, nobody else has appended
        raise UserError(f"{path}: cannot be written (disk full); free the disk, then --resume")


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, event) in file order; lines that are no JSON object with an event are passed over."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no study can be read there ({error.strerror})") from None
    for number, line in enumerate(data.splitlines(), 1):
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                yield number, event


class _Fold:
    """Adds events up to a study, which the first of them begins."""

    def __init__(self, folder: Path, event: dict[str, Any]) -> None:
        if event.get("version") != VERSION:
            version = event.get("version")
            raise UserError(f"{folder / FILE}: version {version} of the ledger; this engine reads {VERSION}")
        runner, confirmation = _runner_from_json(event.get("runner") or {})
        self.study = Study(
            folder=folder,
            space=space_from_json(event["space"]),
            runner=runner,
            confirmation=confirmation,
            **{name: event[name] for name in PLAIN if name in event},
        )
        self._scores: dict[tuple[int, int], dict[str, float]] = {}  # (trial, epoch) -> of that evaluation
        self.spans: dict[int, tuple[float, float]] = {}  # trial -> times of its last start and of its last event

    def add(self, event: dict[str, Any]) -> None:
        """Takes one event in; one of a kind or of a trial that is not known is passed over."""
        trials = self.study.trials
        match event:
            case {"event": "extend"}:
                self.study.budget = event.get("budget", self.study.budget)
                self.study.agents = event.get("agents", self.study.agents)
                if event.get("runner") is not None:
                    self.study.runner, self.study.confirmation = _runner_from_json(event["runner"])
            case {"event": "trial", "trial": number} if number == len(trials):
                plain: dict[str, Any] = {name: event.get(name) for name in TRIAL}
                trials.append(Trial(number=number, **plain))
            case {"event": "start", "trial": number} if number < len(trials):
                trials[number].state, trials[number].attempts = "running", event["attempt"]
                self.spans[number] = (event["time"], event["time"])
            case {"event": "epoch", "trial": number} if number < len(trials):
                self._epoch(trials[number], event)
            case {"event": "cut", "trial": number} if number < len(trials):
                trials[number].state = "asked"
                trials[number].retries += bool(event.get("outside"))
                trials[number].minutes += event.get("minutes") or 0.0
            case {"event": "end", "trial": number} if number < len(trials):
                self._end(trials[number], event)

    def _epoch(self, trial: Trial, event: dict[str, Any]) -> None:
        """The same epoch twice: the later one counts."""
        trial.curve = sorted((dict(trial.curve) | {event["epoch"]: event["value"]}).items())
        trial.epochs = trial.curve[-1][0]
        self._scores[trial.number, event["epoch"]] = event.get("scores") or {}
        best, trial.value = max(trial.curve, key=lambda point: self.study.sign * point[1])
        trial.scores = self._scores[trial.number, best]
        began, _ = self.spans.get(trial.number, (event["time"], 0.0))
        self.spans[trial.number] = (began, event["time"])

    def _end(self, trial: Trial, event: dict[str, Any]) -> None:
        trial.state, trial.reason = event["state"], event.get("reason", "")
        trial.minutes += event.get("minutes") or 0.0
        trial.estimate = tuple(event["estimate"]) if event.get("estimate") else None
        if trial.state == "infeasible":
            trial.value, trial.scores = None, {}


def _folded(folder: Path) -> _Fold:
    """What the lines of a study's file add up to.

    Raises:
        UserError: there is no file, no first line, or a line that was changed by hand into something else.
    """
    path, fold = folder / FILE, None
    for number, event in _events(path):
        try:
            if wrong := fault(event):
                raise UserError(wrong)
            if fold is not None:
                fold.add(event)
            elif event["event"] == "study":
                fold = _Fold(folder, event)
        except UserError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
    if fold is None:
        raise UserError(f"{path}: no study: its first line is missing or damaged")
    return fold


def _is(value: Any, kind: str) -> bool:
    if kind == WHOLE:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return is_number(value) if kind == NUMBER else isinstance(value, {TEXT: str, TABLE: dict, LIST: list}[kind])


def fault(event: dict[str, Any]) -> str:
    """What is wrong with an event's fields, "" for nothing; events of other kinds are passed over by the reader."""
    kind = event["event"]
    if not isinstance(kind, str) or kind not in NEEDED:
        return ""
    for name in NEEDED[kind]:
        if name not in event:
            return f"damaged: {kind} has no {name}"
        if not _is(event[name], FIELDS[name]):
            return f"damaged: {name} of {kind} must be {FIELDS[name]}"
    for table, known in ((event, FIELDS), (event.get("runner") or {}, RUNNER)):
        for name, wanted in known.items():
            if table.get(name) is not None and not _is(table[name], wanted):
                return f"damaged: {name} of {kind} must be {wanted}"
    return _deeper(kind, event)


def _deeper(kind: str, event: dict[str, Any]) -> str:
    """What a type alone does not say."""
    if event.get("trial", 0) < 0:
        return "damaged: a trial below 0"
    if not all(0 <= (event.get(name) or 0) <= MOST for name in ("max_epochs", "epoch", "budget", "agents")):
        return f"damaged: epochs, budget and agents must be 0 to {MOST}"
    if kind == "end" and event["state"] not in ENDED:
        return f"damaged: state {event['state']!r:.40} is none of {', '.join(ENDED)}"
    if not all(_is(value, NUMBER) for value in (event.get("scores") or {}).values()):
        return "damaged: a score is no number"
    if event.get("estimate") and not (len(event["estimate"]) == 2 and all(_is(v, NUMBER) for v in event["estimate"])):
        return "damaged: estimate must be a mean and its sd"
    if not all(isinstance(word, str) for word in event.get("arguments") or []):
        return "damaged: arguments must be texts"
    folder = event.get("folder", "") if kind == "trial" else ""
    if folder.startswith("/") or ".." in folder.split("/") or "\0" in folder:
        return f"damaged: folder {folder!r:.60} leaves the study"
    return ""


def take_lock(folder: Path) -> int:
    """The descriptor of a study's lock, held by this process; the kernel frees it however the process ends.

    Raises:
        UserError: another driver holds it; the message names it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such study")
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    locked = flock(descriptor)
    if locked is None:
        warn(f"WARNING: {folder}: this file system has no locks; start no second search of this study")
    if locked is False:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(f"{folder}: a driver runs this study already ({owner}); wait for it or stop it") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
    return descriptor
