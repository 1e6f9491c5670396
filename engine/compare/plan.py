"""From the command line to a study of given trials, checked and not yet on disk.

    asked = request(["preset=demo", "schedules=cosine,poly", "seeds=3"])
    study = study_of(asked, folder, agents=1, runner=Runner())

A comparison is a study of `engine.search` whose trials are all decided at its start: every combination of the axes with
every seed. The seeds come one after another, so a comparison that is cut short has whole seeds. Nothing stops a trial
early: the curves of schedules cross.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config.cautions import warnings
from engine.config.load import load_config, shown
from engine.evaluation.cleval import key_of
from engine.search import ledger
from engine.search.plan import OWN, default_name
from engine.search.space import Parameter, Space
from engine.search.study import GIVEN, Runner, Study, Trial
from engine.search.trials import new_trial
from pipelines.errors import UserError

SCHEDULE, WARMUP, LR = "models.scheduler.name", "models.scheduler.warmup_epochs", "models.optimizer.lr"
T_MAX = "models.scheduler.T_max"
AXES = {"schedules": SCHEDULE, "warmup": WARMUP, "lrs": LR}  # word of the command line -> key of the settings
DEFAULTS = {"schedules": "cosine,onecycle,poly", "seeds": "3"}
LARGEST_SEED, MOST_TRAININGS = 10**9, 10_000
KIND = "given"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    axes: dict[str, list]  # key -> values in the order given; all three keys where they were given
    seeds: list[int]
    settings: list[str]  # preset=... key=value ... of every training
    notices: list[str]


def read(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Splits `schedules=... warmup=... lrs=... seeds=...` from the settings of the trainings.

    Raises:
        UserError: a word without `=`, or one of the four twice.
    """
    own, settings = {}, []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word}: expected key=value")
        if name not in (*AXES, "seeds"):
            settings.append(word)
        elif name in own:
            raise UserError(f"{word}: {name} is given twice; list its values with commas")
        else:
            own[name] = text
    return own, settings


def request(words: Sequence[str], objective: str = "") -> Request:
    """The request of a command line.

    Args:
        words: `key=value` items: axes, seeds, settings.
        objective: module:function that takes the place of the trainings; it has no settings then.

    Raises:
        UserError: whatever is wrong with it, before anything has been created.
    """
    own, settings = read(words)
    given = DEFAULTS | own
    axes = {AXES["schedules"]: _list("schedules", given["schedules"])}
    axes |= {AXES[name]: _numbers(name, given[name]) for name in ("warmup", "lrs") if name in given}
    seeds = read_seeds(given["seeds"])
    if math.prod(map(len, axes.values())) < 2:
        raise UserError(
            f"schedules={given['schedules']}: one combination has nothing to be compared with; name two schedules, "
            "warm-ups or learning rates"
        )
    if math.prod(map(len, axes.values())) * len(seeds) > MOST_TRAININGS:
        raise UserError(f"seeds={given['seeds']}: more than {MOST_TRAININGS} trainings")
    if objective:
        if settings:
            raise UserError(f"{settings[0]}: a function (--objective) takes no settings")
        return Request(axes, seeds, [], [])
    _refuse_own(settings, axes)
    settings, notices = _same_length(settings, axes)
    return Request(axes, seeds, settings, notices + check(axes, settings))


def read_seeds(text: str) -> list[int]:
    """`3` -> [0, 1, 2]; `0,7,9` -> these.

    Raises:
        UserError: fewer than two, not whole numbers, or one twice.
    """
    parts = _list("seeds", text)
    if not all(part.isascii() and part.isdigit() and int(part[:12]) <= LARGEST_SEED for part in parts):
        raise UserError(f"seeds={text}: expected how many (3), or a list of whole numbers (0,1,7)")
    seeds = [int(part) for part in parts] if len(parts) > 1 else list(range(min(int(text), MOST_TRAININGS + 1)))
    if len(seeds) < 2:
        raise UserError(f"seeds={text}: one training each cannot be told from luck; give 2 or more")
    return seeds


