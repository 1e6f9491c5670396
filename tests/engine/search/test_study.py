"""What a study knows of its trials."""

from pathlib import Path

import pytest

from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial, untried

T_MAX = Space((Parameter("T_max", "ordinal", values=(15, 18, 20)),))


def study(*trials: Trial, **fields) -> Study:
    return Study(Path("s"), "s", T_MAX, first={"T_max": 15}, trials=list(trials), **fields)


def test_the_incumbent_is_measured_and_no_repeat():
    known = [
        Trial(0, {"T_max": 15}, "preset", 0, state="finished", value=0.9),
        Trial(1, {"T_max": 18}, "model", 0, state="stopped", value=0.8, estimate=(0.95, 0.01)),
        Trial(2, {"T_max": 20}, "model", 0, state="running", value=0.99),
        Trial(3, {"T_max": 15}, "confirm", 1, 0, state="finished", value=0.98),
    ]
    assert study(*known).incumbent() is known[0] and study(*known, goal="minimize").incumbent() is known[1]
    assert study(*known).measured == known[:2] and [trial.reached for trial in known[:2]] == [0.9, 0.95]
    assert study().incumbent() is None


def test_the_baseline_is_the_preset_or_a_trial_with_its_values():
    other = Trial(0, {"T_max": 18}, "model", 0)
    same = Trial(1, {"T_max": 15}, "imported", 0, epochs=9)
    preset = Trial(2, {"T_max": 20}, "preset", 0)
    assert study(other, same).baseline() is same and study(other, same, preset).baseline() is preset
    assert study(other).baseline() is None
    assert [study(other, same, max_epochs=5).whole_epochs(trial) for trial in (other, same)] == [5, 9]


@pytest.mark.parametrize(("tried", "left"), [((), 3), ((15, 15), 2), ((15, 99), 2)])
def test_what_is_left_of_a_small_space(tried, left):
    trials = [Trial(number, {"T_max": value}, "model", 0) for number, value in enumerate(tried)]
    assert untried(T_MAX, trials) == left
    assert untried(Space((Parameter("x", "float"),)), trials) == float("inf")
