"""Learning curves for the tests of what is stopped and what is foreseen."""

import numpy as np

from engine.search.model import curves

EPOCHS = 15


def sample_curve(rng, final=None, epochs=EPOCHS, noise=4e-4):
    """H after each epoch: a power law with its own speed up to `final`, noise of the seed and of each epoch."""
    final = 0.975 - abs(rng.normal(0, 5e-3)) if final is None else final
    passed = 1 + np.arange(epochs) * rng.lognormal(0, 0.3)
    rise = 0.04 * rng.lognormal(0, 0.2) * (passed**-1.0 - passed[-1] ** -1.0)
    return [(e + 1, float(v)) for e, v in enumerate(final - rise + rng.normal(0, noise, epochs))]


def some_curves(seed, number):
    rng = np.random.default_rng(seed)
    return [sample_curve(rng) for _ in range(number)]


def extrapolate(curve, others, epochs) -> tuple[float, float]:
    """(mean, sd) of the best value by the last epoch."""
    return curves.forecast(curve, others, epochs).estimate


def late_curve(rng, top=None, epochs=EPOCHS):
    """H of a training from scratch: near 0 until an epoch of its own, then up to `top` if it gets there."""
    top = rng.uniform(0.3, 0.9) if top is None else top
    start, pace = rng.uniform(2, epochs + 3), rng.uniform(0.5, 2)
    clean = top / (1 + np.exp(-(np.arange(1, epochs + 1) - start) / pace * 1.5))
    return [(e + 1, float(v)) for e, v in enumerate(np.clip(clean + rng.normal(0, 1e-3, epochs), 0, 1))]
