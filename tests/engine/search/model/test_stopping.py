"""Early stopping: W&B's hyperband against its own package, and the learning-curve rule's promises."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_curves import EPOCHS, some_curves

from engine.search.model import curves, stopping
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial
from pipelines.errors import UserError

SPACE = Space((Parameter("models.optimizer.lr", "float", 1e-5, 2e-4, "log"),))


def make_study(whole, running=(), **fields):
    """Finished trials of the curves `whole`, then running ones."""
    study = Study(Path("study"), "study", SPACE, max_epochs=EPOCHS, objective="module:function", **fields)
    for curve in [*whole, *running]:
        state = "finished" if len(study.trials) < len(whole) else "running"
        best = max((study.sign * v for _, v in curve if math.isfinite(v)), default=None)
        trial = Trial(len(study.trials), {}, "model", 0, state=state, curve=list(curve))
        trial.value = None if best is None else study.sign * best
        study.trials.append(trial)
    return study


def decision(whole, own, **fields):
    study = make_study(whole, [own], **fields)
    return stopping.decide(study.trials[-1], study)


def simulate(all_curves, rule, agents=1):
    """A study in which `agents` trials run at a time; returns it when all have ended."""
    study = make_study([], early_stop=rule)
    waiting = [Trial(n, {}, "model", 0, state="running") for n in range(len(all_curves))]
    running = []
    while waiting or running:
        while waiting and len(running) < agents:
            running.append(waiting.pop(0))
            study.trials.append(running[-1])
        for trial in list(running):
            trial.curve.append(all_curves[trial.number][len(trial.curve)])
            trial.value = max(value for _, value in trial.curve)
            ended = stopping.decide(trial, study)
            if ended.stop:
                trial.state, trial.estimate = "stopped", ended.estimate
            elif len(trial.curve) == EPOCHS:
                trial.state = "finished"
            if trial.state != "running":
                running.remove(trial)
    return study


HYPERBAND = {"type": "hyperband", "min_iter": 5, "eta": 3, "strict": True}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"min_iter": 5}, [5, 15, 45, 135]),
        ({"min_iter": 5, "eta": 2}, [5, 10, 20, 40]),
        ({"min_iter": 1, "eta": 1.5}, [1, 1, 2, 3]),
        ({"max_iter": 27, "s": 2}, [3, 9]),
        ({"max_iter": 27, "s": 9}, [1, 3, 9]),
        ({"max_iter": 5, "s": 2, "eta": 2}, [1, 2]),
    ],
)
def test_bands_are_those_of_wandb(rule, expected):
    assert stopping.bands(rule)[:4] == expected


@pytest.mark.parametrize(("runs", "kept"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (8, 3), (9, 4)])
def test_hyperband_keeps_as_many_as_wandb(runs, kept):
    histories = [[0.1 * n] for n in range(runs)]
    least = stopping.threshold(1, histories, 3)
    assert sum(history[0] >= least for history in histories) == kept


def wandb_stops(study):
    """Numbers of the running trials that the package `sweeps` would stop."""
    package = pytest.importorskip("sweeps", reason="needs the package sweeps: pip install sweeps")
    runs = []
    for trial in study.trials:
        state = "running" if trial.state == "running" else "killed" if trial.state == "stopped" else "finished"
        history = [{"val/hmean": value} for _, value in trial.curve]
        runs.append(package.SweepRun(name=str(trial.number), state=state, history=history))
    config = {
        "method": "random",
        "metric": {"name": "val/hmean", "goal": study.goal},
        "parameters": {"a": {"value": 1}},
    }
    return {int(run.name) for run in package.stop_runs(config | {"early_terminate": dict(study.early_stop)}, runs)}


def our_stops(study):
    return {
        t.number for t in study.trials if t.state == "running" and stopping._hyperband(t, study, study.early_stop).stop
    }


def random_study(rng):
    rule = {"type": "hyperband", "eta": float(rng.choice([2, 2.5, 3, 4])), "strict": bool(rng.integers(2))}
    rule |= {"min_iter": int(rng.integers(1, 6))} if rng.integers(2) else {"max_iter": int(rng.integers(9, 30)), "s": 2}
    study = make_study([], early_stop=rule, goal=str(rng.choice(["maximize", "minimize"])))
    for number in range(rng.integers(1, 12)):
        values = rng.normal(size=rng.integers(0, 30)).round(1)  # ties on purpose
        values[rng.random(len(values)) < 0.1] = math.nan
        state = str(rng.choice(["running", "finished", "stopped"]))
        study.trials.append(Trial(number, {}, "model", 0, state=state, curve=list(enumerate(map(float, values), 1))))
    return study


def test_hyperband_stops_what_wandb_stops(monkeypatch):
    monkeypatch.setattr(stopping, "estimate", lambda trial, study: None)  # the decision alone
    stopped = 0
    for seed in range(200):
        study = random_study(np.random.default_rng(seed))
        assert our_stops(study) == wandb_stops(study), seed
        stopped += len(our_stops(study))
    assert stopped > 60  # the cases are not empty


# val H-mean and epochs of the published study's runs, in its order
PUBLISHED = (
    *((0.96667, 5), (0.97561, 15), (0.97153, 14), (0.97431, 15)),
    *((0.96969, 5), (0.97257, 15), (0.96900, 5), (0.95532, 5)),
)


@pytest.mark.parametrize("agents", [1, 2, 4, 8])
def test_hyperband_on_the_published_table(agents, monkeypatch):
    """Curves that reach the table's values, in any number of agents: every decision is W&B's."""
    monkeypatch.setattr(stopping, "estimate", lambda trial, study: None)
    table = [[(e, value - 0.02 / e + 0.02 / epochs) for e in range(1, EPOCHS + 1)] for value, epochs in PUBLISHED]
    seen = []

    def both(trial, study):
        ours = stopping._hyperband(trial, study, study.early_stop)
        assert ours.stop == (trial.number in wandb_stops(study))
        seen.append(ours.stop)
        return ours

    with monkeypatch.context() as patch:
        patch.setattr(stopping, "decide", both)
        study = simulate(table, HYPERBAND, agents)
    assert len(study.trials[1].curve) == EPOCHS  # the best of all
    assert len(study.trials[7].curve) == 5  # the worst of all
    assert sum(seen) >= 3


def test_hyperband_says_what_it_compared():
    whole = [[(e, 0.9) for e in range(1, EPOCHS + 1)]]
    found = decision(whole, [(e, 0.8) for e in range(1, 6)], early_stop=HYPERBAND)
    assert found.stop and found.reason == "hyperband, band of 5 evaluations: 0.8 is worse than 0.9"
    assert found.estimate is not None and 0.75 < found.estimate[0] < 0.95


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=14), st.lists(st.floats(0, 1), min_size=14, max_size=14))
def test_hyperband_never_stops_the_better_of_two(values, gains):
    better = [(e, v + gain) for e, (v, gain) in enumerate(zip(values, gains, strict=False), 1)]
    worse = list(enumerate(values, 1))
    whole = [list(enumerate(np.linspace(0.1 * n, 1, EPOCHS), 1)) for n in range(4)]
    stops = []
    for own in (worse, better):
        study = make_study(whole, [own], early_stop=HYPERBAND)
        histories = [[v for _, v in t.curve] for t in study.trials]
        stops.append(own[4][1] < stopping.threshold(5, histories, 3))
        assert stopping.decide(study.trials[-1], study).stop == (len(own) >= 5 and stops[-1])
    assert stops[0] or not stops[1]


# --- the curve rule ---------------------------------------------------------------------------------------------------


HOPELESS = [(e, 0.5 + 0.01 * e) for e in range(1, EPOCHS + 1)]


@pytest.mark.parametrize("number", [1, 2, 7])
def test_the_hopeless_is_stopped_and_the_better_goes_on(number):
    whole = some_curves(0, number)
    best = max(value for curve in whole for _, value in curve)
    found = decision(whole, HOPELESS[:8])
    assert found.stop and found.estimate[0] < best
    assert "chance to beat trial" in found.reason and "\n" not in found.reason
    leader = max(whole, key=lambda curve: max(curve, key=lambda point: point[1])[1])
    assert not decision(whole, [(e, v + 0.002) for e, v in leader[:8]]).stop


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, EPOCHS - 1), st.integers(1, EPOCHS), st.floats(0, EPOCHS))
def test_nothing_is_stopped_in_warm_up(seed, done, least, warmup):
    rule = {"type": "curve", "chance": 0.1, "min_epochs": least}
    study = make_study(some_curves(seed, 3), [HOPELESS[:done]], early_stop=rule)
    study.objective, study.arguments = "", ["preset=demo", f"models.scheduler.warmup_epochs={warmup:.3f}"]
    if done < max(least, round(warmup, 3)):
        assert stopping.decide(study.trials[-1], study) == stopping.Decision(False)


def test_warm_up_is_read_from_arguments_and_searched_values():
    study = make_study(some_curves(1, 3), [HOPELESS[:8]])
    study.objective, study.arguments = "", ["preset=demo"]
    trial = study.trials[-1]
    assert stopping.decide(trial, study).stop
    trial.values = {"models.scheduler.warmup_epochs": 9.0}
    assert not stopping.decide(trial, study).stop
    trial.values, study.arguments = {}, ["preset=demo", "models.scheduler.warmup_epochs=9"]
    assert not stopping.decide(trial, study).stop


def test_an_imported_value_of_a_longer_training_is_nothing_to_beat():
    """A table of 30 epochs with trainings of 15 had stopped what was well on its way."""
    *whole, own = some_curves(3, 6)
    study = make_study(whole, [own[:8]])
    trial = study.trials[-1]
    before = stopping.decide(trial, study)
    study.trials.insert(0, Trial(99, {}, "imported", 0, state="finished", value=0.999, epochs=30, curve=[(30, 0.999)]))
    assert stopping.decide(trial, study) == before
    study.trials[0].epochs = EPOCHS
    study.trials[0].curve = [(EPOCHS, 0.999)]
    assert stopping.decide(trial, study) != before


def test_nothing_is_stopped_before_a_curve_has_left_0():
    stuck = [[(e, 0.0004 * e * k) for e in range(1, EPOCHS + 1)] for k in (1, 2)]
    study = make_study(stuck, [[(e, 0.0001) for e in range(1, 9)]])
    study.objective, study.arguments = "", ["preset=demo"]
    trial = study.trials[-1]
    assert stopping.decide(trial, study) == stopping.Decision(False)
    study.trials[0].curve = some_curves(1, 1)[0]
    study.trials[0].value = 0.97
    found = stopping.decide(trial, study)
    assert found.stop and found.estimate[1] > 0.05  # hopeless against 0.97, and nobody knows how far it would come
    study.objective = "module:function"  # of whose values nothing is known
    study.trials[0].curve, study.trials[0].value = stuck[0], 0.006
    assert stopping.decide(trial, study).stop


def test_who_is_never_stopped():
    whole = some_curves(2, 3)
    study = make_study(whole, [HOPELESS[:8]])
    trial = study.trials[-1]
    assert stopping.decide(trial, study).stop
    for change in ({"kind": "confirm"}, {"kind": "imported"}, {"curve": []}, {"curve": HOPELESS}, {"number": -1}):
        assert not stopping.decide(dataclasses.replace(trial, **change), study).stop, change
    study.early_stop = {"type": "none"}
    assert not stopping.decide(trial, study).stop
    alone = make_study([], [whole[0][:8], HOPELESS[:8]])
    assert not stopping.decide(alone.trials[1], alone).stop  # none has finished
    alone.trials[0].state = "infeasible"
    assert not stopping.decide(alone.trials[1], alone).stop


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(4, 14), st.randoms(use_true_random=False))
def test_the_order_of_trials_and_points_does_not_matter(seed, done, shuffle):
    *whole, own = some_curves(seed, 5)
    study = make_study(whole, [own[:done]])
    trial = study.trials[-1]
    before = stopping.decide(trial, study)
    shuffle.shuffle(study.trials)
    for each in study.trials:
        shuffle.shuffle(each.curve)
    assert stopping.decide(trial, study) == before


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(5, 14), st.floats(0, 0.02))
def test_a_curve_that_is_higher_throughout_is_not_stopped_sooner(seed, done, gain):
    *whole, own = some_curves(seed, 5)
    better = [(e, v + gain) for e, v in own]
    assert decision(whole, own[:done]).stop or not decision(whole, better[:done]).stop


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(5, 14))
def test_lower_is_better_is_the_mirror_of_higher_is_better(seed, done):
    *whole, own = some_curves(seed, 4)
    mirror = [[(e, -v) for e, v in curve] for curve in (*whole, own)]
    up, down = decision(whole, own[:done]), decision(mirror[:-1], mirror[-1][:done], goal="minimize")
    assert up.stop == down.stop
    if up.estimate:
        assert down.estimate == pytest.approx((-up.estimate[0], up.estimate[1]), rel=1e-6)


def test_units_of_the_metric_do_not_matter():
    *whole, own = some_curves(3, 5)
    large = [[(e, 1e4 * v) for e, v in curve] for curve in (*whole, own)]
    one, other = decision(whole, own[:6]), decision(large[:-1], large[-1][:6])
    assert one.stop == other.stop and other.estimate == pytest.approx([1e4 * x for x in one.estimate], rel=1e-6)


def test_the_curve_rule_saves_epochs_and_keeps_the_best(monkeypatch):
    monkeypatch.setattr(curves, "_habits", functools.lru_cache(curves._habits))  # five times as fast
    saved, lost = [], 0
    for seed in range(12):
        study = simulate(some_curves(200 + seed, 8), {})
        final = [max(v for _, v in curve) for curve in some_curves(200 + seed, 8)]
        saved.append(1 - sum(len(trial.curve) for trial in study.trials) / (8 * EPOCHS))
        best = study.trials[int(np.argmax(final))]
        lost += best.state == "stopped"
        assert all((trial.state == "stopped") == (trial.estimate is not None) for trial in study.trials)
    assert np.mean(saved) >= 0.2 and lost <= 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "type None: expected curve, hyperband or none"),
        ({"type": "median"}, "type median"),
        ({"type": "curve", "chance": 1.5}, "chance 1.5"),
        ({"type": "hyperband", "max_iter": 2, "s": 1}, "hyperband has no band"),
        ({"type": "hyperband"}, "hyperband has no band"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rule, message):
    with pytest.raises(UserError, match=message):
        stopping.check(rule)
    for good in (HYPERBAND, stopping.default_rule(20), {"type": "none"}):
        stopping.check(good)
