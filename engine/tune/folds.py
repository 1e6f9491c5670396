"""Does what a search finds hold on pages it has not seen? Cross-validation over pages, and the error of the gain.

Pages are dealt into K folds, pages with the same map (copies of one picture) into the same. For every fold the search
runs over the other pages, and what it finds is applied to the fold. So every page is judged once by settings that it
had no part in. The gain is the H-mean of all pages judged in this way less that with the start's settings.

Its standard error is the jackknife's over the groups of pages, of the paired difference (Efron and Tibshirani 1993,
An Introduction to the Bootstrap, equation 11.5): with d_i the gain without group i, and m the mean of the n d_i,

    se^2 = (n - 1) / n * sum_i (d_i - m)^2

A gain below 2 se is called noise: with none there at all, chance alone reaches that 1 time in 44 (one side of a normal
distribution beyond 2 sd, 0.023).
"""

import dataclasses
import hashlib

import numpy as np

from engine.maps import MapStore
from engine.tune.scores import hmeans
from pipelines.errors import UserError

SURE = 2.0  # standard errors


@dataclasses.dataclass(frozen=True)
class Gain:
    """H-means over all pages, each judged by settings found without it; and the difference's standard error."""

    start: float
    chosen: float
    gain: float
    standard_error: float

    @property
    def real(self) -> bool:
        """Whether it is more than noise."""
        return self.gain > 0 and self.gain >= SURE * self.standard_error


def groups_of(store: MapStore) -> np.ndarray:
    """(N,) number of each page's group, in order of first appearance; the same for pages with the same map."""
    hashes = [hashlib.blake2b(page.tobytes(), digest_size=16).digest() for page in store.bytes]
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(one, len(numbers)) for one in hashes])


def deal(groups: np.ndarray, folds: int) -> np.ndarray:
    """(N,) fold of each page: groups in turn.

    Raises:
        UserError: fewer groups than folds.
    """
    count = int(groups.max()) + 1
    if count < folds:
        raise UserError(f"--folds {folds}: data.val has {count} different pages; give it more, or fewer folds")
    return groups % folds


def gain_of(start: np.ndarray, chosen: np.ndarray, groups: np.ndarray, select: str) -> Gain:
    """The gain and its error.

    Args:
        start, chosen: (N, 10) COUNTS of the pages. groups: (N,). select: micro or macro.
    """
    one, other = float(hmeans(start, select)), float(hmeans(chosen, select))
    number = int(groups.max()) + 1
    without = [groups != group for group in range(number)]
    differences = np.array([float(hmeans(chosen[w], select) - hmeans(start[w], select)) for w in without])
    spread = (number - 1) / number * np.square(differences - differences.mean()).sum()
    return Gain(one, other, other - one, float(np.sqrt(spread)))
