"""The driver: asks, starts, watches, stops, tells. All it knows is in the ledger, so it can be killed anywhere.

    while budget is left or attempts run:
        each running attempt: new validation records -> epoch events -> stopping.decide; its end -> finished, stopped,
                              infeasible, or cut (an outside cause: once more, from its checkpoint);
                              refused for what all trials share -> the search ends with its line
        each free slot: a cut trial again, else ask.configuration -> trial event -> start event -> executor

A trial's fault never leaves this loop; the driver's own (a full disk under the ledger) ends it and its attempts.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from typing import Any

from engine.cli import EXIT_USER_ERROR
from engine.jobs import fence
from engine.jobs.executor import Attempt, Exit
from engine.jobs.tail import Tail
from engine.run.progress import duration
from engine.search import ask, trials
from engine.search.dashboard import of
from engine.search.ledger import Ledger, trial_event
from engine.search.model import stopping
from engine.search.study import ENDED, GIVEN, SCORES, Study, Trial, field_of, untried
from pipelines.errors import UserError

POLL_S = 0.2
GRACE_S = 20.0  # a stopped training's time to end by itself; a checkpoint of HRNet-W44 is written in 3 s
OUTSIDE_RETRIES = 1
DIVERGED = "diverged at step"  # how engine.training.faults.Diverged begins, which would import torch


@dataclasses.dataclass
class Running:
    """An attempt under way."""

    trial: Trial
    attempt: Attempt
    handle: Any  # the executor's
    tail: Tail
    began: float | None = None  # time.monotonic() at which it was seen to run; None while it waits in a queue
    moved: float = 0.0  # time.monotonic() of its last new epoch or of the beginning of its life
    looked: float = 0.0  # time.monotonic() at which `watch` saw to it last
    token: str = ""  # of its life: a job that is requeued begins another
    verdict: dict[str, Any] | None = None  # how it ends once the stop that was asked has happened
    asked: bool = False  # to stop

    @property
    def minutes(self) -> float:
        """That it has run; waiting in a queue, before or in between, not counted."""
        return 0.0 if self.began is None else (time.monotonic() - self.began) / 60


@dataclasses.dataclass
class Driver:
    """What the functions below share."""

    book: Ledger
    executor: Any
    show: Any  # dashboard: event(text, routine), update(study, running), close()
    poll_s: float = POLL_S
    running: list[Running] = dataclasses.field(default_factory=list)
    signalled: int = 0  # SIGINT or SIGTERM that has come
    fault: str = ""  # what a training said that would end every other one too


def search(driver: Driver) -> bool:
    """Runs the study to the end of its budget and of what `--confirm` asks for.

    Returns:
        False when a signal ended it before; attempts are cut by then, and the study can be resumed.

    Raises:
        UserError: a training ended for something that is not searched, so that the next ones would too; attempts are
            cut, that one's among them, and the study can be resumed once it is mended.
    """
    with _signals(driver), contextlib.closing(driver.show), contextlib.closing(driver.executor):
        recover(driver)
        while not driver.signalled and not driver.fault:
            for run in list(driver.running):
                watch(driver, run)
            fill(driver)
            driver.show.update(driver.book.study, driver.running)
            if not driver.running and not driver.signalled and not driver.fault:
                return True
            time.sleep(driver.poll_s)
        driver.show.event("stopping the running trials")
        driver.executor.close()
        for run in driver.running:
            for record in run.tail.read():  # what was measured is kept
                _epoch(driver, run, record)
            _cut(driver, run, "interrupted", outside=False)
    if driver.fault:
        raise UserError(driver.fault)
    return False


@contextlib.contextmanager
def _signals(driver: Driver) -> Iterator[None]:
    """SIGINT and SIGTERM are noted and looked at between two rounds; a second one ends at once."""

    def note(number: int, _: object) -> None:
        if driver.signalled:
            raise KeyboardInterrupt
        driver.signalled = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def recover(driver: Driver) -> None:
    """Closes what an earlier driver left open: its attempts died with it, or are fenced by the next ones."""
    study = driver.book.study
    for trial in study.trials:
        if trial.state == "running":
            minutes = round(driver.book.seen_minutes(trial.number), 3)
            driver.book.append(
                "cut", trial=trial.number, attempt=trial.attempts, reason="driver ended", minutes=minutes
            )
        if trial.state == "asked" and trial.curve:  # it may have ended between its last epoch and the decision
            decision = stopping.decide(trial, study)
            if decision.stop:
                driver.executor.forget(trials.run_folder(study, trial))  # a job outlives its driver
                _end(driver, trial, trial.attempts, "stopped", decision.reason, 0.0, decision.estimate)


def fill(driver: Driver) -> None:
    """Starts trials while slots are free: those that were cut first, then new ones."""
    study = driver.book.study
    while len(driver.running) < driver.executor.slots and not driver.signalled and not driver.fault:
        waiting = [trial for trial in study.trials if trial.state == "asked"]
        if waiting:
            start(driver, waiting[0])
        elif not _ask(driver):
            return


def _ask(driver: Driver) -> bool:
    """Decides the next trial, or all confirming ones; False when nothing is left to decide."""
    study = driver.book.study
    # trials that count towards no budget (imported, recommended) use up a finite space all the same
    if len(study.searched) < study.budget and untried(study.space, study.trials) > 0:
        number = len(study.trials)
        values, kind = ask.configuration(study, number)
        driver.book.append(**trial_event(trials.new_trial(study, values, kind, study.seed)))
        return True
    pending = any(trial.state not in ENDED for trial in study.trials if trial.kind != "confirm")
    if not study.confirmation.seeds or pending:
        return False
    events = ask.recommending(study) or ask.confirming(driver.book)
    driver.book.append_all(events)
    return bool(events)


def start(driver: Driver, trial: Trial) -> None:
    """Starts the next attempt at a trial; the ledger knows of it before the executor does."""
    attempt = trials.attempt_of(driver.book.study, trial, driver.executor.gpus)
    where = driver.book.study.runner.executor
    driver.book.append("start", trial=trial.number, attempt=attempt.attempt, id=attempt.id, where=where)
    handle = driver.executor.start(attempt)
    driver.running.append(Running(trial, attempt, handle, Tail(attempt.folder / "metrics.jsonl")))
    again = f", attempt {attempt.attempt}" if attempt.attempt > 1 else ""
    words = "  ".join(f"{key.rpartition('.')[2]} {value}" for key, value in trial.values.items())
    driver.show.event(f"trial {trial.number} starts{again} ({trial.kind})  {words}")


def watch(driver: Driver, run: Running) -> None:
    """Takes in what an attempt has measured, stops it where it should end, and closes it when it has."""
    exit = driver.executor.poll(run.handle)  # before the records: those of an ended attempt are all there
    _count(driver, run)
    for record in run.tail.read():
        if run.verdict is None:
            _epoch(driver, run, record)
    if exit is not None:
        driver.running.remove(run)
        _close(driver, run, exit)
        return
    if run.verdict is None:
        run.verdict = _overdue(driver, run)
    if run.verdict is not None and not run.asked:
        driver.executor.stop(run.handle, GRACE_S)
        run.asked = True


def _count(driver: Driver, run: Running) -> None:
    """Sees to the times of an attempt: those in which its job waits for a node once more are not the trial's."""
    now, record = time.monotonic(), fence.read(run.attempt.folder)
    if record.get("id") == run.attempt.id and record["token"] != run.token:
        run.token, run.moved = record["token"], now
        run.began = now if run.began is None else run.began
    elif run.began is not None and driver.executor.waits(run.handle):
        run.began += now - run.looked
        run.moved += now - run.looked
    run.looked = now


