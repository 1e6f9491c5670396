"""The preset's own configuration, tried before a search trains anything: `engine.train ... --dry-run` as a child.

    refuse_what_cannot_train(study, executor)

What is wrong with the preset, the data or the machine would end every trial, one after another, each after minutes.
Here it ends the command, in the line of the training itself, and a folder that was made for it is taken away again.
"""

import contextlib
import secrets
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from engine.cli import EXIT_USER_ERROR
from engine.config.load import shown
from engine.jobs.executor import Attempt, Executor, Exit
from engine.run.progress import duration
from engine.search import ledger, trials
from engine.search.study import ENDED, Study
from pipelines.errors import UserError

POLL_S = 0.1
NAME = "preflight"  # of its log, and of what the attempt's wrapper leaves beside the run folders
TRIES = 2  # where it is killed from outside, as for a trial


def refuse_what_cannot_train(study: Study, executor: Executor) -> None:
    """Tries the study's first configuration on its executor, unless a training here has been judged already.

    A function (--objective) is not tried: nobody knows what a call costs. A resumed study is, as long as no trial of it
    has a value: nothing shows yet that its trials can train, and what ended it may be the very fault.

    Args:
        study: on disk or not yet.
        executor: closed when this raises.

    Raises:
        UserError: what the training says.
    """
    judged = any(trial.curve for trial in study.trials if trial.kind != "imported")
    left = len(study.searched) < study.budget or any(trial.state not in ENDED for trial in study.trials)
    if judged or not left or study.objective:
        return
    print("preflight: two steps of the preset's own configuration", flush=True)
    began = time.monotonic()
    with contextlib.ExitStack() as undo, _terminated_as_interrupted():
        undo.callback(_undo, study.folder, *_missing(study.folder))
        undo.callback(executor.close)  # first: what still runs would write
        end = _tried(study, executor)
        if end.code == EXIT_USER_ERROR and not end.outside:
            raise UserError(end.reason)  # the training's own line
        if end.code:
            values = [f"{key}={shown(value)}" for key, value in study.first.items()]
            again = shlex.join([sys.executable, "-m", "engine.train", *study.arguments, *values, "--dry-run"])
            words = "the preset's own configuration cannot be trained here"
            raise UserError(f"{words}: {end.reason}; to see more: {again}")
        undo.pop_all()  # nothing is undone
    print(f"preflight: it can train ({duration(time.monotonic() - began)})", flush=True)


def _tried(study: Study, executor: Executor) -> Exit:
    """The end of the dry run. What it reads into the study's caches (indexes, built-in pages) trial 0 finds there."""
    ledger.make_folder(study.folder)
    first = trials.new_trial(study, study.first, "preset", study.seed)
    command = [*trials.command(study, first, executor.gpus), "--dry-run"]
    folder = trials.run_folder(study, first).with_name(NAME)
    log = study.folder.resolve() / "logs" / f"{NAME}.log"
    for number in range(1, TRIES + 1):
        attempt = Attempt(0, number, secrets.token_hex(8), command, {}, log, folder, executor.gpus)
        handle = executor.start(attempt)
        while (end := executor.poll(handle)) is None:
            time.sleep(POLL_S)
        if not end.outside:
            break
    assert end is not None
    for left in (log, *folder.parent.glob(f"*{NAME}*")):
        left.unlink(missing_ok=True)
    return end


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does, so that nothing is left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _missing(folder: Path) -> tuple[list[Path], list[Path]]:
    """What is not there yet: the study's folder or what will be new in it, and folders above it."""
    own = [folder, *(folder / name for name in ("trials", "logs", "slurm"))]
    return [path for path in own if not path.exists()], [path for path in folder.parents if not path.exists()]


def _undo(folder: Path, new: list[Path], above: list[Path]) -> None:
    """Takes away what was `_missing` before; folders above only if they are empty."""
    if not (folder / ledger.FILE).exists() or folder not in new:  # nobody else has begun this study meanwhile
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
    for path in above:
        with contextlib.suppress(OSError):  # not empty
            path.rmdir()
