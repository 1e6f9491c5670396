"""What the fitted model says of each parameter: partial dependence, share of the variance, ranges worth using.

All from joint draws of the posterior, so that every figure has its uncertainty:

    partial dependence   mean over 16 settings of the others, uniform over the space; band = 5 to 95 % of the draws
    share                variance of that curve / variance over the whole sample, draw by draw: the main effect
                         (first-order index, Sobol 1993), median and 90 % interval; interactions are missing to 1
    recommended          largest lower end of the 90 % interval, over the whole space: the surest of the good ones. The
                         highest mean would lie further from what was tried, where the model knows less
    safe range           around the recommended values, the others at theirs: the loss against them is below one noise
                         sd with probability 90 %; connected with the recommended value
    wider range          the same with probability 2/3

The noise sd is that of one training repeated with another seed: a loss below it cannot be told from luck in one run.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from engine.search.model.surrogate import Posterior
from engine.search.report.words import short, show
from engine.search.space import Parameter, Space
from engine.search.study import Study

OTHERS = 16  # settings of the other parameters: 13 x 16 points have to be drawn together, the cost grows with the cube
DRAWS = 200
BAND = (0.05, 0.95)
Z90 = 1.645  # two-sided 90 % of a normal
SURE = (0.9, 2 / 3)  # probabilities of the safe and the wider range
EDGE = 0.05  # of the range: an optimum nearer to a bound than this may lie beyond it


@dataclasses.dataclass(frozen=True)
class Effect:
    """One parameter's influence; arrays (G,), in the metric's own units."""

    name: str
    units: np.ndarray
    values: list[Any]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slice: np.ndarray  # posterior mean with the other parameters at their recommended values
    share: tuple[float, float, float]  # median, 5 %, 95 % of the main effect's share of the variance
    levels: tuple["Level", ...] = ()  # of ordinal and choice


@dataclasses.dataclass(frozen=True)
class Level:
    """One value of an ordinal or choice parameter."""

    value: Any
    number: int  # of trials with a value
    mean: float | None  # of the measured values, those of stopped trials as they were
    best: float | None
    expected: float  # partial dependence
    others_best: float  # expected with the other parameters at their recommended values


@dataclasses.dataclass(frozen=True)
class Range:
    """Values of one parameter to use. `safe`, `wider`: (low, high) of numbers, all values of ordinal and choice."""

    name: str
    optimum: Any
    safe: tuple
    wider: tuple
    whole: bool  # the wider range is all that was searched: the study does not tell its values apart


def digits2(parameter: Parameter, value: Any) -> Any:
    """A number to 2 significant digits, or to a hundredth of its range where that is finer (0.9955 in 0.99 to 0.9999),
    and inside the bounds; values of ordinal and choice as they are."""
    if parameter.kind != "float":
        return value
    digits = 1 - math.floor(math.log10(abs(value))) if value else 0
    fine = 1 - math.floor(math.log10(parameter.high - parameter.low))
    wide = parameter.scale == "log" and parameter.high > 2 * parameter.low
    rounded = round(value, digits if wide else max(digits, fine))
    return min(max(float(f"{rounded:.12g}"), parameter.low), parameter.high)


def grid_of(parameter: Parameter, points: int) -> np.ndarray:
    """Coordinates (G,) ascending that values stand behind, at most `points` of a number's."""
    if parameter.kind in ("ordinal", "choice"):
        return parameter.places
    grid = np.linspace(0.0, 1.0, points)
    if parameter.kind == "int" or parameter.step:
        grid = np.unique([parameter.unit(parameter.value(u)) for u in grid])
    return grid


def recommended(study: Study, posterior: Posterior) -> np.ndarray:
    """Units (P,) of the configuration that the model recommends, `surrogate.Posterior.best`."""
    return study.space.unit(posterior.best())


def effects(study: Study, posterior: Posterior, optimum: np.ndarray) -> list[Effect]:
    """Every parameter's effect, in the space's order. `optimum`: units (P,) of the recommended values."""
    rng = np.random.default_rng(study.seed)
    others = study.space.snap(rng.random((OTHERS, len(optimum))))
    return [_effect(study, posterior, optimum, others, column) for column in range(len(optimum))]


def _effect(study: Study, posterior: Posterior, optimum: np.ndarray, others: np.ndarray, column: int) -> Effect:
    parameter = study.space.parameters[column]
    grid = grid_of(parameter, 13)
    points = np.repeat(others[None], len(grid), axis=0)
    points[:, :, column] = grid[:, None]
    flat = points.reshape(-1, len(optimum))
    draws = posterior.sample(flat, DRAWS, study.seed).reshape(DRAWS, len(grid), OTHERS)
    curves = draws.mean(axis=2)
    mean = posterior.predict(flat)[0].reshape(len(grid), OTHERS).mean(axis=1)
    low, high = np.quantile(curves, BAND, axis=0)
    total = draws.reshape(DRAWS, -1).var(axis=1)
    share, least, most = np.quantile(curves.var(axis=1) / np.maximum(total, 1e-300), (0.5, *BAND))
    cut = posterior.predict(_along(optimum, column, grid))[0]
    values = [parameter.value(u) for u in grid]
    levels = _levels(study, parameter, mean, cut) if parameter.kind in ("ordinal", "choice") else ()
    return Effect(parameter.name, grid, values, mean, low, high, cut, (share, least, most), levels)


