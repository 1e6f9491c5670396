"""What a study has found, as data: everything the report says, worked out from the trials and the fitted model.

Pure: Study + posterior -> Findings. Without a posterior (`surrogate.fitted` says when) no influence, range or reason is
given, and the report says so.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from engine.search.model.surrogate import Posterior, enough
from engine.search.report import effects, repeats
from engine.search.report.effects import Z90, Effect, Range
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
    measured: float  # best - baseline, as measured: the winner is the luckiest of many
    trial: int  # whose `expected` is: the best measured one, or the best of the repeated ones
    expected: float | None = None  # by the model, or the mean of the repeats
    low: float | None = None  # 90 % interval of `expected`
    high: float | None = None
    by: str = "values"  # or "repeats", "model"
    verdict: str = "unknown"  # or "shown", "no difference shown", "a loss", "the baseline is the best"


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
    incumbents: list[tuple[int, float]]  # (trial, best value so far) at every improvement, in order
    economy: Economy | None
    poor: list[Poor]
    infeasible: tuple[int, int]  # of ended ones
    confirmed: list[repeats.Confirmed]
    limits: list[str]
    # By the model alone:
    effects: list[Effect] = dataclasses.field(default_factory=list)
    ranges: list[Range] = dataclasses.field(default_factory=list)
    boundaries: list[str] = dataclasses.field(default_factory=list)
    optimum: dict[str, Any] | None = None  # the recommended values
    optimum_value: tuple[float, float] | None = None  # its expected value and sd


def find(study: Study, posterior: Posterior | None, baseline: float | None = None) -> Findings:
    """Findings of a study at any moment.

    Args:
        posterior: of `surrogate.fitted`; None = too few trials.
        baseline: value of the configuration to beat; None = that of the study's baseline trial.
    """
    noise = noise_of(study, posterior)
    ended = [t for t in study.trials if t.state in ENDED and t.kind != "confirm"]
    failed = [t for t in study.trials if t.state == "infeasible"]
    found = Findings(
        ranked=sorted(study.measured, key=study.height, reverse=True),
        noise=noise,
        gain=gain_of(study, posterior, noise, baseline),
        shared=shared_by_best(study),
        incumbents=incumbents(study),
        economy=economy_of(study),
        poor=[Poor(t, None, t.reason or "no reason was recorded") for t in failed],
        infeasible=(sum(t.state == "infeasible" for t in ended), len(ended)),
        confirmed=repeats.statistics(study),
        limits=limits_of(study, posterior, baseline),
    )
    if posterior is None:
        return found
    unit, sd = effects.recommended(study, posterior), noise.sd or 0.0
    mean, spread = posterior.predict(unit[None])
    edges = [effects.boundary(p, u) for p, u in zip(study.space.parameters, unit, strict=True)]
    return dataclasses.replace(
        found,
        poor=found.poor + poor_trials(study, posterior, unit, sd),
        effects=effects.effects(study, posterior, unit),
        ranges=effects.ranges(study, posterior, unit, sd),
        boundaries=[line for line in edges if line],
        optimum=study.space.values(unit),
        optimum_value=(float(mean[0]), float(spread[0])),
    )


def noise_of(study: Study, posterior: Posterior | None) -> Noise:
    """From repeats with at least 3 degrees of freedom (sd known to about 40 %), else the model's estimate."""
    sd, degrees = repeats.pooled_noise(study)
    if sd and degrees >= RELIABLE:
        return Noise(sd, f"from repeats with other seeds, {degrees} degrees of freedom")
    if posterior is not None:
        return Noise(float(posterior.noise_sd), "estimated by the model from the scatter of the trials")
    return Noise(None, "unknown: too few trials and no repeats")


def gain_of(study: Study, posterior: Posterior | None, noise: Noise, baseline: float | None) -> Gain | None:
    """The best trial against the baseline; None where one of the two is missing."""
    best, base = study.incumbent(), study.baseline() if baseline is None else None
    if best is None:
        return None
    if base is not None and base.value is not None:
        value, source = base.value, f"trial {base.number}, where the search started"
    elif baseline is not None:
        value, source = baseline, "given"
    else:
        return None
    gain = Gain(value, source, study.height(best) - study.sign * value, best.number)
    repeated = [found for found in repeats.statistics(study) if found.gain is not None] if base else []
    if repeated:
        by_best = repeated[0]
        low, high = by_best.low, by_best.high
        words = "unknown" if low is None or high is None else _verdict(low, high)
        return dataclasses.replace(
            gain, expected=by_best.gain, low=low, high=high, by="repeats", trial=by_best.number, verdict=words
        )
    if base is not None and best.number == base.number:
        return dataclasses.replace(gain, verdict="the baseline is the best")
    if posterior is None:
        return gain
    mean, sd = _model_gain(study, posterior, best, base, value, noise.sd or 0.0)
    low, high = mean - Z90 * sd, mean + Z90 * sd
    return dataclasses.replace(gain, expected=mean, low=low, high=high, by="model", verdict=_verdict(low, high))


