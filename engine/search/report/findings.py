"""What a study has found, as data: everything the report says, worked out from the trials and the fitted model.

Pure: Study + posterior -> Findings. A model needs at least one measured configuration more than there are parameters
(a plane has as many coefficients); with fewer no influence, range or reason is given, and the report says so.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from engine.search.report import confirm, effects
from engine.search.report.effects import Z90, Effect, Range, enough, measured, reached
from engine.search.study import ENDED, Study, Trial

RELIABLE = 3  # degrees of freedom from which the sd of repeats replaces the model's noise


@dataclasses.dataclass(frozen=True)
class Noise:
    """Standard deviation of one training's value over seeds."""

    sd: float | None
    source: str  # in words


@dataclasses.dataclass(frozen=True)
class Gain:
    """The best trial against the baseline configuration; positive = better, in the metric's own units."""

    baseline: float
    source: str  # of the baseline's value, in words
    best: float
    measured: float  # best - baseline, as measured: the winner is the luckiest of many
    expected: float | None  # by the model, or the mean of the repeats
    low: float | None  # 90 % interval of `expected`
    high: float | None
    by: str  # "repeats", "model" or "values"
    trial: int  # whose `expected` is: the best measured one, or the best of the repeated ones
    verdict: str  # "shown", "no difference shown", "a loss", "unknown", "the baseline is the best"


@dataclasses.dataclass(frozen=True)
class Shared:
    """What the three best trials have in common in one parameter."""

    name: str
    values: tuple
    centre: Any  # mean (geometric on a log scale), the value of ordinal and choice when all agree, else None
    chance: float  # share of all triples of measured trials that lie at least as close together


@dataclasses.dataclass(frozen=True)
class Economy:
    """Epochs trained, and those that the same trials without early stopping would have taken."""

    trials: int
    stopped: int
    epochs: int
    whole: int
    minutes: float


@dataclasses.dataclass(frozen=True)
class Poor:
    """A failed or poor trial with its likely reason."""

    trial: Trial
    gap: float | None  # to the best, positive; None when infeasible
    reason: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """All of it. Lists are empty and fields None where nothing can be concluded; `limits` says why, in sentences."""

    ranked: list[Trial]  # measured ones, best value first
    noise: Noise
    gain: Gain | None
    shared: list[Shared]
    effects: list[Effect]
    ranges: list[Range]
    optimum: dict[str, Any] | None  # the recommended values
    optimum_value: tuple[float, float] | None  # its expected value and sd
    incumbents: list[tuple[int, float]]  # (trial, best value so far) at every improvement, in order
    economy: Economy | None
    poor: list[Poor]
    boundaries: list[str]
    infeasible: tuple[int, int]  # of ended ones
    confirmed: list[confirm.Confirmed]
    limits: list[str]


def find(study: Study, posterior: Any | None, baseline: float | None = None) -> Findings:
    """Findings of a study at any moment.

    Args:
        posterior: of `fitted`; None = too few trials.
        baseline: value of the configuration to beat; None = that of the study's baseline trial.
    """
    trials = measured(study)
    unit = effects.recommended(study, posterior) if posterior is not None else None
    optimum = study.space.values(unit) if unit is not None else None
    noise = noise_of(study, posterior)
    mean_sd = None
    if optimum:
        mean, sd = posterior.predict(unit[None])
        mean_sd = (float(mean[0]), float(sd[0]))
    ended = [t for t in study.trials if t.state in ENDED and t.kind != "confirm"]
    return Findings(
        ranked=sorted(trials, key=lambda t: -study.sign * t.value),
        noise=noise,
        gain=gain_of(study, posterior, noise, baseline),
        shared=shared_by_best(study),
        effects=effects.effects(study, posterior, unit) if optimum else [],
        ranges=effects.ranges(study, posterior, unit, noise.sd or 0.0) if optimum else [],
        optimum=optimum,
        optimum_value=mean_sd,
        incumbents=incumbents(study),
        economy=economy_of(study),
        poor=poor_trials(study, posterior, unit, noise),
        boundaries=_boundaries(study, unit) if optimum else [],
        infeasible=(sum(t.state == "infeasible" for t in ended), len(ended)),
        confirmed=confirm.statistics(study),
        limits=limits_of(study, posterior, baseline),
    )


