"""Learning-rate schedules compared, with repeats.

    python -m engine.compare preset=NAME schedules=cosine,onecycle,poly warmup=0,1,3 seeds=3 [section.key=value ...]

Trains every schedule with every warm-up (in epochs) and every seed, and says which of them differ: the H-mean of the
last epoch, its spread over the seeds, and whether a difference is more than luck. seeds=3 are 0, 1, 2; seeds=4,5 these.
lrs=1e-4,3e-4 makes the learning rate a further axis: a schedule that was never tried at its own best rate has not lost.

Everything is kept in --out FOLDER: trials.jsonl (the ledger), trials/ (run folders), logs/, report.md, report.html,
comparison.json. Killed at any moment, --resume --out FOLDER goes on; with seeds=N it adds seeds.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import argparse
import contextlib
import dataclasses
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import cli
from engine.compare import plan
from engine.config.load import load_config
from engine.run.log import read_metrics
from engine.search import ledger, trials
from engine.search.study import Runner, Study
from pipelines.errors import UserError

STEPS, EVERY = 6, 3  # steps tried; the last window of 3 is measured, as compiling and first reads are before it


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = cli.parser("engine.compare", __doc__)
    parser.add_argument("words", nargs="*", metavar="key=value", help="schedules, warmup, lrs, seeds; settings of all")
    parser.add_argument("--out", type=Path, help="folder of the comparison (default: studies/compare-PRESET-TIME)")
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out; seeds=N adds seeds")
    parser.add_argument("--report", action="store_true", help="report anew what has ended of --out, and leave")
    parser.add_argument("--agents", type=int, help="trainings at a time; each gets its share of the GPUs (default 1)")
    parser.add_argument("--executor", help="where trainings run: local, ray[:...], slurm[:...] (default local)")
    parser.add_argument("--objective", default="", help="module:function instead of trainings, as in engine.search")
    parser.add_argument("--dry-run", action="store_true", help="list the trainings, measure the time of one, and leave")
    return parser


def main(argv: list[str]) -> int:
    flags = arguments().parse_intermixed_args(argv)
    if flags.agents is not None and not 1 <= flags.agents <= 1000:
        raise UserError(f"--agents {flags.agents}: allowed is 1 to 1000")
    say = _say(flags.json)
    if flags.report:
        study, _ = plan.reopen(flags.out, flags.words)
        return finish(study, flags.json)
    if flags.resume:
        return resume(flags, say)
    asked = plan.request(flags.words, flags.objective)
    folder = plan.folder_of(flags.out, asked.settings, flags.objective)
    runner = Runner(executor=flags.executor or "local")
    study = plan.study_of(asked, folder, flags.agents or 1, runner, flags.objective)
    executor = trials.executor_of(study)
    for line in [*asked.notices, executor.notice, *describe(study)]:
        if line:
            say(line)
    if flags.dry_run:
        return dry_run(study, executor, flags.json, say)
    events = [ledger.trial_event(trial) for trial in study.trials]
    study.trials = []
    with contextlib.closing(ledger.create(study, events)) as book:
        return drive(book, executor, flags.json)


def _say(as_json: bool):
    """With --json stdout holds the result alone."""
    return lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def resume(flags: argparse.Namespace, say) -> int:
    """--resume --out FOLDER [seeds=N]."""
    study, new = plan.reopen(flags.out, flags.words)
    study.runner = dataclasses.replace(study.runner, executor=flags.executor or study.runner.executor)
    if new and any(trial.value is not None for trial in study.trials):  # the report says that seeds were added later
        study.runner = dataclasses.replace(study.runner, looked=len(study.trials))
    study.agents, study.budget = flags.agents or study.agents, len(study.trials) + len(new)
    executor = trials.executor_of(study)
    if flags.dry_run:
        study.trials = [trial for trial in study.trials if trial.state == "asked"] + new
        return dry_run(study, executor, flags.json, say)
    with contextlib.closing(ledger.Ledger(flags.out)) as book:
        events = [ledger.trial_event(trial) for trial in new]
        extended = {"budget": study.budget, "agents": study.agents, "runner": study.runner}
        # One write: a budget without its trials would ask the search's model.
        book.append_all([*events, ledger.extend_event(study, **extended)])
        say(f"resuming {flags.out}")
        return drive(book, executor, flags.json)


def describe(study: Study) -> list[str]:
    """What will be compared, in a few lines."""
    lines = [f"comparison {study.folder}: {len(study.trials)} trainings, {study.metric} of the last epoch"]
    for key, values in plan.axes_of(study).items():
        lines.append(f"  {key}: {', '.join(map(plan.shown, values))}")
    seeds = list(dict.fromkeys(trial.seed for trial in study.trials))
    return [*lines, f"  seeds: {', '.join(map(str, seeds))}, the same for all: order of the pages and first weights"]


def dry_run(study: Study, executor: Any, as_json: bool, say) -> int:
    """Lists the trainings and estimates their time from a few steps of the first."""

    commands = [shlex.join(trials.command(study, trial, executor.gpus)) for trial in study.trials]
    minutes = None if study.objective or not study.trials else minutes_each(study, executor.gpus)
    if as_json:
        print(json.dumps({"trainings": commands, "minutes_each": minutes, "agents": study.agents}), flush=True)
        return 0
    for trial, command in zip(study.trials, commands, strict=True):
        say(f"{trial.number}: {command}")
    if minutes is not None:
        rounds = -(-len(study.trials) // study.agents)
        say(f"about {minutes:.1f} minutes a training, {minutes * rounds:.0f} in all; {study.agents} at a time")
    return 0


def drive(book: ledger.Ledger, executor: Any, as_json: bool) -> int:
    """Runs what is left, reports, and returns the exit code."""
    from rich.console import Console

    from engine.search.dashboard import Dashboard
    from engine.search.driver import Driver, search

    say = _say(as_json)
    show = Dashboard(Console(stderr=as_json, highlight=False, soft_wrap=True))
    if not search(Driver(book, executor, show)):
        say(f"interrupted; `python -m engine.compare --resume --out {book.folder}` goes on")
        return cli.EXIT_INTERRUPTED
    if all(trial.value is None for trial in book.study.trials):
        reason, logs = book.study.trials[-1].reason, book.folder / "logs"
        raise UserError(f"no training could be measured, the last one because of: {reason}; logs are in {logs}")
    return finish(book.study, as_json)


def finish(study: Study, as_json: bool) -> int:
    """Writes the report and says what was found."""
    from engine.compare import report

    say = _say(as_json)
    result, path = report.write(study)
    if as_json:
        print(json.dumps(result), flush=True)
        return 0
    say(report.text_of(result))
    say(f"report: {path}")
    return 0


def minutes_each(study: Study, gpus: int) -> float:
    """Minutes of one training: its start, its steps and its evaluations, at the speed of a few steps on this machine.

    Raises:
        UserError: the settings do not train; the message is the training's own last line.
    """
    with tempfile.TemporaryDirectory(prefix="dbnet-compare-") as folder:
        own = [f"run_root={folder}", "name=probe", f"trainer.max_steps={STEPS}", f"trainer.log_every={EVERY}"]
        command = [*trials.command(study, study.trials[0], gpus), *own, "resume=none", "wandb=false"]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.monotonic() - began
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "no words").splitlines()
            raise UserError(f"a few steps of the first training failed: {lines[-1].removeprefix('error: ')}")
        records = read_metrics(Path(folder, "probe", "metrics.jsonl"))
    step = [record["step_ms"] for record in records if record["kind"] == "train"][-1] / 1000
    evaluation = next(record["seconds"] for record in records if record["kind"] == "validation")
    config, _ = load_config(study.arguments)
    epochs = config.trainer.max_epochs
    said = re.search(r"(\d+) steps an epoch", done.stdout)
    assert said is not None  # engine.train announces it before its first step
    steps = epochs * int(said[1])
    start = max(0.0, wall - STEPS * step - evaluation)
    return (start + steps * step + math.ceil(epochs / config.eval.every_epochs) * evaluation) / 60


if __name__ == "__main__":
    cli.run(main)