def _along(optimum: np.ndarray, column: int, grid: np.ndarray) -> np.ndarray:
    """The optimum repeated (G, P) with one coordinate going along the grid."""
    points = np.repeat(np.asarray(optimum, float)[None], len(grid), axis=0)
    points[:, column] = grid
    return points


def _levels(study: Study, parameter: Parameter, expected: np.ndarray, cut: np.ndarray) -> tuple[Level, ...]:
    levels = []
    for value, height, best_height in zip(parameter.values, expected, cut, strict=True):
        same = [t.result for t in study.measured if t.values[parameter.name] == value]
        mean, best = float(np.mean(same)) if same else None, max(same, key=lambda v: study.sign * v, default=None)
        levels.append(Level(value, len(same), mean, best, float(height), float(best_height)))
    return tuple(levels)


def ranges(study: Study, posterior: Posterior, optimum: np.ndarray, noise: float) -> list[Range]:
    """The safe and the wider range of every parameter, in the space's order."""
    return [_range(study, posterior, optimum, noise, column) for column in range(len(optimum))]


def _range(study: Study, posterior: Posterior, optimum: np.ndarray, noise: float, column: int) -> Range:
    parameter = study.space.parameters[column]
    grid = np.union1d(grid_of(parameter, 101), optimum[column : column + 1])
    draws = posterior.sample(_along(optimum, column, grid), DRAWS, study.seed + 1)
    here = int(np.argmin(np.abs(grid - optimum[column])))
    loss = study.sign * (draws[:, here, None] - draws)
    best = parameter.value(optimum[column])
    found, whole = [], False
    for sure in SURE:
        good = (loss < noise).mean(axis=0) >= sure
        good[here] = True  # its loss is 0, also where the noise is
        if parameter.kind in ("ordinal", "choice"):
            found.append(tuple(parameter.value(u) for u in grid[good]))
            whole = bool(good.all())
            continue
        first, last = _run(good, here)
        whole = first == 0 and last == len(grid) - 1
        found.append(tuple(digits2(parameter, parameter.value(grid[i])) for i in (first, last)))
    safe, wider = found
    return Range(parameter.name, digits2(parameter, best), safe, wider, whole)


def _run(good: np.ndarray, here: int) -> tuple[int, int]:
    """First and last index of the run of True around `here`."""
    first = last = here
    while first > 0 and good[first - 1]:
        first -= 1
    while last < len(good) - 1 and good[last + 1]:
        last += 1
    return first, last


def boundary(parameter: Parameter, unit: float) -> str:
    """A line of advice when the optimum is at the edge of what was searched, "" otherwise (and for choices)."""
    name = short(parameter.name)
    at_low = unit <= 1e-9 if parameter.kind == "ordinal" else unit < EDGE
    at_high = unit >= 1 - 1e-9 if parameter.kind == "ordinal" else unit > 1 - EDGE
    if parameter.kind == "choice" or not (at_low or at_high):
        return ""
    if parameter.kind == "ordinal":
        end = "smallest" if at_low else "largest"
        more = "smaller" if at_low else "larger"
        return f"{name} {parameter.value(unit):g} is the {end} value that was searched: try {more} ones."
    side, bound, quarter = ("upper", parameter.high, 0.25) if at_high else ("lower", parameter.low, -0.25)
    if parameter.scale == "log":
        beyond = bound * (parameter.high / parameter.low) ** quarter
    else:
        beyond = bound + quarter * (parameter.high - parameter.low)
    best = show(digits2(parameter, parameter.value(unit)))
    advice = f"what lies beyond is unknown: widen it to {show(float(f'{beyond:.1e}'))}."
    return f"{name}: the optimum {best} is within 5 % of the {side} bound {show(bound)}; {advice}"


def likely_reason(
    space: Space, posterior: Posterior, sign: float, unit: np.ndarray, optimum: np.ndarray, noise: float
) -> str:
    """Which one parameter, moved to the optimum's value, gains most by the model; "" when none gains a noise sd.

    Args:
        unit: coordinates (P,) of the poor trial.
        optimum: units (P,) of the model's best.
    """
    moved = np.repeat(unit[None], len(unit), axis=0)
    np.fill_diagonal(moved, optimum)
    mean = posterior.predict(np.vstack([unit[None], moved]))[0]
    gains = sign * (mean[1:] - mean[0])
    column = int(np.argmax(gains))
    if gains[column] < noise:
        return ""
    parameter = space.parameters[column]
    name, value = short(parameter.name), parameter.value(unit[column])
    better = digits2(parameter, parameter.value(optimum[column]))
    expects = f"the model expects {sign * gains[column]:+.2g} with {show(better)}"
    if parameter.kind == "choice":
        return f"{name} {value}: {expects}"
    u, side = unit[column], "low" if unit[column] < optimum[column] else "high"
    end = u < 0.2 if side == "low" else u > 0.8
    where = f"at the {side} end of its range" if end else f"too {side}"
    return f"{name} {show(value)} is {where}: {expects}"
