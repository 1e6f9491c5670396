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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


@dataclasses.dataclass
class Handle:
    """An attempt that waits or runs."""

    attempt: Attempt
    job: Any  # the wrapper's process, Ray's task, submitit's job
    share: int = 0  # local: index of its share of the GPUs
    asked: bool = False  # to stop
    deadline: float = math.inf  # time.monotonic() at which it is ended by force
    over_since: float = math.inf  # Slurm: time.monotonic() at which it was first seen to be done with
    exit: Exit | None = None


class Executor:
    """What the three have in common."""

    force_after_s, close_wait_s, look_s = 5.0, 30.0, 0.05  # past a stop's grace; of `close` in all, and between looks
    close_grace_s = 5.0  # of `close`: time of a training to end by itself

    def __init__(self, slots: int, gpus: int, notice: str = "") -> None:
        self.slots = slots  # attempts that run at a time
        self.gpus = gpus  # of each (0 = CPU): the command's --nproc_per_node
        self.notice = notice  # a line for the user, or ""
        self._running: list[Handle] = []

    def start(self, attempt: Attempt) -> Handle:
        """The handle of an attempt that begins, or that waits for its place."""
        raise NotImplementedError

    def poll(self, handle: Handle) -> Exit | None:
        """None while it runs, then its end."""
        raise NotImplementedError

    def waits(self, handle: Handle) -> bool:
        """Whether an attempt that has begun waits in a queue once more."""
        return False

    def stop(self, handle: Handle, grace_s: float) -> None:
        """Asks it to end (SIGTERM), returns at once; what is left past grace_s, `poll` kills."""
        if handle.exit is None and not handle.asked:
            handle.asked, handle.deadline = True, time.monotonic() + grace_s + self.force_after_s
            write_json(side_file(handle.attempt.folder, "stop"), {"id": handle.attempt.id, "grace": grace_s})
            self._tell(handle)

    def _tell(self, handle: Handle) -> None:
        """Makes the stop known at once; the wrapper looks for its stop file every second."""
        raise NotImplementedError

    def forget(self, folder: Path) -> None:
        """Ends what a driver that was killed has left of the trial with this run folder."""

    def close(self) -> None:
        """Ends all and waits until nothing of them is left, close_wait_s at most."""
        end = time.monotonic() + self.close_wait_s
        for handle in self._running:
            self.stop(handle, self.close_grace_s)
            handle.deadline = min(handle.deadline, time.monotonic() + self.close_grace_s + self.force_after_s)
        while self._running and time.monotonic() < end:
            for handle in list(self._running):
                self.poll(handle)
            time.sleep(self.look_s)


def train_command(gpus: int) -> list[str]:
    """`python -m engine.train`, by torchrun on more than one GPU."""
    ranks = ["torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}", "-m"] if gpus > 1 else []
    return [sys.executable, "-m", *ranks, "engine.train"]


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


def read_record(attempt: Attempt) -> dict[str, Any]:
    """The fields of `engine.jobs.attempt.End` of this attempt, {} where there are none (yet)."""
    record = owner_record(side_file(attempt.folder, "exit"))
    return record if record.get("id") == attempt.id else {}


def open_executor(text: str, agents: int, gpus: Sequence[str] | None = None) -> Executor:
    """The executor that `--executor NAME[:key=value,...]` names.

    Args:
        text: `local`, `ray`, `ray:gpus=2,cpus=8`, `slurm:partition=gpu,time=600,gpus=4`.
        agents: attempts at a time.
        gpus: numbers of this machine's GPUs for `local`, [] for the CPU; None finds them.

    Raises:
        UserError: unknown name or option, its extra is not installed, no cluster, more agents than GPUs.
    """
    name, _, rest = text.partition(":")
    options = dict(item.partition("=")[::2] for item in rest.split(",") if item)
    if name == "local":
        from engine.jobs.local import LocalExecutor, visible_gpus

        if options:
            raise UserError(f"--executor {text}: local takes no options; give --agents and CUDA_VISIBLE_DEVICES")
        return LocalExecutor(agents, visible_gpus() if gpus is None else gpus)
    if name == "ray":
        from engine.jobs.ray import RayExecutor

        return RayExecutor(agents, options)
    if name == "slurm":
        from engine.jobs.slurm import SlurmExecutor

        return SlurmExecutor(agents, options)
    raise UserError(f"--executor {text}: expected one of local, ray, slurm")
