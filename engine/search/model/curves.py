"""What a running trial will reach: its curve so far, carried on in the way the study's other curves went.

Values are turned so that higher is better, and scaled so that a curve rises by about 1. Curve j after e of E epochs,
t = e / E:

    y_j(e) = A + B g(e) + h(e)                                        what all curves share
           + a_j (1 - f (1 - t^2)) + b_j g(e) + c_j g'(e)             level, rise and speed of its own
           + l_j (1 - t^2) + r_j(e) + noise                           late effects of its own, wandering

g falls from 1 at the first evaluation to 0 at the last, as a power law e^-p or an exponential (two of the families of
Domhan et al., IJCAI 2015), so A and a_j are final levels; g' is its derivative by the log of the speed; f is the share
of a level that shows late; h and r_j are Ornstein-Uhlenbeck processes. All is Gaussian given the shape of g, the spread
of a_j, f and the noise (which may fall during a run), so curves are taken up one after the other by exact updates, and
those are weighed on a grid by how well they explain all curves: with no other curve the priors speak, with many the
study's own habits do.

A score lies in 0..1, and a training from scratch stays at 0 until an epoch that hangs on its seed: one was to reach
0.0038 +- 4e-5 and reached 0 to 0.38 when it was repeated. A curve below LEFT teaches nothing of how far curves rise.
For one that began there votes are counted: of each other curve that had left 0 by then one for the model; while this
one has not, of each that had not and has ended one for where it ended; and one for anything from here to 1. Of 100 such
trainings, 1 to 7 others known, 16 to 40 % ended more than 3 sd away without votes, 0 to 8 % with.

Known bias (200 problems of `bench/search/problems.py`): trials that deserve to be stopped end 0.4 to 0.9 sd below the
mean told for them, since what they lose late does not show early.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[int, float]]
SHAPES = (("power", 0.5), ("power", 1.0), ("power", 2.0), ("exp", 2.0), ("exp", 5.0), ("exp", 12.0))
SPREADS = (0.03, 0.1, 0.3)  # sd of the final levels of trials, in rises
FANS = (0.0, 0.5)  # share of a final level's difference that appears late: curves fan out
NOISES = (0.003, 0.01, 0.03)  # sd of one evaluation, in rises: 1.5e-4 to 1.5e-3 of H when H rises by 0.05
NOISE_FALLS = (0.0, 4.0)  # noise is 1 to 5 times as large at first: it falls with the learning rate
LEVEL_SD, RISE_SD, COMMON_SD = 0.5, 0.5, 0.1  # of A, B and h
OWN_RISE_SD, OWN_SPEED_SD = 0.2, 0.3  # of b_j (beside the spread) and c_j
LATE_SHARE, WANDER_SHARE = 1.0, 0.2  # of the spread: sd of l_j and r_j
MEMORY = 0.3  # correlation length of h and r_j, as a share of the run
LEFT = 0.1  # of a score: what has come this far has left 0
POINTS = 60  # longer curves are averaged over buckets: the cost grows with the cube
DRAWS = 4000  # the error of a chance of 10 % is 0.5 %


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Draws of the best value by the last epoch, float (DRAWS,), ascending in quality and in the metric's own units."""

    draws: np.ndarray
    sign: float

    @property
    def estimate(self) -> tuple[float, float]:
        """Mean and sd; (best value, 0) when no evaluation is to come."""
        if self.draws[0] == self.draws[-1]:
            return float(self.draws[0]), 0.0
        return float(self.draws.mean()), float(self.draws.std())

    def chance(self, value: float) -> float:
        """Probability of ending strictly better than `value`."""
        return float((self.sign * (self.draws - value) > 0).mean())


def left_zero(curve: Sequence[tuple[float, float]]) -> bool:
    """Whether the curve of a score has left 0 (see above)."""
    return max((value for _, value in curve if math.isfinite(value)), default=0.0) >= LEFT


def forecast(curve: Curve, others: Sequence[Curve], epochs: int, sign: float = 1.0, *, score: bool = False) -> Forecast:
    """The best value by the last epoch, in draws. Pure: the same curves, in any order, give the same draws.

    Args:
        curve: (epochs done, value) of the trial, at least one finite value; the later of two with one epoch counts.
        others: curves of the study's ended trials, whole or cut short; none is enough.
        epochs: of a whole training. Evaluations go on at the rhythm so far; the last epoch has one.
        sign: +1 when higher is better, -1 when lower is.
        score: the values are in 0..1 by their nature, and 0 is where a training begins.
    """
    own = _clean(curve, epochs, sign)
    assert own, "a curve without a value cannot be carried on"
    kept = {epoch: value for epoch, value in dict(curve).items() if math.isfinite(value)}
    best = sign * max(sign * value for value in kept.values())
    ahead = _ahead(sorted(kept), epochs)
    if not ahead:
        return Forecast(np.full(DRAWS, best), sign)
    known = sorted(filter(None, (_clean(other, epochs, sign) for other in others)))
    risen, votes = known, score and sign > 0 and own[0][1] < LEFT
    if score and sign > 0:
        risen = [other for other in known if left_zero(other)]
    gone = [other for other in risen if left_zero([point for point in other if point[0] <= own[-1][0]])]
    draws = np.empty(0)
    if gone or not votes:
        base, rise = _scale(own, risen)
        draws = np.sort(_draw(own, known, ahead, epochs, base, rise) * rise + base)
    if votes:
        alike = [] if left_zero(own) else [other for other in known if other not in gone and other[-1][0] >= epochs]
        draws = _votes(best, draws, len(gone), [max(value for _, value in other) for other in alike])
    if score:
        draws = draws.clip(min(0.0, sign), max(0.0, sign))
    return Forecast(np.sort(np.maximum(draws, sign * best)) * sign, sign)


