"""The surrogate: where to look next, and what the trials so far say. scikit-optimize's Gaussian process, made for 8.

Model of the metric f at units u (centre c = the preset's own configuration, z = u - c, all in units of `scale`):

    f(u) = m - sum_i k_i z_i^2                   a quadratic valley: curvature k_i,
           + linear(z), variance (2 k_i t)^2     whose optimum lies N(0, t^2) away from the centre,
           + z_i z_j, variance (4 r^2 k_i k_j)   whose axes may be tilted,
           + Matern-5/2(u), ARD                  and whatever a quadratic does not say
    observed = f + N(0, noise^2 + (sd of an estimate)^2)

The hyperparameters (k, t, length scales, amplitude, noise) are not fitted: at 8 trials a maximum of the likelihood is
arbitrary. `DRAWS` sets of them are drawn from the priors below, each is one Gaussian process, and each counts by its
marginal likelihood. So the prior on the preset (t) loosens by itself when the data disagree, and nothing is trapped.

Next point: the largest mean + 1.25 sd of the mixture over candidates, pending trials fantasised at their mean.
Recommended: the largest mean - 1.645 sd (95 % sure) over the space, tried or not; `--confirm` trains it. From 0 to
1.645 sd it made no difference (medians 1.12 to 1.20 on 160 problems). Measured by `bench.bench_search_regret`.

Losses are compressed logarithmically beyond `H_BAD` of the best (a diverged training at H 0.2 says only "bad").
Sources: Rasmussen and Williams 2006, sections 2.7 (explicit basis functions) and 5.4 (marginal likelihood); kriging
believer, Ginsbourger et al. 2010.
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import sklearn
from scipy.special import ndtri
from scipy.stats import qmc
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import Kernel
from threadpoolctl import ThreadpoolController

from engine.search.space import Space, fresh
from engine.search.study import Study, field_of
from pipelines.errors import UserError

DRAWS = 128  # a power of 2, as Sobol points want
LEAST_WEIGHT = 1e-4  # of the heaviest draw; lighter ones change nothing and cost a prediction each
H_METRICS = ("hmean", "hmean_macro", "precision", "recall", "score")
H_SCALE, H_NOISE = 3e-3, 1e-3  # of H: effects of hyperparameters in the published study, noise of a training
H_BAD = 3e-2  # a loss of H beyond which bad is bad
CURVATURE, AWAY, TILT = (1.2, 0.7), (0.15, 0.5), 0.3  # k: median and log sd; t: log-uniform between; r
ROUGHNESS, LENGTH, NOISE_LOG_SD = (0.3, 0.6), (0.5, 0.4), 0.4  # Matern amplitude and length scales: median, log sd
WORST = 3.0  # compressed losses end here: 20 times H_BAD is as bad as can be
OFFSET_VARIANCE = 25.0  # of m, in scale^2: as good as unknown
EXPLORE, CAUTION = 1.25, 1.645

_THREADS = ThreadpoolController()


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Small matrices: BLAS threads that wait for cores, which trainings keep busy, cost 10 times more than they bring;
    a third of the time of a fit is scikit-learn's looking at its arguments."""
    checked = sklearn.config_context(assume_finite=True, skip_parameter_validation=True)
    with _THREADS.limit(limits=1, user_api="blas"), checked:
        yield


class Valley(Kernel):
    """Covariance of the model above for one draw of hyperparameters; inputs are features minus the centre's.

    Args:
        curvature, length: float (E,). away, roughness: floats. `E` = number of features.
    """

    def __init__(self, curvature: np.ndarray, away: float, roughness: float, length: np.ndarray) -> None:
        self.curvature, self.away, self.roughness, self.length = curvature, away, roughness, length

    def __call__(self, X: np.ndarray, Y: np.ndarray | None = None, eval_gradient: bool = False) -> np.ndarray:
        assert not eval_gradient, "hyperparameters are drawn, not fitted"
        Y = X if Y is None else Y
        tilt = 2 * TILT * self.curvature  # product of two of them: variance 4 r^2 k_i k_j
        straight = OFFSET_VARIANCE + (X * (2 * self.curvature * self.away) ** 2) @ Y.T
        products = (X * tilt) @ Y.T
        squares = (X * X * tilt**2) @ (Y * Y).T
        crossed = (products**2 - squares) / 2  # sum over i < j of z_i z_j z'_i z'_j times the variance
        a, b = X / self.length, Y / self.length
        distance = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0.0)
        r = np.sqrt(5 * distance)
        return straight + crossed + self.roughness**2 * (1 + r + r * r / 3) * np.exp(-r)

    def diag(self, X: np.ndarray) -> np.ndarray:
        """Variance at each row of X (N, E), float (N,)."""
        tilt = 2 * TILT * self.curvature
        straight = OFFSET_VARIANCE + (X * X) @ (2 * self.curvature * self.away) ** 2
        crossed = (((X * X) @ tilt) ** 2 - ((X * X) ** 2) @ tilt**2) / 2
        return straight + crossed + self.roughness**2

    def is_stationary(self) -> bool:
        """Not: it knows a centre."""
        return False