def _epoch(driver: Driver, run: Running, record: dict[str, Any]) -> None:
    """One validation record -> an epoch event, unless it is known, and the decision whether the trial goes on."""
    study, trial = driver.book.study, run.trial
    if record.get("bad_images"):
        run.moved = time.monotonic()
        driver.show.event(f"trial {trial.number} epoch {record['epoch']} left out: pages could not be read")
        return
    key = field_of(study.metric)
    epoch, value = record["epoch"], record.get(key)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        measured = ", ".join(name for name in SCORES if name in record) or "nothing"
        reason = f"no {study.metric} among what was measured ({measured})"
        if key in record:
            reason = f"{study.metric} is no number at epoch {epoch}"
        run.verdict = {"state": "infeasible", "reason": reason}
        return
    if dict(trial.curve).get(epoch) == value:
        return
    run.moved = time.monotonic()
    scores = {name: record[name] for name in SCORES if isinstance(record.get(name), (int, float))}
    driver.book.append(
        "epoch", trial=trial.number, attempt=run.attempt.attempt, epoch=epoch, value=value, scores=scores
    )
    driver.show.event(f"trial {trial.number} epoch {of(epoch, study)}  {study.metric} {value:.4f}", routine=True)
    decision = stopping.decide(trial, study)
    if decision.stop:
        run.verdict = {"state": "stopped", "reason": decision.reason, "estimate": decision.estimate}


