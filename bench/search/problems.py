"""Synthetic searches with a known optimum, shaped by the published study: what a search method is measured on.

Noise-free H after `EPOCHS` epochs, u = unit coordinates of log lr, log weight_decay, log eta_min in the default space:

    q(u, T) = (u - u*)' A (u - u*) + d[T]          d >= 0, 0 for the best T_max
    H(u, T) = top - s (1 - exp(-q / s))            quadratic near the optimum, saturating far from it
    curve(e) = H + early(e) - gap(e),              gap(e) = G (f^-p - EPOCHS^-p), f = 1 + (e - 1) (lr / 1e-4)^a
    early(e) gives back the share 1 - (e / EPOCHS)^2 of what T_max and eta_min lose: they act late

u*, A, d, top, s, G, p and a of a problem are one draw of a posterior: broad priors (`PRIOR`), times the likelihood
(Student-t, 4 degrees, scale 1e-3) of the published table's eight runs at the epochs they were trained. `fitted` draws
are searched as they are; `moved` ones get their optimum drawn anew, uniformly in the cube, and their T_max offsets
permuted: another data set with surfaces of the same shape. Observed: + N(0, 0.9e-3) a training (its seed) + N(0,
0.44e-3) an epoch, sd 1e-3 in all; a training's value is the best of its curve, as the engine's checkpoints have it.

The draws come from independent Metropolis chains run side by side; chain i of block b is problem (b, i). Block 0 is for
tuning a method, block 1 for reporting: a method tuned on some problems looked 0.3 thousandths better there than on
others.
"""

import dataclasses
import functools

import numpy as np

from engine.search.space import Parameter, Space

BUDGET, EPOCHS = 8, 15  # trials of a search, epochs of a training
SEED_SD, EPOCH_SD = 0.9e-3, 0.44e-3
CHAINS, STEPS = 400, 6000
T_VALUES = (15, 18, 20, 25)
SPACE = Space(
    (
        Parameter("models.optimizer.lr", "float", 1e-5, 2e-4, "log"),
        Parameter("models.optimizer.weight_decay", "float", 6.1e-6, 1.23e-4, "log"),
        Parameter("models.scheduler.T_max", "ordinal", values=T_VALUES),
        Parameter("models.scheduler.eta_min", "float", 2.2e-6, 4.5e-5, "log"),
    )
)
LR, DECAY, T_MAX, ETA = range(4)  # columns of units
# Published runs in the study's own order: lr, weight_decay, T_max, eta_min, val H-mean, epochs trained.
PUBLISHED = (
    (1.13e-5, 9.76e-5, 25, 2.55e-5, 0.96667, 5),
    (9.98e-5, 3.98e-5, 15, 1.11e-5, 0.97561, 15),
    (7.92e-5, 3.98e-5, 20, 1.15e-5, 0.97153, 14),
    (9.09e-5, 3.24e-5, 15, 1.21e-5, 0.97431, 15),
    (1.23e-4, 5.40e-5, 18, 9.34e-6, 0.96969, 5),
    (1.48e-4, 4.66e-5, 15, 6.96e-6, 0.97257, 15),
    (7.44e-5, 3.71e-5, 15, 8.45e-6, 0.96900, 5),
    (5.55e-5, 1.64e-5, 20, 1.81e-5, 0.95532, 5),
)
FIRST = dict(zip(SPACE.names, (1e-4, 4e-5, 15, 1e-5), strict=True))  # the preset: the published optimum, rounded

# name, size, mean, sd of independent normal priors of the free coordinates of a chain
PRIOR = (
    ("place", 3, 0.5, 0.4),  # u*, kept inside the cube
    ("curvature", 3, np.log(0.014), 0.5),  # log of A's diagonal: 14e-3 a unit squared, 3.5e-3 half a range away
    ("cross", 3, 0.0, 0.3),  # correlation terms of A, kept within +-0.8
    ("offset", 4, 0.0, 0.0025),  # |.| less its least is d
    ("top", 1, 0.9765, 0.0015),
    ("saturation", 1, np.log(0.025), 0.3),  # log of s
    ("gap", 1, np.log(0.040), 0.3),  # log of G
    ("power", 1, np.log(1.0), 0.2),  # log of p
    ("speed", 1, 0.35, 0.15),  # a
)
SIZE = sum(size for _, size, _, _ in PRIOR)
MEANS = np.concatenate([np.full(size, mean) for _, size, mean, _ in PRIOR])
SDS = np.concatenate([np.full(size, sd) for _, size, _, sd in PRIOR])


@dataclasses.dataclass(frozen=True)
class Surfaces:
    """Parameters of N surfaces, arrays with N in front."""

    place: np.ndarray  # (N, 3) u*
    matrix: np.ndarray  # (N, 3, 3) A
    offset: np.ndarray  # (N, 4) d
    top: np.ndarray
    saturation: np.ndarray
    gap: np.ndarray
    power: np.ndarray
    speed: np.ndarray


def _surfaces(theta: np.ndarray) -> Surfaces:
    """Free coordinates (N, SIZE) -> surfaces."""
    parts, start = {}, 0
    for name, size, _, _ in PRIOR:
        parts[name] = theta[:, start : start + size]
        start += size
    root = np.exp(parts["curvature"] / 2)
    correlation = np.zeros((len(theta), 3, 3)) + np.eye(3)
    for column, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        correlation[:, i, j] = correlation[:, j, i] = np.clip(parts["cross"][:, column], -0.8, 0.8)
    offset = np.abs(parts["offset"])
    flat = {name: parts[name][:, 0] for name in ("top", "speed")}
    flat |= {name: np.exp(parts[name][:, 0]) for name in ("saturation", "gap", "power")}
    matrix = correlation * root[:, :, None] * root[:, None, :]
    return Surfaces(place=parts["place"], matrix=matrix, offset=offset - offset.min(axis=1, keepdims=True), **flat)


