"""Which configurations are repeated, and with which seeds."""

import dataclasses

from search_studies import (
    PUBLISHED,
    Posterior,
    synthetic,
)

from engine.search import ask, ledger
from engine.search.model import surrogate
from engine.search.study import Confirmation, Study
from tests.engine.search.conftest import asks, run


def test_confirming_takes_the_same_new_seeds_for_each(place, monkeypatch):
    asks(monkeypatch, {"lr": 1e-4, "T_max": 15}, {"lr": 5e-5, "T_max": 15}, {"lr": 2e-5, "T_max": 15})
    monkeypatch.setattr(ask, "unmeasured", lambda study: None)  # what the model recommends is among the three
    monkeypatch.setattr(ask, "chosen", lambda study, posterior: [study.trials[k] for k in (1, 2, 0)])
    study, _, _ = run(place, "quadratic", budget=3, confirmation=Confirmation(2))
    extra = [(trial.repeats, trial.seed, trial.kind, trial.state) for trial in study.trials[3:]]
    assert extra == [(n, seed, "confirm", "finished") for seed in (1, 2) for n in (1, 2, 0)]
    assert all(trial.values == study.trials[trial.repeats].values for trial in study.trials[3:])
    monkeypatch.setattr(ask, "chosen", lambda study, posterior: [study.trials[2]])  # the choice stands
    again = ledger.Ledger(study.folder)
    more = dataclasses.replace(again.study.confirmation, seeds=3)
    again.append(**ledger.extend_event(again.study, confirmation=more))
    assert [(event["repeats"], event["seed"]) for event in ask.confirming(again)] == [(1, 3), (2, 3), (0, 3)]
    again.close()


def test_what_the_model_recommends_is_measured_before_repeats_are_chosen(place):
    study, _, _ = run(place, "quadratic", budget=4, confirmation=Confirmation(1))
    assert [trial.kind for trial in study.trials[:5]] == ["preset", "model", "model", "model", "recommended"]
    before = Study(**{**vars(study), "trials": study.trials[:4]})
    assert study.trials[4].values == surrogate.fit(before).best()
    assert study.trials[4].state == "finished" and len(study.searched) == 4
    assert {trial.kind for trial in study.trials[5:]} == {"confirm"} and len(study.trials) in (7, 8)


def test_the_chosen_are_the_best_two_and_the_baseline(tmp_path):
    study = synthetic(tmp_path, 12)
    posterior = Posterior(study)
    trials = ask.chosen(study, posterior)
    heights = {t.number: posterior.predict(PUBLISHED.unit(t.values)[None])[0][0] for t in study.measured}
    assert [t.number for t in trials] == [*sorted(heights, key=heights.get)[:-3:-1], 0]
    study.trials[0].value = 0.99  # now the baseline is itself among the best
    assert [t.number for t in ask.chosen(study, Posterior(study))].count(0) == 1
    assert ask.chosen(synthetic(tmp_path, 0), None) == []
