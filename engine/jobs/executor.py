"""Where attempts run: this machine (`local`), a Ray cluster (`ray`), a Slurm cluster (`slurm`).

All three are an `Executor`, and start `engine.jobs.attempt` around the command:

    handle = executor.start(attempt)
    while (ended := executor.poll(handle)) is None: ...
    executor.close()
"""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from engine.files import owner_record
from engine.jobs.attempt import EXIT_FENCED, STOPPED, TOOK_OVER, write_json
from engine.jobs.fence import side_file
from pipelines.errors import UserError


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt at a trial, as the driver hands it over."""

    trial: int
    attempt: int  # from 1
    id: str  # random, of the ledger's start event
    # python -m engine.train ... resume=auto (on every attempt: a fresh folder starts afresh, a requeued job goes on),
    # or engine.search.objective.command(...)
    command: list[str]
    environment: dict[str, str]  # added to the executor's own
    log: Path  # output is appended
    folder: Path  # of the run; the fence and .exit lie beside it
    gpus: int = 0  # executor.gpus, or fewer


@dataclasses.dataclass(frozen=True)
class Exit:
    """How an attempt ended."""

    code: int  # 0 = the training finished; 128 + number for a signal
    reason: str  # one line; "" for a success
    outside: bool  # signal, memory, lost node, lost driver: worth another attempt


class Executor(Protocol):
    """What the three have in common. A handle is whatever `start` gives."""

    slots: int  # attempts that run at a time
    gpus: int  # of each (0 = CPU): the command's --nproc_per_node
    notice: str  # a line for the user, or ""

    def start(self, attempt: Attempt) -> Any:
        """The handle of an attempt that begins, or that waits for its place."""

    def poll(self, handle: Any) -> Exit | None:
        """None while it runs, then its end."""

    def waits(self, handle: Any) -> bool:
        """Whether an attempt that has begun waits in a queue once more."""

    def stop(self, handle: Any, grace_s: float) -> None:
        """Asks it to end (SIGTERM), kills what is left after grace_s; returns at once."""

    def forget(self, folder: Path) -> None:
        """Ends what a driver that was killed has left of the trial with this run folder."""

    def close(self) -> None:
        """Kills all and waits until they are gone."""


def wrapper_command(attempt: Attempt, parent: int | str) -> list[str]:
    """`python -m engine.jobs.attempt ...` around the attempt's command; `parent` starts it and holds its stdin."""
    own = {"--folder": attempt.folder, "--log": attempt.log, "--attempt": attempt.attempt, "--id": attempt.id}
    words = [str(word) for pair in own.items() for word in pair]
    return [sys.executable, "-m", "engine.jobs.attempt", *words, "--parent", str(parent), "--", *attempt.command]


def read_exit(attempt: Attempt, asked: bool) -> Exit | None:
    """What the wrapper wrote about its end; None when it came to no end of its own (it was killed).

    Args:
        asked: whether the executor stopped it. A SIGTERM from elsewhere (preemption, shutdown) is an outside cause.
    """
    record = read_record(attempt)
    if not record:
        return None
    foreign = record["reason"] == STOPPED and not asked
    return Exit(record["code"], "killed (SIGTERM)" if foreign else record["reason"], record["outside"] or foreign)


def end_without_record(code: int, asked: bool) -> Exit:
    """The end of a wrapper that left none: it was killed, fenced off, or could not start. None is the trial's doing.

    Args:
        code: of the wrapper, -number for a signal as Popen has it.
        asked: whether the executor stopped it.
    """
    shell = 128 - code if code < 0 else code or 1
    if asked:
        return Exit(shell, STOPPED, False)
    if code < 0:
        return Exit(shell, f"killed ({signal.Signals(-code).name})", True)
    if code == EXIT_FENCED:
        return Exit(shell, TOOK_OVER, True)
    return Exit(shell, f"the attempt could not be started (code {code}): see its log", True)


def whole_number(option: str, text: str) -> int:
    """The number of `--executor OPTION=TEXT`; UserError where it is none."""
    if not text.isdigit():
        raise UserError(f"--executor {option}={text}: expected a whole number")
    return int(text)


def drain(running: list[Any], poll: Callable[[Any], Exit | None], every_s: float, end: float = math.inf) -> None:
    """Polls until no attempt is left, or until time.monotonic() has reached `end`; `poll` takes the ended ones out."""
    while running and time.monotonic() < end:
        for handle in list(running):
            poll(handle)
        time.sleep(every_s)


def read_record(attempt: Attempt) -> dict[str, Any]:
    """The fields of `engine.jobs.attempt.End` of this attempt, {} where there are none (yet)."""
    record = owner_record(side_file(attempt.folder, "exit"))
    return record if record.get("id") == attempt.id else {}


def ask_to_stop(attempt: Attempt, grace_s: float) -> None:
    """Writes `007.stop`, which the wrapper looks for every second, and when it gets SIGTERM."""
    write_json(side_file(attempt.folder, "stop"), {"id": attempt.id, "grace": grace_s})
