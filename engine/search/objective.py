"""A search of any function instead of a training: `--objective module:function`, for studies and for tests.

    python -m engine.search.objective module:function VALUES_JSON RUN_FOLDER METRIC

calls `function(values, report) -> float`, values a dict {parameter: plain value}. `report(epoch, value)` writes a
validation record as engine.train does, so that such a trial has a curve and can be stopped early:

    {"kind": "validation", "step": 3, "epoch": 3, "hmean": 0.97, "score": 0.97}      metric val/hmean

The number returned is the value of the last epoch reported, or of epoch 1; None adds nothing to what was reported. A
value that is no finite number ends the trial as infeasible, as a diverged loss does.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import cli
from engine.run.log import MetricsLog
from engine.search.study import field_of
from pipelines.errors import UserError


def command(objective: str, values: dict[str, Any], folder: Path, metric: str) -> list[str]:
    """The command of one trial, for `executors.Attempt.command`; `metric` as in the study, e.g. val/hmean."""
    return [sys.executable, "-m", "engine.search.objective", objective, json.dumps(values), str(folder), metric]


def names(objective: str) -> tuple[str, str]:
    """Module and function of `module:function`; from here on the working folder is searched first.

    Raises:
        UserError: it is written otherwise.
    """
    module, _, name = objective.partition(":")
    if not module or not name:
        raise UserError(f"--objective {objective}: expected module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    return module, name


def load(objective: str) -> Callable:
    """The function that `module:function` names; the working folder is searched first.

    Raises:
        UserError: no such module, or no such function in it.
    """
    module, name = names(objective)
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UserError(f"--objective {objective}: {error}; start where `import {module}` works") from None
    if not callable(function):
        raise UserError(f"--objective {objective}: {module} has no function {name}")
    return function


def run(function: Callable, values: dict[str, Any], folder: Path, metric: str) -> None:
    """Calls the objective and writes RUN_FOLDER/metrics.jsonl; an earlier attempt's records are replaced.

    Raises:
        UserError: a value is not finite, or there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # An objective has no checkpoint: it starts again, -1 keeps no record. The log moves a new file over the old one,
    # so that its inode, which readers go by, differs; a file removed before may leave it its own.
    log, key = MetricsLog(folder / "metrics.jsonl", resumed_step=-1), field_of(metric)
    curve: dict[int, float] = {}

    def report(epoch: int, value: float) -> None:
        value = float(value)
        if not math.isfinite(value):
            raise UserError(f"the objective is {value} at epoch {epoch}")
        curve[epoch] = value
        log.write({"kind": "validation", "step": epoch, "epoch": epoch, key: value, "score": value})

    try:
        result = function(values, report)
        if result is not None and float(result) not in curve.values():
            report(max(curve, default=1), result)
        if not curve:
            raise UserError("the objective returned None and reported nothing")
    finally:
        log.close()


def main(argv: list[str]) -> int:
    if len(argv) != 4:
        raise UserError("expected: module:function VALUES_JSON RUN_FOLDER METRIC")
    run(load(argv[0]), json.loads(argv[1]), Path(argv[2]), argv[3])
    return 0


if __name__ == "__main__":
    cli.run(main)