def _list(name: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not all(parts) or len(set(parts)) != len(parts):
        raise UserError(f"{name}={text}: expected different values with commas between")
    return parts


def _numbers(name: str, text: str) -> list:
    try:
        values = [float(part) for part in _list(name, text)]
    except ValueError:
        raise UserError(f"{name}={text}: expected numbers with commas between") from None
    if not all(map(math.isfinite, values)) or len(set(values)) != len(values):
        raise UserError(f"{name}={text}: expected different numbers with commas between")
    return [int(value) if value.is_integer() else value for value in values]


def _refuse_own(settings: Sequence[str], axes: dict[str, list]) -> None:
    """Settings that the comparison itself gives to its trainings."""
    instead = {SCHEDULE: "schedules=", WARMUP: "warmup="} | ({LR: "lrs="} if LR in axes else {})
    for item in settings:
        key = item.partition("=")[0]
        if key in instead:
            raise UserError(f"{item}: the comparison sets {key} for every training; use {instead[key]}")
        if key in OWN:
            what = {"run_root": "--out FOLDER", "name": "--out FOLDER", "seed": "seeds=", "resume": "--resume"}
            raise UserError(f"{item}: the comparison sets {key} for every training; use {what.get(key, 'nothing')}")


def _same_length(settings: list[str], axes: dict[str, list]) -> tuple[list[str], list[str]]:
    """Cosine ends where the run does, as onecycle and poly do by their nature, unless T_max is given."""
    if "cosine" not in axes[SCHEDULE] or any(item.partition("=")[0] == T_MAX for item in settings):
        return settings, []
    config, _ = load_config(settings)
    epochs, preset = config.trainer.max_epochs, config.models.scheduler.T_max
    if epochs == preset:
        return settings, []
    return [*settings, f"{T_MAX}={epochs}"], [
        f"note: cosine runs with T_max {epochs}, the length of the run, as onecycle and poly do by their nature; "
        f"{T_MAX}={preset} would keep the preset's"
    ]


def combinations(axes: dict[str, list]) -> list[dict[str, Any]]:
    """Every combination of the axes' values, schedules outermost."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def check(axes: dict[str, list], settings: list[str]) -> list[str]:
    """Tries every combination's settings; returns the cautions that they bring.

    Raises:
        UserError: a training would refuse them, or a warm-up leaves nothing of the run.
    """
    cautions: dict[str, None] = {}
    for values in combinations(axes):
        items = [*settings, *(f"{key}={shown(value)}" for key, value in values.items())]
        config, _ = load_config(items)
        epochs, warmup = config.trainer.max_epochs, config.models.scheduler.warmup_epochs
        if warmup >= epochs:
            raise UserError(f"warmup={warmup:g}: the run has {epochs} epochs (trainer.max_epochs); take a shorter one")
        lines = [line for line in warnings(config) if not (T_MAX in line and config.models.scheduler.name != "cosine")]
        cautions |= dict.fromkeys(lines)
    return list(cautions)


def study_of(asked: Request, folder: Path, agents: int, runner: Runner, objective: str = "") -> Study:
    """The study of a request with all its trials, not on disk."""
    varied = {key: tuple(values) for key, values in asked.axes.items() if len(values) > 1}
    kinds = {key: "choice" if key == SCHEDULE else "ordinal" for key in varied}
    space = Space(tuple(Parameter(key, kinds[key], values=values) for key, values in varied.items()))
    alone = [f"{key}={shown(values[0])}" for key, values in asked.axes.items() if len(values) == 1]
    settings = [*asked.settings, *alone]
    config = None if objective else load_config(settings)[0]
    metric = f"val/{key_of('hmean', config.eval.select if config else 'micro')}"
    study = Study(
        folder=folder, name=folder.name, space=space, metric=metric, method=GIVEN, agents=agents,
        seed=asked.seeds[0], max_epochs=config.trainer.max_epochs if config else 1, early_stop={"type": "none"},
        arguments=[] if objective else settings, objective=objective, budget=0, runner=runner,
    )  # fmt: skip
    study.trials = missing(study, combinations(asked.axes), asked.seeds)
    study.first, study.budget = study.trials[0].values, len(study.trials)
    return study


def missing(study: Study, wanted: list[dict[str, Any]], seeds: Sequence[int]) -> list[Trial]:
    """Trials of the combinations with these seeds, of the seeds that the study does not have."""
    known = {trial.seed for trial in study.trials}
    new = [(seed, values) for seed in seeds if seed not in known for values in wanted]
    start = len(study.trials)
    return [new_trial(study, values, KIND, seed, number=start + place) for place, (seed, values) in enumerate(new)]


def axes_of(study: Study) -> dict[str, list]:
    """The axes that vary in a study: key -> values."""
    return {parameter.name: list(parameter.values) for parameter in study.space.parameters}


def folder_of(out: Path | None, settings: Sequence[str], objective: str) -> Path:
    """Where the comparison lives: what --out names, else studies/compare-PRESET-TIME.

    Raises:
        UserError: there is one already.
    """
    folder = out or Path("studies") / f"compare-{default_name(settings, objective or None)}"
    if (folder / ledger.FILE).exists():
        raise UserError(f"{folder} exists already: --resume --out {folder} goes on with it, or give another --out")
    return folder


def reopen(folder: Path | None, words: Sequence[str]) -> tuple[Study, list[Trial]]:
    """A comparison that is on disk, and the trials that more seeds add to it.

    Raises:
        UserError: there is none, it is a search, or something other than seeds is given.
    """
    if folder is None:
        raise UserError("which comparison? --resume and --report need --out FOLDER")
    study = ledger.read(folder)
    if study.method != GIVEN:
        raise UserError(f"{folder} is a search: `python -m engine.search --resume {folder}` goes on with it")
    own, _ = read(words)
    late = [word for word in words if word.partition("=")[0] != "seeds"]
    if late:
        raise UserError(f"{late[0]}: a comparison keeps its own settings; --resume takes seeds=")
    if "seeds" not in own:
        return study, []
    return study, missing(study, combinations(axes_of(study)), read_seeds(own["seeds"]))