def _verdict(low: float, high: float) -> str:
    """In words, of a 90 % interval."""
    return "shown" if low > 0 else "a loss" if high < 0 else "no difference shown"


def _model_gain(
    study: Study, posterior: Posterior, best: Trial, base: Trial | None, value: float, noise: float
) -> tuple[float, float]:
    """Mean and sd of the gain by the model. A given baseline value is one training's, with its noise."""
    units = np.array([study.space.coordinates(t.values) for t in (best, base) if t is not None])
    mean = posterior.predict(units)[0]
    draws = posterior.sample(units, 2000, study.seed)
    if base is not None:
        return float(study.sign * (mean[0] - mean[1])), float((draws[:, 0] - draws[:, 1]).std())
    return float(study.sign * (mean[0] - value)), float(math.hypot(draws[:, 0].std(), noise))


def shared_by_best(study: Study, top: int = 3) -> list[Shared]:
    """What the best `top` trials share in each parameter; [] with fewer than 2 more trials than that.

    `chance` is the share of all sets of `top` measured trials whose span is no wider; small = not by chance.
    """
    trials = sorted(study.measured, key=study.height, reverse=True)
    if len(trials) < top + 2:
        return []
    units = np.array([study.space.coordinates(t.values) for t in trials])
    found = []
    for column, parameter in enumerate(study.space.parameters):
        values = tuple(t.values[parameter.name] for t in trials[:top])
        centre: Any
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
    for trial in sorted(study.measured, key=lambda t: t.number):
        if not steps or study.height(trial) > study.sign * steps[-1][1]:
            steps.append((trial.number, trial.result))
    return steps


def economy_of(study: Study) -> Economy | None:
    """Epochs of the measured trials against all of them trained whole; None where epochs are not known."""
    trials = [t for t in study.measured if t.epochs > 0]
    if not trials:
        return None
    # A finished trial may have ended by patience: it saved nothing by early stopping.
    whole = sum(study.whole_epochs(t) if t.state == "stopped" else t.epochs for t in trials)
    stopped = sum(t.state == "stopped" for t in trials)
    return Economy(len(trials), stopped, sum(t.epochs for t in trials), whole)


def poor_trials(study: Study, posterior: Posterior, optimum: np.ndarray, noise: float) -> list[Poor]:
    """Of the worse half, the 8 worst at most, those so far below the best that the noise of two trainings, sd `noise`
    each, cannot explain it."""
    trials = study.measured
    top = max(map(study.height, trials), default=0.0)
    found = []
    for trial in sorted(trials, key=lambda t: study.sign * t.reached)[: min(8, len(trials) // 2)]:
        gap = top - study.sign * trial.reached
        if gap <= Z90 * math.sqrt(2) * noise:
            break
        unit = study.space.coordinates(trial.values)
        why = effects.likely_reason(study.space, posterior, study.sign, unit, optimum, noise)
        why = why or "no single parameter explains it by the model"
        if trial.state == "stopped" and trial.estimate is None:
            why += f" (its value is that of {trial.epochs} epochs)"
        found.append(Poor(trial, gap, why))
    return found


def limits_of(study: Study, posterior: Posterior | None, baseline: float | None = None) -> list[str]:
    """What cannot be concluded, in whole sentences."""
    trials, found = study.measured, []
    waiting = [t for t in study.trials if t.state not in ENDED]
    if waiting:
        found.append(f"{len(waiting)} trials have not ended: everything here is preliminary.")
    if not trials:
        found.append("No trial has a value yet: nothing can be concluded.")
    elif posterior is None:
        count = f"{len(trials)} trial" + ("s" if len(trials) > 1 else "")
        found.append(f"{count} with a value: no influence can be estimated; that takes {enough(study)} configurations.")
    if trials and baseline is None and study.baseline() is None:
        found.append(
            "The baseline configuration is not among the trials: give its value with --baseline for a gain over it."
        )
    if trials and not repeats.statistics(study):
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
