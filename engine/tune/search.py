"""The search for settings: a coarse grid first, then the Gaussian process of `engine.search` around what it found.

    judge = Judge(store, pages, protocol, least_filters(start))
    whole, *without_fold = search(judge, start, "micro", sets, trials)            # one result for each set of pages
    whole.ranked[0].post

A set of pages (all of them, or those of a fold's training) decides by its own pages alone. Three steps look at growths
(`candidates.GROWTH`):

    grid        every growth of a fixed grid, on a fourth of the pages
    rung        the best quarter of them for each set, on all pages
    model       `trials` growths more for each set, asked of the model with what the set knows

For each growth the filters are chosen one after another: the value with the best H-mean of the pages. A value that is
no better than the one before changes nothing.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from engine.config import PostConfig
from engine.evaluation.significance import SURE, hmeans, standard_error, without_each
from engine.search.model import surrogate
from engine.search.space import Parameter, Space
from engine.tune.candidates import FILTERS, GROWTH, Judge, counts
from pipelines.errors import UserError

GRID: dict[str, tuple] = {
    "shape": ("quad", "polygon"),
    "score_mode": ("slow", "fast"),
    "bin_thresh": (0.15, 0.22, 0.3, 0.4, 0.5),
    "unclip_ratio": (1.2, 1.5, 1.8, 2.2),
}
# Steps below which two settings are as good as one: 8-bit maps have thresholds 0.004 apart.
RANGES = {"bin_thresh": (0.05, 0.7, 0.01), "unclip_ratio": (0.8, 3.0, 0.05)}
VALUES = {
    "box_thresh": tuple(np.round(np.arange(0.1, 0.91, 0.025), 3).tolist()),
    "min_size_px": (2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
    "min_unclipped_px": (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0),
    "max_candidates": (200, 300, 500, 1000),
}
ORDER = ("box_thresh", "min_size_px", "min_unclipped_px", "max_candidates", "box_thresh")  # as they are chosen
FEW, SHARE = 24, 4  # pages that the grid is tried on: a fourth, at least 24
KEPT = 4  # a quarter of the grid goes on


@dataclasses.dataclass(frozen=True)
class Found:
    """Settings and what a set of pages says of them."""

    post: PostConfig
    score: float  # H-mean of the set


@dataclasses.dataclass
class Searched:
    """What a search over one set of pages found, and how many settings it looked at on all its pages."""

    known: list[Found]  # in the order in which they were looked at
    tried: int

    def add(self, found: Found, tried: int) -> None:
        """Takes in the best of a growth, and how many of its settings have been looked at."""
        self.known.append(found)
        self.tried += tried

    @property
    def ranked(self) -> list[Found]:
        """The best first."""
        return sorted(self.known, key=lambda one: -one.score)


def growth_of(post: PostConfig) -> tuple:
    """The values of GROWTH."""
    return tuple(getattr(post, name) for name in GROWTH)


def least_filters(start: PostConfig) -> PostConfig:
    """The least values of the filters that a search looks at, `start` among them."""
    least = {name: min(*values, getattr(start, name)) for name, values in VALUES.items() if name != "max_candidates"}
    return dataclasses.replace(start, **least)


def options(name: str, start: PostConfig) -> list:
    """Values of a filter that are tried, the start's among them, those nearest to it first."""
    own = getattr(start, name)
    return sorted({*VALUES[name], own}, key=lambda value: (abs(value - own), value))


def grid(start: PostConfig) -> list[PostConfig]:
    """The start's growth and the fixed ones."""
    fixed = [dataclasses.replace(start, **dict(zip(GRID, values))) for values in itertools.product(*GRID.values())]
    return [start, *(post for post in fixed if growth_of(post) != growth_of(start))]


def space(start: PostConfig) -> Space:
    """The growths the model may ask for; the start's is one of them."""
    numbers = [
        Parameter(f"post.{name}", "float", min(low, getattr(start, name)), max(high, getattr(start, name)), step=step)
        for name, (low, high, step) in RANGES.items()
    ]
    return Space((
        Parameter("post.shape", "choice", values=("quad", "polygon")),
        Parameter("post.score_mode", "choice", values=("fast", "slow")),
        *numbers,
        Parameter("post.connectivity", "ordinal", values=(4, 8)),
    ))  # fmt: skip


