"""Repeats of the best configurations with other seeds: which ones, and what their values say.

The value that made a trial the winner is the luckiest of many, so it is left out: the statistics are of the repeats
alone, and the gain is paired, seed by seed, with the baseline's repeats.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from engine.search.report.effects import measured
from engine.search.study import Study, Trial

LEVEL = 0.90  # of every interval


@dataclasses.dataclass(frozen=True)
class Confirmed:
    """One configuration's repeats."""

    number: int  # of the trial that was repeated
    seeds: tuple[int, ...]
    values: tuple[float, ...]  # by seed
    failed: int  # repeats without a value
    mean: float
    sd: float | None  # of one training; None with a single repeat
    gain: float | None = (
        None  # mean over the seeds that the baseline has too, positive = better; None: the baseline itself
    )
    low: float | None = None  # 90 % interval of the gain by Student's t, None with fewer than two pairs
    high: float | None = None


def baseline_trial(study: Study) -> Trial | None:
    """The preset's own configuration: the trial of kind preset, else the first one with the values of `study.first`."""
    known = [t for t in study.trials if t.kind != "confirm"]
    preset = [t for t in known if t.kind == "preset"]
    same = [t for t in known if study.first and t.values == study.first]
    return next(iter(preset + same), None)


def ranked(study: Study, posterior: Any | None) -> list[Trial]:
    """Measured trials, the best by posterior mean first (by value without a model); equal configurations once."""
    trials = measured(study)
    if not trials:
        return []
    heights = [t.value for t in trials]
    if posterior is not None:
        heights = posterior.predict(np.array([study.space.coordinates(t.values) for t in trials]))[0]
    order = sorted(range(len(trials)), key=lambda i: -study.sign * heights[i])
    unique: dict[tuple, Trial] = {}
    for i in order:
        unique.setdefault(tuple(trials[i].values.items()), trials[i])
    return list(unique.values())


def untried(study: Study) -> dict[str, Any] | None:
    """The configuration that the model recommends, if no trial has it; None with too few trials for a model."""
    from engine.search.report.effects import fitted  # brings scikit-optimize: only when it is needed

    posterior = fitted(study)
    if posterior is None:
        return None
    values = posterior.best()
    return None if any(trial.values == values for trial in study.trials) else values


def chosen(study: Study, posterior: Any | None = None) -> list[Trial]:
    """Configurations to repeat: the two best by posterior mean among the tried ones, and the baseline.

    Args:
        posterior: of `surrogate.fit(study)`; None = fitted here, where there are trials enough.
    """
    if posterior is None:
        from engine.search.report.effects import fitted  # brings scikit-optimize: only when it is needed

        posterior = fitted(study)
    best = ranked(study, posterior)[:2]
    base = baseline_trial(study)
    usable = base is not None and base.state != "infeasible"
    return best + ([base] if usable and all(base.values != t.values for t in best) else [])


def statistics(study: Study) -> list[Confirmed]:
    """Every repeated configuration, the best mean first; gains over the baseline's repeats where both have a seed."""
    base = baseline_trial(study)
    groups = {number: _of(study, number) for number in dict.fromkeys(_repeated(study))}
    known = {number: values for number, values in groups.items() if values}
    reference = known.get(base.number, {}) if base else {}
    results = []
    for number, values in known.items():
        heights = np.array(list(values.values()))
        failed = _repeated(study).count(number) - len(values) - _waiting(study, number)
        sd = float(heights.std(ddof=1)) if len(heights) > 1 else None
        paired = [study.sign * (values[seed] - reference[seed]) for seed in values if seed in reference]
        gain = _interval(paired) if paired and number != base.number else (None, None, None)
        results.append(
            Confirmed(number, tuple(values), tuple(values.values()), failed, float(heights.mean()), sd, *gain)
        )
    return sorted(results, key=lambda r: -study.sign * r.mean)


def _repeated(study: Study) -> list[int]:
    return [t.repeats for t in study.trials if t.kind == "confirm" and t.repeats is not None]


def _waiting(study: Study, number: int) -> int:
    return sum(t.repeats == number and t.state in ("asked", "running") for t in study.trials)


def _of(study: Study, number: int) -> dict[int, float]:
    """{seed: value} of the finished repeats of a trial, by seed."""
    repeats = [t for t in study.trials if t.repeats == number and t.state == "finished" and t.value is not None]
    return {t.seed: t.value for t in sorted(repeats, key=lambda t: t.seed)}


def _interval(gains: list[float]) -> tuple[float, float | None, float | None]:
    """Mean and 90 % interval (Student's t) of paired differences; no interval from one pair."""
    from scipy.stats import t as student

    mean, n = float(np.mean(gains)), len(gains)
    if n < 2:
        return mean, None, None
    half = float(student.ppf(0.5 + LEVEL / 2, n - 1)) * float(np.std(gains, ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def recommended(study: Study) -> int | None:
    """The trial to use after the repeats: the best mean, unless its gain over the baseline is not shown (90 % interval
    reaches 0): then the baseline stays. None without repeats."""
    results = statistics(study)
    if not results:
        return None
    best, base = results[0], baseline_trial(study)
    if base is None or best.number == base.number or best.gain is None:
        return best.number
    return best.number if best.low is not None and best.low > 0 else base.number


def pooled_noise(study: Study) -> tuple[float | None, int]:
    """Standard deviation between trainings of one seed, and its degrees of freedom; (None, 0) without repeats.

    Trials of a search share their seed, and so do the repeats of a seed: what a seed does to all of them alike is no
    noise between them. It is the residual of the table configuration x seed, (n - 1)(k - 1) degrees of freedom, over
    the seeds that every configuration has; with one configuration alone the scatter of its seeds, n - 1.
    """
    groups = [dict(zip(result.seeds, result.values)) for result in statistics(study)]
    seeds = sorted(set.intersection(*(set(group) for group in groups))) if groups else []
    table = np.array([[group[seed] for seed in seeds] for group in groups])  # (k, n)
    if len(seeds) < 2:
        return None, 0
    residual = table - table.mean(axis=1, keepdims=True)
    if len(table) > 1:
        residual = residual - residual.mean(axis=0, keepdims=True)
    degrees = (len(seeds) - 1) * max(1, len(table) - 1)
    return math.sqrt(float((residual**2).sum()) / degrees), degrees
