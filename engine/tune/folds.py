"""Does what a search finds hold on pages it has not seen? Cross-validation over pages, and the error of the gain.

Pages are dealt into K folds, copies of one picture into the same. For every fold the search
runs over the other pages, and what it finds is applied to the fold. So every page is judged once by settings that it
had no part in. The gain is the H-mean of all pages judged in this way less that with the start's settings.

Its standard error is the jackknife's over the groups of pages, in pairs (`engine.significance`). A gain below
2 se is called noise: with none there at all, chance alone reaches that 1 time in 44 (one side of a normal distribution
beyond 2 sd, 0.023).
"""

import dataclasses

import numpy as np

from engine.significance import SURE, hmeans, standard_error, without_each
from pipelines.errors import UserError


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


def deal(groups: np.ndarray, folds: int) -> np.ndarray:
    """(N,) fold of each page: groups, from `engine.significance.groups_of`, in turn.

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
        start, chosen: (N, 10) COUNTS of the pages. groups: (N,), at least two. select: micro or macro.
    """
    one, other = float(hmeans(start, select)), float(hmeans(chosen, select))
    differences = without_each(chosen, select, groups) - without_each(start, select, groups)
    return Gain(one, other, other - one, standard_error(differences))