def noise_of(study: Study, posterior: Any | None) -> Noise:
    """From repeats with at least 3 degrees of freedom (sd known to about 40 %), else the model's estimate."""
    sd, degrees = confirm.pooled_noise(study)
    if sd and degrees >= RELIABLE:
        return Noise(sd, f"from repeats with other seeds, {degrees} degrees of freedom")
    if posterior is not None:
        return Noise(float(posterior.noise_sd), "estimated by the model from the scatter of the trials")
    return Noise(None, "unknown: too few trials and no repeats")


def gain_of(study: Study, posterior: Any | None, noise: Noise, baseline: float | None) -> Gain | None:
    """The best trial against the baseline; None where one of the two is missing."""
    base, trials = confirm.baseline_trial(study), measured(study)
    best = max(trials, key=lambda t: study.sign * t.value, default=None)
    if baseline is None and (base is None or base.value is None):
        return None
    if best is None:
        return None
    source = "given" if baseline is not None else f"trial {base.number}, where the search started"
    value = baseline if baseline is not None else base.value
    raw = study.sign * (best.value - value)
    repeated = [r for r in confirm.statistics(study) if r.gain is not None]
    if baseline is None and repeated:
        winner = repeated[0]
        verdict = "unknown" if winner.low is None else _verdict(winner.low, winner.high)
        return Gain(
            value, source, best.value, raw, winner.gain, winner.low, winner.high, "repeats", winner.number, verdict
        )
    if baseline is None and best.number == base.number:
        return Gain(value, source, best.value, 0.0, None, None, None, "values", best.number, "the baseline is the best")
    if posterior is None:
        return Gain(value, source, best.value, raw, None, None, None, "values", best.number, "unknown")
    mean, sd = _model_gain(study, posterior, best, base if baseline is None else None, value, noise.sd)
    low, high = mean - Z90 * sd, mean + Z90 * sd
    return Gain(value, source, best.value, raw, mean, low, high, "model", best.number, _verdict(low, high))


def _verdict(low: float, high: float) -> str:
    """In words, of a 90 % interval."""
    return "shown" if low > 0 else "a loss" if high < 0 else "no difference shown"


def _model_gain(study: Study, posterior: Any, best: Trial, base: Trial | None, value: float, noise: float) -> tuple:
    """Mean and sd of the gain by the model. A given baseline value is one training's, with its noise."""
    units = np.array([study.space.coordinates(t.values) for t in (best, base) if t is not None])
    mean = posterior.predict(units)[0]
    draws = np.asarray(posterior.sample(units, 2000, study.seed))
    if base is not None:
        return float(study.sign * (mean[0] - mean[1])), float((draws[:, 0] - draws[:, 1]).std())
    return float(study.sign * (mean[0] - value)), float(math.hypot(draws[:, 0].std(), noise))


def shared_by_best(study: Study, top: int = 3) -> list[Shared]:
    """What the best `top` trials share in each parameter; [] with fewer than 2 more trials than that.

    `chance` is the share of all sets of `top` measured trials whose span is no wider; small = not by chance.
    """
    trials = sorted(measured(study), key=lambda t: -study.sign * t.value)
    if len(trials) < top + 2:
        return []
    units = np.array([study.space.coordinates(t.values) for t in trials])
    found = []
    for column, parameter in enumerate(study.space.parameters):
        values = tuple(t.values[parameter.name] for t in trials[:top])
        if parameter.values:
            centre = values[0] if len(set(values)) == 1 else None
        elif parameter.scale == "log":
            centre = float(np.exp(np.mean(np.log(values))))
        else:
            centre = float(np.mean(values))
        found.append(Shared(parameter.name, values, centre, _as_close(units[:, column], top)))
    return found