@dataclasses.dataclass(frozen=True)
class Told:
    """What the model learns from: units, heights (higher is better, metric units) and sds of estimates, all (N,)."""

    units: np.ndarray  # (N, P); trials known from a wider space may lie outside [0, 1]
    heights: np.ndarray
    sds: np.ndarray
    in_h: bool = True  # heights are of an H-mean: the size of effects and of the noise is known


def told_of(study: Study) -> Told:
    """The ended trials. Stopped ones count with their extrapolated value and its sd; infeasible ones as the worst
    measured height less one `scale`, give or take one: close by is not worth a training, farther away is open. From
    repeats is taken what their seed did to all of them alike: the others had another seed."""
    rows, lost = [], []
    shifts = _seed_shifts(study)
    for trial in study.trials:
        if trial.kind == "confirm":
            if trial.state == "finished" and trial.value is not None and trial.seed in shifts:
                rows.append((trial, trial.value - shifts[trial.seed], 0.0))
        elif trial.state == "stopped" and trial.estimate is not None:
            rows.append((trial, *trial.estimate))
        elif trial.state in ("finished", "stopped") and trial.value is not None:
            rows.append((trial, trial.value, 0.0))
        elif trial.state == "infeasible":
            lost.append(trial)
    heights = [study.sign * height for _, height, _ in rows]
    in_h = field_of(study.metric) in H_METRICS
    one = _scale(in_h, np.array(heights))
    bad = min(heights, default=0.0) - one
    trials = [row[0] for row in rows] + lost
    units = [study.space.coordinates(trial.values) for trial in trials]
    return Told(
        np.array(units).reshape(len(trials), len(study.space.parameters)),
        np.array(heights + [bad] * len(lost)),
        np.array([sd for *_, sd in rows] + [one] * len(lost)),
        in_h,
    )


def _seed_shifts(study: Study) -> dict[int, float]:
    """{seed of repeats: mean of its values less that of the same configurations' first values}, of seeds that at least
    two configurations have; with one, a seed and luck cannot be told apart."""
    pairs: dict[int, list[float]] = {}
    for trial in study.trials:
        first = study.trials[trial.repeats] if trial.kind == "confirm" and trial.repeats is not None else None
        if first is not None and trial.state == first.state == "finished":
            pairs.setdefault(trial.seed, []).append(trial.result - first.result)
    return {seed: float(np.mean(found)) for seed, found in pairs.items() if len(found) > 1}


def _scale(in_h: bool, heights: np.ndarray) -> float:
    """Size of the effects of hyperparameters, in the metric's units."""
    spread = float(heights.std()) if len(heights) > 1 else 0.0
    if in_h:
        return max(H_SCALE, spread)
    return spread or 1.0


