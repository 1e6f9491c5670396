"""What a comparison has found, from its study: combinations with their repeats, and the families that are compared.

    result = find(study)
    [sentences(family, study.metric) for family in result.families]

The value of the last epoch is compared; `report.WHY_LAST` says why. The best epoch's is shown beside.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from engine.compare import verdict
from engine.compare.plan import AXES, LR, SCHEDULE, WARMUP, axes_of, combinations
from engine.compare.verdict import Family
from engine.search.report.repeats import mean_interval
from engine.search.report.words import show
from engine.search.study import ENDED, Study, Trial

WORDS = {SCHEDULE: "schedules", WARMUP: "warm-ups", LR: "learning rates"}
assert set(WORDS) == set(AXES.values())
TOGETHER = "combinations"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A combination and its trainings."""

    values: dict[str, Any]  # the axes that vary
    label: str
    trials: tuple[Trial, ...]  # that ended, by seed
    final: dict[int, float]  # seed -> value of the last epoch
    best: dict[int, float]  # seed -> of the best epoch
    failed: dict[int, str]  # seed -> why there is no value


@dataclasses.dataclass(frozen=True)
class Result:
    """Everything that the report says."""

    study: Study
    epochs: int
    seeds: list[int]
    cells: list[Cell]
    families: list[Family]  # by the last epoch
    by_best: list[Family]  # the same by the best epoch
    left_out: list[str]  # why something is not compared

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return any(family.shown for family in self.families)

    @property
    def unequal(self) -> bool:
        """Whether spreads differ so much that luck is called a difference in more than 5 % of comparisons."""
        every = [mean_interval(list(cell.final.values()))[1] for cell in self.cells if cell.final]
        sds = [sd for sd in every if sd is not None]
        return bool(sds) and max(sds) > verdict.UNEQUAL * float(np.median(sds)) > 0


def find(study: Study) -> Result:
    """The result of a study: of those seeds whose trainings have all ended."""
    epochs = max((trial.curve[-1][0] for trial in study.trials if trial.curve), default=0)
    every = list(dict.fromkeys(trial.seed for trial in study.trials))
    open_seeds = {trial.seed for trial in study.trials if trial.state not in ENDED}
    seeds = [seed for seed in every if seed not in open_seeds]
    cells = [_cell(study, values, epochs, seeds) for values in combinations(axes_of(study))]
    families, left_out = _families(study, cells, seeds, "final")
    by_best, _ = _families(study, cells, seeds, "best")
    if open_seeds:
        left_out.insert(0, f"{len(seeds)} of {len(every)} seeds are done in all combinations; the others are left out")
    return Result(study, epochs, seeds, cells, families, by_best, left_out)


def label_of(values: dict[str, Any]) -> str:
    """`cosine, warm-up 1, lr 3e-4`."""
    words = {SCHEDULE: "{}", WARMUP: "warm-up {}", LR: "lr {}"}
    return ", ".join(words[key].format(show(value)) for key, value in values.items())


def _cell(study: Study, values: dict[str, Any], epochs: int, seeds: list[int]) -> Cell:
    trials = tuple(trial for trial in study.trials if trial.values == values and trial.seed in seeds)
    final: dict[int, float] = {}
    best: dict[int, float] = {}
    failed: dict[int, str] = {}
    for trial in trials:
        if trial.state != "finished":
            failed[trial.seed] = trial.reason or trial.state
        elif trial.curve[-1][0] != epochs:
            failed[trial.seed] = f"its last value is of epoch {trial.curve[-1][0]} of {epochs}"
        else:
            assert trial.value is not None  # it has finished
            final[trial.seed], best[trial.seed] = trial.curve[-1][1], trial.value
    return Cell(values, label_of(values), trials, final, best, failed)


