"""What is asked for next: the preset first, nothing twice, and what each method says."""

import dataclasses
import json
import time

import numpy as np
import pytest
from search_valley import FIRST, SPACE, height, searched, study

from engine.search.ask import configuration
from engine.search.space import Parameter, Space, size
from engine.search.study import Trial
from pipelines.errors import UserError


def test_trial_0_is_the_preset_and_later_ones_depend_on_the_study_only():
    one = searched({"lr": 4e-5, "decay": 3e-6, "T_max": 20}, 3)
    assert one.trials[0].values == FIRST and one.trials[0].kind == "preset"
    assert [t.kind for t in one.trials[1:]] == ["model", "model"]
    assert configuration(one, 3) == configuration(one, 3)
    assert configuration(one, 3) != configuration(dataclasses.replace(one, seed=1), 3)
    json.dumps(configuration(one, 3)[0])  # plain types


def test_pending_trials_are_not_asked_for_again_and_spread_around_the_preset_before_any_result():
    one = searched(FIRST, 8, pending=8)
    assert [t.kind for t in one.trials] == ["preset"] + ["prior"] * 7
    units = np.array([SPACE.unit(t.values) for t in one.trials])
    apart = np.abs(units[:, None] - units[None]).max(-1) + np.eye(8)
    assert apart.min() > 0.05
    assert np.sqrt(((units[1:] - units[0]) ** 2).sum(1)).max() > 0.3


def test_method_prior_does_not_listen_to_results():
    best = {"lr": 2e-5, "decay": 2e-6, "T_max": 25}
    deaf = [t.values for t in searched(best, 4, method="prior").trials]
    assert deaf == [t.values for t in searched(FIRST, 4, method="prior").trials]
    assert deaf == [t.values for t in searched(best, 4, pending=4).trials]


def test_a_small_space_is_asked_for_once_and_then_refused():
    space = Space((Parameter("T_max", "ordinal", values=(15, 18)), Parameter("o", "choice", values=("a", "b"))))
    first = {"T_max": 15, "o": "a"}
    one = study(space=space, first=first, budget=5)
    for number in range(4):
        values, kind = configuration(one, number)
        one.trials.append(Trial(number, values, kind, 0, state="finished", value=0.9 + 0.01 * number))
    assert len({tuple(t.values.items()) for t in one.trials}) == 4
    with pytest.raises(UserError, match="4 configurations and all are tried"):
        configuration(one, 4)


def test_grid_and_random():
    space = Space((Parameter("T_max", "ordinal", values=(15, 18)), Parameter("n", "int", 1, 3)))
    one = study(space=space, first={"T_max": 15, "n": 1}, method="grid", budget=6)
    for number in range(6):
        values, kind = configuration(one, number)
        assert kind == "grid"
        one.trials.append(Trial(number, values, kind, 0))
    assert [tuple(t.values.values()) for t in one.trials] == [(a, b) for a in (15, 18) for b in (1, 2, 3)]
    assert size(space) == 6
    with pytest.raises(UserError, match="continuous parameter has no grid"):
        configuration(study(method="grid"), 0)
    known = study([(FIRST, 0.9)], method="random")
    assert configuration(study(method="random"), 0) == (FIRST, "preset")  # the baseline of what is drawn after it
    draws = [configuration(known, number)[0] for number in range(1, 21)]
    assert len({d["lr"] for d in draws}) == 20 and {d["T_max"] for d in draws} == {15, 18, 20, 25}


STEPS = [  # values that a parameter can take
    (Parameter("q", "int", 5, 105, step=10), list(range(10, 101, 10))),
    (Parameter("q", "float", 0.05, 0.35, step=0.1), [0.1, 0.2, 0.3]),
    (Parameter("q", "float", 1.0, 16.0, "log", step=2.5), [2.5, 5.0, 7.5, 10.0, 12.5, 15.0]),
    (Parameter("n", "int", -1, 2), [-1, 0, 1, 2]),
]


@pytest.mark.parametrize(("parameter", "expected"), STEPS)
def test_the_grid_has_every_value_of_a_step(parameter, expected):
    space = Space((parameter, Parameter("o", "choice", values=("a", "b"))))
    assert parameter.options() == expected and size(space) == 2 * len(expected)
    one = study(space=space, first={parameter.name: expected[0], "o": "a"}, method="grid", budget=99)
    for number in range(2 * len(expected)):
        one.trials.append(Trial(number, *configuration(one, number), 0))
    assert [t.values[parameter.name] for t in one.trials if t.values["o"] == "b"] == expected
    assert {type(t.values[parameter.name]) for t in one.trials} == {type(expected[0])}


def test_ask_and_tell_stay_below_a_second_at_64_trials():
    """Time of the process, best of three: other tests run beside it."""
    rng = np.random.default_rng(0)
    values = [SPACE.values(unit) for unit in rng.uniform(size=(64, 3))]
    one = study([(v, height(v, FIRST) + 1e-3 * rng.standard_normal()) for v in values], budget=100)
    times = []
    for _ in range(3):
        start = time.process_time()
        configuration(one, 64)
        times.append(time.process_time() - start)
    assert min(times) < 1.0