class Posterior:
    """What the model says after the told trials; see `fit`.

    `predict` and `sample` speak of f, without the noise of a training, in the metric's own units and direction.

    Args:
        first: values of the configuration around which the optimum is expected.
        sign: +1 when higher is better, -1 when lower is.
    """

    def __init__(self, space: Space, first: dict[str, Any], told: Told, sign: float = 1.0) -> None:
        self.space, self.sign = space, sign
        self._tried = told.units
        self._bad = H_BAD
        if not told.in_h:  # 20 times the spread of the better half, which one diverged trial does not move
            better = np.sort(told.heights)[len(told.heights) // 2 :]
            self._bad = 20 * float(better.std()) or 10 * _scale(False, told.heights)
        self._top = float(told.heights.max())
        losses = self._top - told.heights
        warped = -self._bad * np.minimum(np.log1p(losses / self._bad), WORST)
        self._scale = _scale(told.in_h, warped)
        self._shift = float(warped.mean())
        self._centre = space.features(space.unit(first)[None])[0]
        noise = H_NOISE / math.sqrt(H_SCALE * self._scale) if told.in_h else 1 / 3
        squash = 1 / (1 + losses / self._bad)  # slope of the compression: an sd shrinks with it
        self._draw(noise, (warped - self._shift) / self._scale, told.sds * squash / self._scale)

    @_lean()
    def _draw(self, noise_median: float, heights: np.ndarray, sds: np.ndarray) -> None:
        """Draws hyperparameters, fits one process for each, weighs them by marginal likelihood."""
        size = len(self._centre)
        # Spread evenly, and the same in every study: a search repeats exactly.
        cube = qmc.Sobol(2 * size + 3, seed=0).random(DRAWS)
        normal = ndtri(cube)
        away = AWAY[0] * (AWAY[1] / AWAY[0]) ** cube[:, 0]
        roughness = ROUGHNESS[0] * np.exp(ROUGHNESS[1] * normal[:, 1])
        noise = noise_median * np.exp(NOISE_LOG_SD * normal[:, 2])
        curvature = CURVATURE[0] * np.exp(CURVATURE[1] * normal[:, 3 : 3 + size])
        length = LENGTH[0] * np.exp(LENGTH[1] * normal[:, 3 + size :])
        z = self._features(self._tried)
        self._processes, likelihoods = [], []
        for i in range(DRAWS):
            kernel = Valley(curvature[i], away[i], roughness[i], length[i])
            process = GaussianProcessRegressor(kernel, alpha=noise[i] ** 2 + sds**2, optimizer=None, normalize_y=False)
            process.fit(z, heights - self._valley(z, curvature[i]))
            self._processes.append((process, curvature[i]))
            likelihoods.append(process.log_marginal_likelihood_value_)
        weights = np.exp(np.array(likelihoods) - max(likelihoods))
        kept = weights >= LEAST_WEIGHT
        self._processes = [process for process, keep in zip(self._processes, kept) if keep]
        self._weights = weights[kept] / weights[kept].sum()
        self.noise_sd = float(self._weights @ noise[kept]) * self._scale

    def _features(self, units: np.ndarray) -> np.ndarray:
        return self.space.features(np.asarray(units, float)) - self._centre

    @staticmethod
    def _valley(z: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        return -(z * z) @ curvature

    @_lean()
    def mixture(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd (N,) of the mixture at units (N, P), higher is better, in the compressed heights of the model."""
        z = self._features(units)
        mean, square = np.zeros(len(z)), np.zeros(len(z))
        for weight, (process, curvature) in zip(self._weights, self._processes, strict=True):
            with warnings.catch_warnings():  # a variance of -1e-12 at a told point is rounding
                warnings.filterwarnings("ignore", message="Predicted variances smaller than 0")
                mu, sd = process.predict(z, return_std=True)
            mu = mu + self._valley(z, curvature)
            mean += weight * mu
            square += weight * (mu * mu + sd * sd)
        sd = np.sqrt(np.maximum(square - mean**2, 0.0))
        return self._shift + self._scale * mean, self._scale * sd

    def predict(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and sd of the metric without noise, float (N,) each, at units (N, P)."""
        mean, sd = self.mixture(units)
        return self._metric(mean), sd * np.exp(np.clip(-mean / self._bad, 0, 5))

    def _metric(self, heights: np.ndarray) -> np.ndarray:
        """Undoes the compression; what the model expects above the best told value stays linear."""
        losses = np.maximum(-heights, 0.0)
        return self.sign * (
            self._top + np.maximum(heights, 0.0) - self._bad * np.expm1(np.minimum(losses / self._bad, 5))
        )

    @_lean()
    def sample(self, units: np.ndarray, draws: int, seed: int) -> np.ndarray:
        """`draws` joint samples of the noise-free metric at units (N, P), float (draws, N)."""
        rng = np.random.default_rng(seed)
        z = self._features(units)
        counts = rng.multinomial(draws, self._weights)
        samples = []
        for count, (process, curvature) in zip(counts, self._processes, strict=True):
            if count:
                mean, covariance = process.predict(z, return_cov=True)
                values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
                root = vectors * np.sqrt(np.maximum(values, 0.0))
                mean = mean + self._valley(z, curvature)
                samples.append(mean + rng.standard_normal((count, len(z))) @ root.T)
        heights = self._shift + self._scale * np.concatenate(samples)
        return self._metric(rng.permutation(heights))

    def best(self) -> dict[str, Any]:
        """The recommended configuration: the highest lower end of the 90 % interval in the space, tried or not."""
        units = _candidates(self.space, self._tried, np.random.default_rng(1), 1000)
        for spread in (0.05, 0.02):
            mean, sd = self.mixture(units)
            top = units[int(np.argmax(mean - CAUTION * sd))]
            near = top + spread * np.random.default_rng(2).standard_normal((200, len(top)))
            units = np.vstack([top, self.space.snap(near)])
        mean, sd = self.mixture(units)
        return self.space.values(units[int(np.argmax(mean - CAUTION * sd))])


def fit(study: Study) -> Posterior:
    """The posterior of a study's ended trials, imported and repeated ones among them.

    Raises:
        UserError: none of them has a measured value.
    """
    told = told_of(study)
    if not len(told.heights):
        raise UserError(f"study {study.name}: no trial has ended yet, so there is nothing to learn from")
    return Posterior(study.space, study.first, told, study.sign)


def enough(study: Study) -> int:
    """Distinct measured configurations that a model needs: a plane has as many coefficients."""
    return len(study.space.parameters) + 1


def fitted(study: Study) -> Posterior | None:
    """As `fit`, or None where the measured configurations are too few to say anything."""
    distinct = {tuple(study.space.coordinates(trial.values)) for trial in study.measured}
    return fit(study) if len(distinct) >= enough(study) else None


def ask(
    space: Space, first: dict[str, Any], told: Told, rng: np.random.Generator, tried: Collection[tuple],
    pending: np.ndarray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The most promising configuration that has not been tried.

        told = Told(units, heights, np.zeros(len(units)))
        values = ask(space, first, told, np.random.default_rng([seed, number]), tried)

    Args:
        first: values of the configuration around which the optimum is expected.
        told: what is known; with nothing told and nothing pending it has no answer.
        rng: of the candidates.
        tried: values of known configurations, tuples in the space's order; none of them is asked for again.
        pending: units (M, P) of trials under way, which count at the heights that the model expects of them.

    Raises:
        UserError: every configuration of a finite space has been tried.
    """
    if pending is not None and len(pending):
        told = _fantasised(space, first, told, pending)
    posterior = Posterior(space, first, told)
    best = told.units[int(np.argmax(told.heights))]
    candidates = _candidates(space, np.vstack([best, space.unit(first)]), rng, 600)
    mean, sd = posterior.mixture(candidates)
    return fresh(space, candidates[np.argsort(-(mean + EXPLORE * sd), kind="stable")], tried)


def _fantasised(space: Space, first: dict[str, Any], told: Told, pending: np.ndarray) -> Told:
    """The told trials and the pending ones at the heights the model expects; before the first result at the prior's."""
    if len(told.heights):
        believed = Posterior(space, first, told).predict(pending)[0]
    else:
        z = space.features(pending) - space.features(space.unit(first)[None])
        believed = -CURVATURE[0] * math.exp(CURVATURE[1] ** 2 / 2) * _scale(told.in_h, told.heights) * (z * z).sum(1)
    return Told(
        np.vstack([told.units, pending]),
        np.concatenate([told.heights, believed]),
        np.concatenate([told.sds, np.zeros(len(pending))]),
        told.in_h,
    )


def _candidates(space: Space, centres: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Units (about 1.5 `count`, P): uniform ones, and some around each of the centres."""
    size = centres.shape[1]
    each = max(20, count // (2 * len(centres)))
    around = centres[:, None] + 0.12 * rng.standard_normal((len(centres), each, size))
    return space.snap(np.vstack([rng.uniform(size=(count, size)), around.reshape(-1, size)]))