def _votes(best: float, carried: np.ndarray, gone: int, ends: list[float]) -> np.ndarray:
    """Draws of the end of a curve that began at 0.

    Args:
        best: so far.
        carried: ascending draws of the model, DRAWS or, with `gone` 0, none.
        gone: other curves that had left 0 by then.
        ends: where those ended that had not, as this one.
    """
    total = gone + len(ends) + 1
    votes = np.arange(DRAWS) * total // DRAWS
    even = (np.arange(DRAWS) * total % DRAWS + 0.5) / DRAWS  # of each vote's draws, from 0 to 1
    draws = best + (1 - best) * even**2  # the one vote: mostly low, at most 1
    if gone:
        part = votes < gone
        draws[part] = carried[np.linspace(0, DRAWS - 1, np.count_nonzero(part)).astype(int)]
    spread = max(float(np.std(ends)), LEFT) if ends else 0.0
    normal = np.random.default_rng(0).standard_normal(DRAWS)
    for place, end in enumerate(ends):
        part = votes == gone + place
        draws[part] = end + spread * normal[part]
    return draws


def _bucket(epoch: int, epochs: int) -> float:
    """The epoch itself, or for long runs the end of its bucket, of which there are `POINTS`."""
    return float(epoch) if epochs <= POINTS else math.ceil(epoch * POINTS / epochs) * epochs / POINTS


def _clean(curve: Curve, epochs: int, sign: float) -> tuple[tuple[float, float], ...]:
    """Finite values, turned upwards, epochs ascending; the mean of a bucket."""
    buckets: dict[float, list[float]] = {}
    for epoch, value in sorted(dict(curve).items()):
        if math.isfinite(value):
            buckets.setdefault(_bucket(epoch, epochs), []).append(sign * value)
    return tuple((epoch, sum(values) / len(values)) for epoch, values in buckets.items())


def _ahead(done: list[int], epochs: int) -> list[float]:
    """Epochs of the evaluations to come: the rhythm of those done, and the last epoch."""
    step = max(1, round(float(np.median(np.diff([0, *done])))))
    to_come = {*range(done[-1] + step, epochs + 1, step), epochs} if done[-1] < epochs else set()
    here = _bucket(done[-1], epochs)
    return sorted({_bucket(epoch, epochs) for epoch in to_come} - {here})


def _scale(own: tuple, known: list[tuple]) -> tuple[float, float]:
    """Reference level (the best seen) and the usual rise of a curve, both in units of the metric, turned upwards."""
    curves = known or [own]
    rises = [max(v for _, v in curve) - curve[0][1] for curve in curves if len(curve) > 1]
    base = max(v for curve in curves for _, v in curve)
    rise = float(np.median(rises)) if rises else 0.0
    return base, max(rise, 0.01 * abs(base), 1e-9)  # flat or single evaluations: a hundredth of the level


def _basis(epochs: np.ndarray, first: float, last: float) -> tuple[np.ndarray, np.ndarray]:
    """g and g' of every shape at `epochs` (M,), both (shapes, M); g is 1 at `first`, both are 0 at `last`."""
    span = max(last - first, 1.0)

    def raw(kind: str, rate: float, e: np.ndarray, speed: float) -> np.ndarray:
        passed = (e - first) * speed
        return (1 + passed / first) ** -rate if kind == "power" else np.exp(-rate * passed / span)

    levels, slopes = [], []
    ends = np.array([first, last])
    for kind, rate in SHAPES:
        top, bottom = raw(kind, rate, ends, 1.0)
        g = [(raw(kind, rate, epochs, v) - raw(kind, rate, ends, v)[1]) / (top - bottom) for v in (0.95, 1.0, 1.05)]
        levels.append(g[1])
        slopes.append((g[2] - g[0]) / math.log(1.05 / 0.95))
    return np.array(levels), np.array(slopes)


