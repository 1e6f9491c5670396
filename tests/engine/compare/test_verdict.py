"""compare.verdict: Tukey's figures, and how often luck is called a difference."""

import math

import numpy as np
import pytest

from engine.compare import verdict


def test_tukeys_worked_example():
    """The figures of the module's docstring, and a two-level family is a t test."""
    noise = verdict.Noise(1e-6, 8)
    found = verdict.compare("schedules", ["a", "b", "c"], np.array([0.9, 0.903, 0.9025]), 5, noise, 1)
    assert found.width == pytest.approx(4.041 * math.sqrt(1e-6 / 5), rel=1e-3)
    assert found.detectable == pytest.approx(0.00237, rel=2e-3)
    assert [(p.first, p.second, p.shown) for p in found.pairs] == [
        ("b", "a", True),
        ("c", "a", True),
        ("b", "c", False),
    ]
    two = verdict.compare("schedules", ["a", "b"], np.array([0.9, 0.901]), 5, noise, 1)
    t = 0.001 / math.sqrt(2 * 1e-6 / 5)
    assert two.pairs[0].p == pytest.approx(2 * verdict.t.sf(t, 8), rel=1e-6)


def test_noise_is_what_combinations_and_seeds_do_not_explain():
    rng = np.random.default_rng(0)
    rest = rng.standard_normal((4, 6))
    seeds, levels = 100 * rng.standard_normal((1, 6)), 10 * rng.standard_normal((4, 1))
    assert verdict.noise_of(rest + seeds + levels).mse == pytest.approx(verdict.noise_of(rest).mse)
    many = [verdict.noise_of(rng.standard_normal((4, 6))).mse for _ in range(400)]
    assert np.mean(many) == pytest.approx(1.0, abs=0.05) and verdict.noise_of(rest).df == 15
    assert verdict.noise_of(seeds + levels).mse == 0.0  # rounding is no noise


def test_luck_is_called_a_difference_in_five_of_a_hundred_and_a_detectable_one_found_in_four_of_five():
    rng = np.random.default_rng(1)
    noise = verdict.noise_of(rng.standard_normal((6, 3)))
    one = verdict.compare("", list("abcdef"), np.zeros(6), 3, verdict.Noise(1.0, noise.df), 1)
    wrong = found = 0
    for _ in range(1500):
        values = rng.standard_normal((6, 3)) + 5 * rng.standard_normal((1, 3))
        limit = one.width * math.sqrt(verdict.noise_of(values).mse)
        wrong += np.ptp(values.mean(1)) > limit
        values[0] += one.detectable
        found += values[0].mean() - values[1].mean() > limit
    assert 0.035 < wrong / 1500 < 0.07
    assert 0.72 < found / 1500 < 0.85
