"""A narrower search: around the optimum, never too narrow, with what is known."""

import dataclasses

import numpy as np
import pytest
from search_studies import (
    DECAY,
    ETA,
    LR,
    PUBLISHED,
    TMAX,
    Posterior,
    inside,
    mixed,
    repeated,
    synthetic,
)

from engine.search import refine
from pipelines.errors import UserError


def test_a_refined_space_lies_around_the_optimum(tmp_path):
    study = synthetic(tmp_path, 60)
    posterior = Posterior(study)
    space, first, kept = refine.refined(study, posterior)
    assert inside(space, first)
    for old, new in zip(PUBLISHED.parameters, space.parameters, strict=True):
        if old.kind == "ordinal":
            assert 2 <= len(new.values) <= len(old.values)
            continue
        assert old.low <= new.low < new.high <= old.high
        assert old.unit(new.high) - old.unit(new.low) >= refine.LEAST * 0.9  # bounds have 2 digits
        assert new.low <= first[old.name] <= new.high
    lr = space.parameters[0]
    assert lr.high / lr.low < 8  # of 20
    assert len(kept) == len(study.trials)
    assert {t.kind for t in kept} == {"imported"}
    assert [t.number for t in kept] == list(range(len(kept)))


def test_an_optimum_at_the_edge_keeps_an_eighth_and_few_trials_are_refused(tmp_path):
    study = synthetic(tmp_path, 40)
    edge = study.space.unit({LR: 2e-4, DECAY: 4e-5, TMAX: 25, ETA: 2.2e-6})

    class Peak:
        noise_sd = 0.001

        def best(self):
            return study.space.values(edge)

        def predict(self, units):
            return 0.97 - 10 * ((np.asarray(units) - edge) ** 2).sum(1), np.zeros(len(units))

        def sample(self, units, draws, seed):
            return np.repeat(self.predict(units)[0][None], draws, axis=0)

    space = refine.refined_space(study, Peak())
    lr, _, tmax, eta = space.parameters
    assert lr.high == 2e-4
    assert lr.low == pytest.approx(2e-4 / 20**0.125, rel=0.02)
    assert (eta.low, eta.high) == (2.2e-6, pytest.approx(2.2e-6 * (4.5 / 0.22) ** 0.125, rel=0.03))
    assert tmax.values == (20, 25)
    with pytest.raises(UserError, match="too few trials"):
        refine.refined(study, None)


def test_failed_trials_go_along_and_keep_the_narrow_search_away(tmp_path):
    study = synthetic(tmp_path, 12)
    (failed,) = [trial for trial in study.trials if trial.state == "infeasible"]
    waiting = dataclasses.replace(failed, number=len(study.trials), state="asked")
    study = repeated(study, [0])
    study.trials.append(dataclasses.replace(failed, kind="confirm", repeats=0))
    study.trials.append(waiting)
    kept = refine.kept_trials(study, study.space)
    assert [t.number for t in kept] == list(range(12)) and {t.kind for t in kept} == {"imported"}
    (known,) = [trial for trial in kept if trial.state == "infeasible"]
    assert (known.values, known.reason, known.value) == (failed.values, failed.reason, None)


def test_whole_numbers_and_steps_keep_two_values(tmp_path):
    study = mixed(tmp_path)
    space, first, _ = refine.refined(study, Posterior(study))
    batch = space.parameters[2]
    assert batch.kind == "int"
    assert batch.high - batch.low >= 2
    assert inside(space, first)