def _draw(own: tuple, known: list[tuple], ahead: list[float], last: int, base: float, rise: float) -> np.ndarray:
    """Draws (DRAWS,) of the best evaluation to come, in rises above `base`."""
    times = tuple(sorted({e for curve in (own, *known) for e, _ in curve} | set(ahead)))
    mean, shared, own_terms, noise, weight = _habits(tuple(known), times, last, base, rise)
    at, values = _placed(own, times, base, rise)
    mean, total, evidence = _update(mean, shared + own_terms, np.zeros_like(own_terms), noise, at, values)
    weight = np.exp(weight + evidence - (weight + evidence).max())
    to_come = [times.index(e) for e in ahead]
    total = total[np.ix_(range(len(weight)), to_come, to_come)]
    return _best_of(weight / weight.sum(), mean[:, to_come], total + _diagonal(noise[:, to_come]))


def _diagonal(sd: np.ndarray) -> np.ndarray:
    """Diagonal covariances (cells, M, M) of independent terms of sd (cells, M)."""
    return sd[:, :, None] ** 2 * np.eye(sd.shape[1])


@functools.lru_cache(maxsize=16)  # ended trials are the same for every epoch of a running one: 0.3 s -> 5 ms
def _habits(known: tuple, times: tuple[float, ...], last: int, base: float, rise: float) -> tuple[np.ndarray, ...]:
    """What the other curves teach about any curve at `times`, in every cell of the grid.

    Returns:
        mean (cells, times) and covariance (cells, times, times) of what curves share; covariance of a curve's own
        terms; sd of the noise (cells, times); log weight (cells,).
    """
    epochs = np.array(times)
    cells = np.array(list(itertools.product(range(len(SHAPES)), SPREADS, FANS, NOISES, NOISE_FALLS)))
    g, slope = (x[cells[:, 0].astype(int)] for x in _basis(epochs, times[0], float(last)))  # (cells, times)
    spread, fan, *loud = cells[:, 1:].T[:, :, None, None]
    wander = np.exp(-np.abs(epochs[:, None] - epochs[None]) / (MEMORY * last))
    late = 1 - (epochs / last) ** 2
    noise = (loud[0] * (1 + loud[1] * (1 - epochs / last)))[:, 0]  # (cells, times)
    level = 1 - fan[:, 0] * late
    own_level = level[:, :, None] * level[:, None] + LATE_SHARE**2 * np.outer(late, late) + WANDER_SHARE**2 * wander
    own_terms = (
        spread**2 * own_level
        + (spread**2 + OWN_RISE_SD**2) * g[:, :, None] * g[:, None, :]
        + OWN_SPEED_SD**2 * slope[:, :, None] * slope[:, None, :]
    )
    mean = -g  # A = 0, B = -1, h = 0
    shared = LEVEL_SD**2 + RISE_SD**2 * g[:, :, None] * g[:, None, :] + COMMON_SD**2 * wander
    weight = np.zeros(len(cells))
    for curve in known:
        at, values = _placed(curve, times, base, rise)
        mean, shared, evidence = _update(mean, shared, own_terms, noise, at, values)
        weight = weight + evidence
    return mean, shared, own_terms, noise, weight


def _placed(curve: tuple, times: tuple[float, ...], base: float, rise: float) -> tuple[list[int], np.ndarray]:
    return [times.index(e) for e, _ in curve], np.array([(v - base) / rise for _, v in curve])


def _update(
    mean: np.ndarray, cov: np.ndarray, own: np.ndarray, noise: np.ndarray, at: list[int], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian process given values (M,) at `at`, in every cell: mean, covariance, log evidence (cells,)."""
    cells = range(len(mean))
    seen = cov[np.ix_(cells, at, at)] + own[np.ix_(cells, at, at)] + _diagonal(noise[:, at])
    gain = np.linalg.solve(seen, cov[:, at, :]).transpose(0, 2, 1)  # (cells, times, M)
    off = values - mean[:, at]
    surprise = np.einsum("ci,ci->c", off, np.linalg.solve(seen, off[:, :, None])[:, :, 0])
    evidence = -0.5 * (surprise + np.linalg.slogdet(seen)[1])
    new = mean + np.einsum("ctm,cm->ct", gain, off)
    return new, cov - gain @ cov[:, at, :], evidence


def _best_of(weight: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Draws (DRAWS,) of the largest of the values to come: cells by weight (systematic), then Gaussian."""
    cell = np.searchsorted(np.cumsum(weight), (np.arange(DRAWS) + 0.5) / DRAWS).clip(max=len(weight) - 1)
    normal = np.random.default_rng(0).standard_normal((DRAWS, mean.shape[1]))
    values = np.empty(DRAWS)
    for c in np.unique(cell):
        root = np.linalg.cholesky(cov[c] + 1e-10 * np.eye(len(cov[c])))
        chosen = cell == c
        values[chosen] = (mean[c] + normal[chosen] @ root.T).max(axis=1)
    return values