def _losses(s: Surfaces, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is lost at the end, and what of it acts late (T_max and eta_min alone); both (N, M) for units (N, M, 4)."""
    away = units[..., [LR, DECAY, ETA]] - s.place[:, None]
    which = np.abs(units[..., T_MAX, None] - SPACE.parameters[T_MAX].places).argmin(axis=-1)
    offset = np.take_along_axis(s.offset, which, axis=1)
    saturation = s.saturation[:, None]
    q = np.einsum("nmi,nij,nmj->nm", away, s.matrix, away) + offset
    late = s.matrix[:, 2, 2][:, None] * away[..., 2] ** 2 + offset
    final = saturation * (1 - np.exp(-np.maximum(q, 0) / saturation))
    return final, np.minimum(late, final)


def _curve(s: Surfaces, units: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Noise-free H (N, M) after `epochs` (M,) epochs of trainings at units (N, M, 4)."""
    final, late = _losses(s, units)
    lr = np.exp(np.log(1e-5) + units[..., LR] * np.log(20.0))
    faster = (lr / 1e-4) ** s.speed[:, None]
    power = -s.power[:, None]
    gap = s.gap[:, None] * ((1 + (epochs - 1) * faster) ** power - (1 + (EPOCHS - 1) * faster) ** power)
    return s.top[:, None] - final + late * (1 - (epochs / EPOCHS) ** 2) - gap


def _log_posterior(theta: np.ndarray) -> np.ndarray:
    """Log density (N,) up to a constant: priors, a convex quadratic, the optimum in the cube, the eight runs."""
    s = _surfaces(theta)
    allowed = ((s.place >= 0) & (s.place <= 1)).all(axis=1) & (np.linalg.eigvalsh(s.matrix)[:, 0] > 0)
    units = np.array([SPACE.unit(dict(zip(SPACE.names, run[:4], strict=True))) for run in PUBLISHED])
    observed, epochs = np.array([run[4] for run in PUBLISHED]), np.array([run[5] for run in PUBLISHED])
    expected = _curve(s, np.broadcast_to(units, (len(theta), *units.shape)), epochs)
    student = -2.5 * np.log1p(((observed - expected) / 1e-3) ** 2 / 4).sum(axis=1)
    return np.where(allowed, student - (((theta - MEANS) / SDS) ** 2).sum(axis=1) / 2, -np.inf)


@functools.cache
def chains(block: int) -> np.ndarray:
    """The last states of `CHAINS` Metropolis chains after `STEPS` steps, float (CHAINS, SIZE); a few seconds.

    Proposals are differences of two other chains (differential evolution MCMC, ter Braak 2006), scaled by
    2.38 / sqrt(2 SIZE), and every tenth step by 1, so that modes mix.
    """
    rng = np.random.default_rng([20260205, block])
    theta = MEANS + 0.5 * SDS * rng.standard_normal((CHAINS, SIZE))
    theta[:, :3] = rng.uniform(size=(CHAINS, 3))
    density = _log_posterior(theta)
    for step in range(STEPS):
        others = (np.arange(CHAINS) + rng.integers(1, CHAINS, (2, CHAINS))) % CHAINS
        scale = 1.0 if step % 10 == 9 else 2.38 / np.sqrt(2 * SIZE)
        proposed = theta + scale * (theta[others[0]] - theta[others[1]])
        proposed += 1e-4 * SDS * rng.standard_normal(theta.shape)
        new = _log_posterior(proposed)
        taken = np.log(rng.uniform(size=CHAINS)) < new - density
        theta[taken], density[taken] = proposed[taken], new[taken]
    return theta


@dataclasses.dataclass(frozen=True)
class Problem:
    """One search problem; `best` is its largest noise-free H, `seed` decides the noise of its trainings."""

    surfaces: Surfaces  # of one surface, N = 1
    best: float
    seed: int

    def truth(self, units: np.ndarray) -> np.ndarray:
        """Noise-free H after all epochs, float (M,), at units (M, 4)."""
        final, _ = _losses(self.surfaces, np.asarray(units, float)[None])
        return self.surfaces.top[0] - final[0]

    def curve(self, unit: np.ndarray, trial: int) -> np.ndarray:
        """Observed H after each epoch of training number `trial`, float (EPOCHS,); same arguments, same curve."""
        rng = np.random.default_rng([self.seed, trial])
        clean = _curve(self.surfaces, np.broadcast_to(unit, (1, EPOCHS, 4)), np.arange(1, EPOCHS + 1))[0]
        return clean + SEED_SD * rng.standard_normal() + EPOCH_SD * rng.standard_normal(EPOCHS)

    def regret(self, values: dict) -> float:
        """Noise-free H lost by a configuration, in thousandths."""
        return 1e3 * (self.best - float(self.truth(SPACE.unit(values)[None])[0]))


def problem(family: str, seed: int, block: int) -> Problem:
    """Problem number `seed` (0 to CHAINS - 1) of a block (0 tuning, 1 reporting); family `fitted` or `moved`."""
    assert family in ("fitted", "moved") and 0 <= seed < CHAINS
    s = _surfaces(chains(block)[seed : seed + 1])
    if family == "moved":
        rng = np.random.default_rng([20260206, block, seed])
        s = dataclasses.replace(s, place=rng.uniform(size=(1, 3)), offset=rng.permuted(s.offset, axis=1))
    return Problem(s, float(s.top[0]), int(np.random.SeedSequence([block, seed]).generate_state(1)[0]))
