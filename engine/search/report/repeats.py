"""What the repeats with other seeds say.

The value that made a trial the winner is the luckiest of many, so it is left out: the statistics are of the repeats
alone, and the gain is paired, seed by seed, with the baseline's repeats.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from engine.search.study import ENDED, Study

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
    # Mean over the seeds that the baseline has too, positive = better; None: it is the baseline, or shares none.
    gain: float | None = None
    low: float | None = None  # 90 % interval of the gain by Student's t, None with fewer than two pairs
    high: float | None = None


def statistics(study: Study) -> list[Confirmed]:
    """Every repeated configuration, the best mean first; gains over the baseline's repeats where both have a seed."""
    base = study.baseline()
    numbers = dict.fromkeys(t.repeats for t in study.trials if t.repeats is not None and t.kind == "confirm")
    known = {number: values for number in numbers if (values := _by_seed(study, number))}
    reference = known.get(base.number, {}) if base else {}
    results = []
    for number, values in known.items():
        mean, sd, *_ = mean_interval(list(values.values()))
        paired = [study.sign * (values[seed] - reference[seed]) for seed in values if seed in reference]
        gain = low = high = None
        if paired and reference is not values:
            gain, _, low, high = mean_interval(paired)
        failed = sum(t.repeats == number and t.state in ENDED for t in study.trials) - len(values)
        results.append(Confirmed(number, tuple(values), tuple(values.values()), failed, mean, sd, gain, low, high))
    return sorted(results, key=lambda found: -study.sign * found.mean)


def _by_seed(study: Study, number: int) -> dict[int, float]:
    """{seed: value} of the finished repeats of a trial, by seed."""
    repeats = [t for t in study.trials if t.repeats == number and t.state == "finished" and t.value is not None]
    return {trial.seed: trial.result for trial in sorted(repeats, key=lambda trial: trial.seed)}


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None, float | None]:
    """Mean, sd and 90 % interval (Student's t) of the mean; one value has a mean alone."""
    from scipy.stats import t as student

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, None, None, None
    sd = float(np.std(values, ddof=1))
    half = float(student.ppf(0.5 + LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return mean, sd, mean - half, mean + half


def recommended(study: Study) -> int | None:
    """The trial to use after the repeats: the best mean, unless its gain over the baseline is not shown (90 % interval
    reaches 0): then the baseline stays. None without repeats."""
    results = statistics(study)
    if not results:
        return None
    best, base = results[0], study.baseline()
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