def _families(study: Study, cells: list[Cell], seeds: list[int], which: str) -> tuple[list[Family], list[str]]:
    """The families that can be compared, and why others cannot."""
    if len(seeds) < 2:
        return [], ["fewer than two seeds are done in all combinations: nothing can be told from luck yet"]
    whole = [cell for cell in cells if not cell.failed]
    left_out = [
        f"{cell.label}: {len(cell.failed)} of {len(seeds)} trainings gave no value, so it is not compared: its mean "
        "would be that of the lucky ones"
        for cell in cells
        if cell.failed
    ]
    if len(whole) < 2:
        return [], [*left_out, "fewer than two combinations have all their trainings: nothing can be compared"]
    values = np.array([[getattr(cell, which)[seed] for seed in seeds] for cell in whole])
    noise, axes = verdict.noise_of(values), axes_of(study)
    several = len(axes) > 1
    averaged = list(axes) if several and len(whole) == len(cells) else []
    if several and not averaged:
        left_out.append("what is averaged over the combinations (schedules, warm-ups) is not compared either")
    count = len(averaged) + 1
    families = []
    for key in averaged:
        groups = [[cell.values[key] == level for cell in whole] for level in axes[key]]
        means = np.array([values[group].mean() for group in groups])
        names = [label_of({key: level}) for level in axes[key]]
        families.append(verdict.compare(WORDS[key], names, means, values.size // len(means), noise, count))
    name = TOGETHER if several else WORDS[next(iter(axes))]
    labels = [cell.label for cell in whole]
    families.append(verdict.compare(name, labels, values.mean(1), len(seeds), noise, count))
    return families, left_out


def sentences(family: Family, metric: str) -> list[str]:
    """The verdict of a family in words."""
    found = family.shown
    lines = [f"{family.name}: no difference shown."] if not found else []
    for pair in found:
        lines.append(
            f"{family.name}: {pair.first} is better than {pair.second}, {metric} {_interval(pair)}, p {pair.p:.2g}."
        )
    largest = family.pairs[0]
    if not found:
        lines.append(f"The largest is {largest.first} over {largest.second}, {_interval(largest)}, p {largest.p:.2g}.")
    elif len(found) < len(family.pairs):
        lines.append(f"The other {len(family.pairs) - len(found)} pairs are not told apart.")
    bound = max(abs(pair.difference) for pair in family.pairs) + family.width
    lines.append(
        f"With {family.repeats} trainings a level, a difference of {family.detectable:.2g} would have been shown in 4 "
        f"of 5 comparisons; one above {bound:.2g} is unlikely between any two."
    )
    return lines


def _interval(pair: verdict.Pair) -> str:
    return f"{pair.difference:+.2g} ({pair.low:.2g} to {pair.high:.2g})"


def same_by_best(result: Result) -> bool:
    """Whether the best epochs would show the same differences."""

    def shown(families: list[Family]) -> set:
        return {(family.name, pair.first, pair.second) for family in families for pair in family.shown}

    return shown(result.families) == shown(result.by_best)


def cautions(result: Result) -> list[str]:
    """Why luck may be called a difference more often here than in 5 % of comparisons."""
    lines = []
    if result.unequal:
        lines.append(
            "The spreads differ much, and the test takes them as one: a difference of the noisiest combination may be "
            "luck with more than 5 % (up to 17 % where one is four times as noisy as all others)."
        )
    if looked := result.study.runner.looked:
        lines.append(
            f"Seeds were added after {looked} trainings had been looked at: who goes on until something is shown finds "
            "luck more often than 5 %."
        )
    return lines


def as_json(result: Result) -> dict[str, Any]:
    """The result as plain JSON; what one value cannot have is null."""
    study = result.study
    cells = []
    for cell in result.cells:
        plain: dict[str, Any] = {"values": cell.values, "label": cell.label, "failed": cell.failed}
        for which, found in (("final", cell.final), ("best", cell.best)):
            mean, sd, low, high = mean_interval(list(found.values())) if found else (None,) * 4
            plain[which] = {"by_seed": found, "mean": mean, "sd": sd, "interval_90": [low, high]}
        cells.append(plain)
    families = [
        dataclasses.asdict(family)
        | {"pairs": [dataclasses.asdict(pair) | {"shown": pair.shown} for pair in family.pairs]}
        | {"verdict": " ".join(sentences(family, study.metric))}
        for family in result.families
    ]
    return {
        "folder": str(study.folder), "metric": study.metric, "compared": "last epoch", "epochs": result.epochs,
        "seeds": result.seeds, "settings": study.arguments, "combinations": cells, "families": families,
        "difference_shown": result.differs, "best_epochs_show_the_same": same_by_best(result),
        "cautions": cautions(result), "left_out": result.left_out,
        "minutes": round(math.fsum(trial.minutes for trial in study.trials), 3),
    }  # fmt: skip
