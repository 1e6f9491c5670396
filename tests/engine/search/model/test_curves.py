"""What a running trial will reach: never below what it has, neither far off nor too sure."""

import math

import numpy as np
import pytest
from search_curves import EPOCHS, extrapolate, sample_curve, some_curves


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("done", [1, 2, 5, 14])
def test_an_estimate_never_needs_other_curves(number, done):
    *whole, own = some_curves(4, number + 1)
    mean, sd = extrapolate(own[:done], whole, EPOCHS)
    best = max(value for _, value in own[:done])
    assert best <= mean < 1.1 and 0 < sd < 0.1


def test_a_whole_curve_is_its_own_best():
    own = some_curves(5, 1)[0]
    assert extrapolate(own, [], EPOCHS) == (max(v for _, v in own), 0.0)


def test_lost_and_repeated_evaluations():
    *whole, own = some_curves(6, 4)
    clean = extrapolate(own[:8], whole, EPOCHS)
    assert extrapolate([*own[:8], (9, math.nan), (10, math.inf)], [*whole, [], [(1, math.nan)]], EPOCHS) == clean
    gone = [(5, 0.1), *own[:8]]  # an attempt that was cut; the later value of epoch 5 counts
    assert extrapolate(gone, whole, EPOCHS) == clean


def test_evaluations_need_not_come_every_epoch():
    *whole, own = some_curves(7, 5)
    thin = [curve[1::2] + curve[-1:] for curve in whole]
    every, second = extrapolate(own[:8], whole, EPOCHS), extrapolate(own[1:8:2], thin, EPOCHS)
    assert second[0] == pytest.approx(every[0], abs=3e-3)
    mixed = extrapolate(own[:8], thin, EPOCHS)
    assert mixed[0] == pytest.approx(every[0], abs=2e-3)


def test_long_trainings_are_averaged_over_buckets():
    rng = np.random.default_rng(8)
    *whole, own = [sample_curve(rng, epochs=500) for _ in range(6)]
    mean, sd = extrapolate(own[:150], whole, 500)
    assert mean == pytest.approx(max(v for _, v in own), abs=4 * sd) and sd < 0.01


def test_estimates_are_neither_far_off_nor_too_sure():
    off = []
    for seed in range(60):
        *whole, own = some_curves(100 + seed, 6)
        mean, sd = extrapolate(own[:5], whole, EPOCHS)
        off.append((max(v for _, v in own) - mean) / sd)
    assert abs(np.mean(off)) < 0.6 and 0.4 < np.std(off) < 1.5
