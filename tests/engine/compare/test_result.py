"""compare.result: what is said of planted and absent differences."""

import json

import numpy as np
import pytest

from engine.compare import report, result
from engine.compare.plan import SCHEDULE
from tests.engine.compare.conftest import WORDS, study_of


def test_a_planted_difference_is_found_and_named(tmp_path):
    luck = np.random.default_rng(2)
    effect = {"cosine": 0.0, "onecycle": 0.012, "poly": 0.0}
    seeds = {seed: luck.normal(0, 0.01) for seed in range(5)}  # a seed does more than the schedule, to all alike

    def value(values, seed, epoch):
        return 0.95 - 0.1 * 2.0**-epoch + effect[values[SCHEDULE]] + seeds[seed] + luck.normal(0, 0.002)

    found = result.find(study_of(tmp_path, value))
    (family,) = found.families
    assert {(p.first, p.second) for p in family.shown} == {("onecycle", "cosine"), ("onecycle", "poly")}
    assert [p.difference for p in family.shown] == pytest.approx([0.012] * 2, abs=0.004) and found.differs
    plain, path = report.write(found.study)
    text = (tmp_path / "report.md").read_text()
    assert "onecycle is better than cosine" in text and "no difference shown" not in text
    assert json.loads((tmp_path / "comparison.json").read_text())["difference_shown"] and plain["difference_shown"]
    page = path.read_text()
    assert "data:image/png" in page and "<script" not in page and "http" not in page.split("</style>")[1]


def test_no_difference_is_said_to_be_none_with_what_could_have_been_seen(tmp_path):
    luck = np.random.default_rng(3)
    study = study_of(tmp_path, lambda v, s, e: 0.95 + luck.normal(0, 0.003), WORDS)
    found = result.find(study)
    assert [family.name for family in found.families] == ["schedules", "warm-ups", "combinations"]
    assert [family.repeats for family in found.families] == [6, 9, 3] and not found.differs
    plain, _ = report.write(study)
    assert all("no difference shown" in family["verdict"] for family in plain["families"])
    assert all("4 of 5" in family["verdict"] for family in plain["families"])
    assert 0.002 < plain["families"][0]["detectable"] < plain["families"][2]["detectable"] < 0.03
    assert "no difference shown" in report.text_of(plain)
    # averaging 9 trainings a warm-up tells more than 3 a combination, as the mean's sd has it
    assert found.families[1].detectable < found.families[0].detectable


def test_the_best_epoch_flatters_a_noisy_curve_the_last_does_not(tmp_path):
    luck = np.random.default_rng(2)
    sd = {"cosine": 0.0005, "constant": 0.01}
    words = ("schedules=cosine,constant", "seeds=8")
    study = study_of(tmp_path, lambda v, s, e: 0.95 + luck.normal(0, sd[v[SCHEDULE]]), words, epochs=20)
    found = result.find(study)
    assert not found.differs and found.by_best[0].shown[0].first == "constant" and not result.same_by_best(found)
    lines = " ".join(report.verdict_lines(found))
    assert "show: constant over cosine" in lines


def test_a_training_that_failed_takes_its_combination_out_of_the_comparison(tmp_path):
    study = study_of(tmp_path, lambda v, s, e: 0.9 + 0.001 * s, WORDS)
    lost = next(trial for trial in study.trials if trial.values[SCHEDULE] == "poly")
    lost.state, lost.reason, lost.value = "infeasible", "the loss is nan at step 17", None
    found = result.find(study)
    assert [family.name for family in found.families] == ["combinations"] and len(found.families[0].levels) == 5
    assert "1 of 3 trainings gave no value" in found.left_out[0] and "averaged" in found.left_out[1]
    report.write(study)
    assert "the loss is nan at step 17" in (tmp_path / "report.md").read_text()


def test_values_without_any_noise(tmp_path):
    """Equal to the last bit: no division by zero, and no difference; a difference without noise is one."""
    same = result.find(study_of(tmp_path / "a", lambda v, s, e: 0.9))
    assert [pair.p for pair in same.families[0].pairs] == [1.0, 1.0, 1.0]
    other = result.find(study_of(tmp_path / "b", lambda v, s, e: 0.9 + (v[SCHEDULE] == "poly")))
    assert {pair.first for pair in other.families[0].shown} == {"poly"}