def _overdue(driver: Driver, run: Running) -> dict[str, Any] | None:
    """The verdict over an attempt that takes too long."""
    if run.began is None:
        return None
    limits, minutes = driver.book.study.runner, run.trial.minutes + run.minutes
    if 0 < limits.timeout < minutes:
        return {"state": "infeasible", "reason": f"timed out after {minutes:.0f} minutes"}
    if 0 < limits.stall < (time.monotonic() - run.moved) / 60:
        return {"state": "infeasible", "reason": f"no evaluation for {limits.stall:g} minutes"}
    return None


def _close(driver: Driver, run: Running, exit: Exit) -> None:
    """The end of an attempt: what it means for its trial."""
    trial, number, minutes = run.trial, run.attempt.attempt, run.minutes
    if run.verdict is not None:  # even where it got to its end meanwhile: how often we look decides nothing
        _end(driver, trial, number, minutes=minutes, **run.verdict)
    elif exit.code == 0 and trial.value is not None:
        _end(driver, trial, number, "finished", "", minutes)
    elif exit.code == 0:
        _end(driver, trial, number, "infeasible", "it ended without an evaluation", minutes)
    elif exit.outside and trial.retries < OUTSIDE_RETRIES:
        _cut(driver, run, exit.reason, outside=True)
    elif _not_the_trials(driver.book.study, trial, exit):
        _cut(driver, run, exit.reason, outside=False)
        command = "compare --resume --out" if driver.book.study.method == GIVEN else "search --resume"
        goes_on = f"`python -m engine.{command} {driver.book.folder}` goes on"
        driver.fault = f"{exit.reason} (trial {trial.number}; once that is mended, {goes_on})"
    else:
        again = f"{trial.retries + 1} times, at last: " if exit.outside else ""
        _end(driver, trial, number, "infeasible", f"{again}{exit.reason or f'exit code {exit.code}'}", minutes)


def _not_the_trials(study: Study, trial: Trial, exit: Exit) -> bool:
    """Whether a training was refused for what all trials share: its words name no searched key or text value.

    A divergence is the trial's, whatever is searched. So is memory (exit.outside), which any setting may need more of.
    """
    if study.objective or exit.outside or exit.code != EXIT_USER_ERROR or exit.reason.startswith(DIVERGED):
        return False
    own = [*trial.values, *(value for value in trial.values.values() if isinstance(value, str))]
    return not any(word in exit.reason for word in own)


def _end(
    driver: Driver, trial: Trial, attempt: int, state: str, reason: str, minutes: float, estimate: tuple | None = None
) -> None:
    driver.book.append(
        "end", trial=trial.number, attempt=attempt, state=state, reason=reason, minutes=round(minutes, 3),
        estimate=None if estimate is None else [float(part) for part in estimate],
    )  # fmt: skip
    value = "" if trial.value is None else f"  {driver.book.study.metric} {trial.value:.4f}"
    why = f": {reason}" if reason else ""
    driver.show.event(f"trial {trial.number} {state}{value}  in {duration(60 * trial.minutes)}{why}")


def _cut(driver: Driver, run: Running, reason: str, outside: bool) -> None:
    driver.book.append(
        "cut", trial=run.trial.number, attempt=run.attempt.attempt, reason=reason, outside=outside,
        minutes=round(run.minutes, 3),
    )  # fmt: skip
    driver.show.event(f"trial {run.trial.number} cut: {reason}; it goes on from its last checkpoint")
