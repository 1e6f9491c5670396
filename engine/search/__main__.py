"""Hyperparameter search over trainings of this engine.

    python -m engine.search --budget 8 [--agents N] [--sweep FILE] [preset=NAME] [section.key=value ...]
    python -m engine.search --budget 8 preset=demo
    python -m engine.search --resume STUDY [--budget 16]

Each trial is one `engine.train` in a process of its own. Everything is kept in studies/NAME: trials.jsonl (the ledger),
trials/ (run folders), logs/, report.md and report.html. Killed at any moment, --resume goes on.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import contextlib
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from engine import cli
from engine.search import options as flags
from engine.search.options import Options
from pipelines.errors import UserError


def main(argv: list[str]) -> int:
    options, items = flags.parse(argv, __doc__ or "")
    alone = [flag for flag in ("--resume", "--refine", "--report", "--import") if flag in options.given()]
    if len(alone) > 1:
        raise UserError(f"{' and '.join(alone)} do not go together; give one of them")
    if options.report:
        return report(options.report, options, items)
    if options.resume:
        return resume(options.resume, options, items)
    return begin(options, items)


def report(named: str, options: Options, items: Sequence[str]) -> int:
    """--report STUDY."""
    from engine.search import ledger, plan

    others = [flag for flag in options.given() if flag not in ("--report", "--study-root", "--baseline")] + list(items)
    if others:
        raise UserError(f"{others[0]}: --report takes a study, and --baseline if any")
    study = ledger.read(plan.find_study(named, options))
    print(_written(study, plan.runner(options, study.runner).baseline), flush=True)
    return 0


def resume(named: str, options: Options, items: Sequence[str]) -> int:
    """--resume STUDY [--budget N]."""
    from engine.search import ledger, plan, preflight, trials

    folder = plan.find_study(named, options)
    before = ledger.read(folder)
    changes = plan.resume_changes(before, options, items)
    study = dataclasses.replace(before, **changes)
    plan.check_method(study, known=any(trial.value is not None for trial in study.trials))
    if options.dry_run:
        print("\n".join(plan.describe(study)), flush=True)
        return 0
    with contextlib.closing(ledger.Ledger(folder)) as book:
        executor = trials.executor_of(study)
        print(f"resuming {folder}", flush=True)
        preflight.refuse_what_cannot_train(study, executor)
        if changes:
            book.append(**ledger.extend_event(book.study, **changes))
        return drive(book, executor)


def begin(options: Options, items: Sequence[str]) -> int:
    """A new study, alone or from what another or a table knows."""
    from engine.search import ledger, plan, preflight, trials

    study, notices, events = plan.prepare(options, items)
    executor = trials.executor_of(study)
    for line in [*notices, *plan.describe(study), executor.notice]:
        if line:
            print(line, flush=True)
    if options.dry_run:
        first = trials.new_trial(study, study.first, "preset", study.seed)
        print("trial 0:", shlex.join(trials.command(study, first, executor.gpus)), flush=True)
        return 0
    preflight.refuse_what_cannot_train(study, executor)
    with contextlib.closing(ledger.create(study, events)) as book:
        return drive(book, executor)


def drive(book, executor) -> int:
    """Runs the study, reports, and returns the exit code."""
    from engine.search.dashboard import Dashboard, text_table
    from engine.search.driver import Driver, search

    done = search(Driver(book, executor, Dashboard()))
    print(text_table(book.study), flush=True)
    if not done:
        print(f"interrupted; `python -m engine.search --resume {book.folder}` goes on", flush=True)
        return cli.EXIT_INTERRUPTED
    if book.study.trials and book.study.incumbent() is None:
        reason, logs = book.study.trials[-1].reason, book.folder / "logs"
        raise UserError(f"no trial could be measured, the last one because of: {reason}; logs are in {logs}")
    print(f"report: {_written(book.study, book.study.runner.baseline)}", flush=True)
    return 0


def _written(study, baseline: float | None) -> Path:
    """Writes the report of a study; where."""
    from engine.search.model import surrogate
    from engine.search.report.write import write

    return write(study, surrogate.fitted(study), baseline)


if __name__ == "__main__":
    cli.run(main)
