"""What a running trial will reach: never below what it has, neither far off nor too sure."""

import math

import numpy as np
import pytest
from search_curves import EPOCHS, extrapolate, late_curve, sample_curve, some_curves

from engine.search.model import curves


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


def test_what_has_not_left_0_may_end_anywhere():
    """Told to reach 0.0038 +- 4e-5, and 0 to 0.38 when repeated."""
    own = [(1, 0.0), (2, 0.0), (3, 0.0011), (4, 0.0038)]
    stuck = [(e, 0.0004 * e) for e in range(1, 7)]
    for others in ([], [stuck], [stuck, stuck]):
        mean, sd = curves.forecast(own, others, 6, score=True).estimate
        assert 0.0038 < mean < 0.5 and 0.05 < sd < 0.4, (mean, sd)
    risen = [[(e, 0.15 * e + 0.01 * k) for e in range(1, 7)] for k in range(8)]
    mean, sd = curves.forecast(own, risen, 6, score=True).estimate  # eight had left 0 by then, and this one has not
    assert mean < 0.6 and sd > 0.05


@pytest.mark.parametrize("others", [0, 1, 3, 7])
def test_forecasts_of_trainings_from_scratch_are_neither_outside_nor_too_sure(others):
    off = []
    for seed in range(60):
        rng = np.random.default_rng(300 + seed)
        *known, own = [late_curve(rng) for _ in range(others + 1)]
        found = curves.forecast(own[:7], known, EPOCHS, score=True)
        assert found.draws.min() >= 0 and found.draws.max() <= 1
        mean, sd = found.estimate
        off.append((max(v for _, v in own) - mean) / sd)
    assert abs(np.mean(off)) < 1 and np.mean(np.abs(off) > 3) < 0.1, off


def test_a_score_stays_within_its_bounds():
    near = [[(e, 1 - 0.1 / e - 0.001 * k) for e in range(1, EPOCHS + 1)] for k in range(3)]
    found = curves.forecast([(1, 0.9), (2, 0.98), (3, 0.995)], near, EPOCHS, score=True)
    assert found.draws.min() >= 0.995 and found.draws.max() <= 1
    down = curves.forecast([(1, 0.3), (2, 0.1), (3, 0.01)], near, EPOCHS, -1.0, score=True)
    assert down.draws.min() >= 0