def _as_close(units: np.ndarray, top: int) -> float:
    """Share of all sets of `top` coordinates whose span is no wider than that of the first `top`; units (N,)."""
    span, ordered = np.ptp(units[:top]) + 1e-12, np.sort(units)
    # With the lowest of a set at place i, the others are any of those within the span above it.
    within = np.searchsorted(ordered, ordered + span, side="right") - np.arange(len(ordered)) - 1
    return sum(math.comb(int(k), top - 1) for k in within) / math.comb(len(units), top)


def incumbents(study: Study) -> list[tuple[int, float]]:
    """(trial, value) at every improvement, in the order of the trials."""
    steps: list[tuple[int, float]] = []
    for trial in sorted(measured(study), key=lambda t: t.number):
        if not steps or study.sign * (trial.value - steps[-1][1]) > 0:
            steps.append((trial.number, trial.value))
    return steps


def economy_of(study: Study) -> Economy | None:
    """Epochs of the measured trials against all of them trained whole; None where epochs are not known."""
    trials = [t for t in measured(study) if t.epochs > 0]
    if not trials:
        return None
    # A finished trial may have ended by patience: it saved nothing by early stopping.
    whole = sum(effects.whole_epochs(study, t) if t.state == "stopped" else t.epochs for t in trials)
    stopped = sum(t.state == "stopped" for t in trials)
    return Economy(len(trials), stopped, sum(t.epochs for t in trials), whole, sum(t.minutes for t in trials))


def poor_trials(study: Study, posterior: Any | None, optimum: np.ndarray | None, noise: Noise) -> list[Poor]:
    """Infeasible trials with their error, and the poor ones: of the worse half, the 8 worst at most, those so far below
    the best that the noise of two trainings cannot explain it."""
    found = [Poor(t, None, t.reason or "no reason was recorded") for t in study.trials if t.state == "infeasible"]
    trials = measured(study)
    if posterior is None or not trials:
        return found
    top = max(study.sign * t.value for t in trials)
    limit = Z90 * math.sqrt(2) * noise.sd
    for trial in sorted(trials, key=lambda t: study.sign * reached(t))[: min(8, len(trials) // 2)]:
        gap = top - study.sign * reached(trial)
        if gap <= limit:
            break
        unit = study.space.coordinates(trial.values)
        why = effects.likely_reason(study.space, posterior, study.sign, unit, optimum, noise.sd)
        why = why or "no single parameter explains it by the model"
        if trial.state == "stopped" and trial.estimate is None:
            why += f" (its value is that of {trial.epochs} epochs)"
        found.append(Poor(trial, gap, why))
    return found


def _boundaries(study: Study, unit: np.ndarray) -> list[str]:
    lines = [effects.boundary(p, u) for p, u in zip(study.space.parameters, unit, strict=True)]
    return [line for line in lines if line]


def limits_of(study: Study, posterior: Any | None, baseline: float | None = None) -> list[str]:
    """What cannot be concluded, in whole sentences."""
    trials, found = measured(study), []
    waiting = [t for t in study.trials if t.state not in ENDED]
    if waiting:
        found.append(f"{len(waiting)} trials have not ended: everything here is preliminary.")
    if not trials:
        found.append("No trial has a value yet: nothing can be concluded.")
    elif posterior is None:
        count = f"{len(trials)} trial" + ("s" if len(trials) > 1 else "")
        found.append(f"{count} with a value: no influence can be estimated; that takes {enough(study)} configurations.")
    if trials and baseline is None and confirm.baseline_trial(study) is None:
        found.append(
            "The baseline configuration is not among the trials: give its value with --baseline for a gain over it."
        )
    if trials and not confirm.statistics(study):
        found.append(
            "Nothing was repeated with another seed: the best value is the luckiest of many, so expect less of it."
        )
    early = [t for t in trials if t.state == "stopped" and t.estimate is None]
    if early:
        found.append(
            f"{len(early)} trials were stopped early and have no extrapolated value: the model takes them as they were."
        )
    if posterior is not None and study.agents >= study.budget and study.method == "bayes" and study.searched:
        found.append(f"{study.agents} agents for {study.budget} trials: no trial was chosen knowing another's result.")
    return found