class Filters:
    """The choice of filters for one growth, shared by all sets of pages: what one of them asks is counted once."""

    def __init__(self, judge: Judge, post: PostConfig, rows: np.ndarray, start: PostConfig) -> None:
        self.rows, self._start = rows, start
        self._post, self._growth = post, judge.growth(post, rows)
        self._known: dict[PostConfig, np.ndarray] = {}

    def counts(self, post: PostConfig) -> np.ndarray:
        """(P, 10) COUNTS of `rows`."""
        if post not in self._known:
            self._known[post] = counts(self._growth, post)
        return self._known[post]

    def best(self, members: np.ndarray, select: str) -> Found:
        """The best filters for the pages that `members`, (N,) bool of all pages, marks."""
        inside = members[self.rows]
        post = self._post
        top = float(hmeans(self.counts(post)[inside], select))
        for name in ORDER:
            tried = [dataclasses.replace(post, **{name: value}) for value in options(name, self._start)]
            scores = hmeans(np.stack([self.counts(one)[inside] for one in tried]), select)
            if scores.max() > top:
                top, post = float(scores.max()), tried[int(scores.argmax())]
        return Found(post, top)

    @property
    def looked_at(self) -> int:
        """Different settings counted so far."""
        return len(self._known)


def search(
    judge: Judge, start: PostConfig, select: str, sets: Sequence[np.ndarray], trials: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Searched]:  # fmt: skip
    """The search over several sets of pages at once; one result a set.

    Args:
        judge: scores settings. start: where it starts. select: micro or macro H-mean.
        sets: (N,) bool each, which of the N pages decide.
        trials: growths asked of the model for each set.
        tell: called for every growth that is looked at.
    """
    posts, every, where, done = grid(start), np.arange(len(judge.store)), space(start), itertools.count(1)
    total = len(posts) + len(sets) * trials

    def look(post: PostConfig, rows: np.ndarray) -> Filters:
        tell(next(done), total)
        return Filters(judge, post, rows, start)

    # Drawn, with a fixed seed: every fourth could be one fold's.
    few = np.sort(np.random.default_rng(0).permutation(every)[: max(FEW, len(every) // SHARE)])
    scores = np.zeros((len(sets), len(posts)))
    for column, post in enumerate(posts):
        filters = look(post, few)
        scores[:, column] = [filters.best(members, select).score for members in sets]
    best = np.argsort(-scores, axis=1, kind="stable")[:, : -(-len(posts) // KEPT)]
    tops = [[start, *(posts[i] for i in row if i)] for row in best]  # the start's is always among them
    union = list(dict.fromkeys(post for top in tops for post in top))
    total += len(union)
    results = [Searched([], 0) for _ in sets]
    for post in union:
        filters = look(post, every)
        for found, members, top in zip(results, sets, tops, strict=True):
            if post in top:
                found.add(filters.best(members, select), filters.looked_at)
    for found, members in zip(results, sets, strict=True):
        for _ in range(trials):
            filters = look(asked(found.known, where, start), every)
            found.add(filters.best(members, select), filters.looked_at)
    return results


def asked(known: list[Found], where: Space, start: PostConfig) -> PostConfig:
    """The growth that the model asks for next, by what a set of pages says of the known ones."""
    values = [keyed(where, found.post) for found in known]
    units = np.array([where.coordinates(one) for one in values])
    told = surrogate.Told(units, np.array([found.score for found in known]), np.zeros(len(known)))
    rng, tried = np.random.default_rng([0, len(known)]), {tuple(one.values()) for one in values}
    found = surrogate.ask(where, keyed(where, start), told, rng, tried)
    return dataclasses.replace(start, **{name.removeprefix("post."): value for name, value in found.items()})


def keyed(where: Space, post: PostConfig) -> dict[str, Any]:
    """The growth of settings, by the names of the space."""
    return {name: getattr(post, name.removeprefix("post.")) for name in where.names}


def slices(judge: Judge, best: PostConfig, start: PostConfig, select: str) -> Iterator[tuple[str, list, list[float]]]:
    """For every setting (name, its values, H-mean of all pages with the others as in `best`)."""
    every = np.arange(len(judge.store))
    growth = judge.growth(best, every)
    tried = {name: list(VALUES[name]) for name in FILTERS}
    for parameter in space(start).parameters:
        name = parameter.name.removeprefix("post.")
        near = np.clip(parameter.unit(getattr(best, name)) + np.linspace(-0.2, 0.2, 9), 0, 1)
        tried[name] = list(parameter.values) or [parameter.value(unit) for unit in near]
    for name, some in tried.items():
        values = sorted({*some, getattr(best, name), getattr(start, name)})
        posts = [dataclasses.replace(best, **{name: value}) for value in values]
        found = [counts(growth if name in FILTERS else judge.growth(post, every), post) for post in posts]
        yield name, values, [float(hmeans(one, select)) for one in found]


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
    """(N,) fold of each page: groups, from `engine.evaluation.significance.groups_of`, in turn.

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
    error = standard_error(differences)
    assert error is not None  # of two groups or more
    return Gain(one, other, other - one, error)
