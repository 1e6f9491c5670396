"""What the model says of each parameter: influence, ranges, edges."""

import numpy as np
from search_studies import (
    DECAY,
    ETA,
    LR,
    MIXED,
    PUBLISHED,
    TMAX,
    Posterior,
    mixed,
    surface,
    synthetic,
)

from engine.search.report import effects, findings
from engine.search.space import Parameter


def test_values_are_rounded_to_what_their_range_can_tell_apart():
    narrow = Parameter("trainer.ema_decay", "float", 0.99, 0.9999)
    assert (effects.digits2(narrow, 0.99552), effects.digits2(narrow, 0.992512)) == (0.9955, 0.9925)
    wide = Parameter("lr", "float", 1e-5, 2e-4, "log")
    assert (effects.digits2(wide, 1.1234e-5), effects.digits2(wide, 1.96e-4)) == (1.1e-5, 2e-4)
    assert effects.digits2(Parameter("a", "float", -1.0, 1.0), 0.0) == 0.0


def test_influence_finds_the_parameter_that_matters(tmp_path):
    study = synthetic(tmp_path, 40)
    found = findings.find(study, Posterior(study))
    shares = {e.name: e.share[0] for e in found.effects}
    assert shares[LR] > 0.5 > 0.2 > shares[ETA]
    assert all(e.share[1] <= e.share[0] <= e.share[2] <= 1 for e in found.effects)
    for effect in found.effects:
        assert (effect.low <= effect.high).all()
        assert (np.diff(effect.units) > 0).all()
    tmax = next(e for e in found.effects if e.name == TMAX)
    assert sum(level.number for level in tmax.levels) == len(found.ranked)
    assert [level.value for level in tmax.levels] == [15, 18, 20, 25]


def test_ranges_hold_the_optimum_are_nested_and_shrink_to_the_truth(tmp_path):
    study = synthetic(tmp_path, 60)
    posterior = Posterior(study)
    found = findings.find(study, posterior)
    lr, decay, tmax, eta = found.ranges
    for item, parameter in zip(found.ranges, PUBLISHED.parameters, strict=True):
        assert parameter.contains(item.optimum)
        if parameter.kind == "ordinal":
            assert set(item.safe) <= set(item.wider)
        else:
            assert item.wider[0] <= item.safe[0] <= item.optimum <= item.safe[1] <= item.wider[1]
    top = {LR: 1e-4, DECAY: 4e-5, TMAX: 15, ETA: found.optimum[ETA]}
    for item in (lr, decay):
        for value in item.safe:  # truly safe, not only by the model
            assert surface(top) - surface({**top, item.name: value}) < 2 * found.noise.sd
    # the one without influence stays wide
    assert 1.5 * lr.wider[1] / lr.wider[0] < eta.wider[1] / eta.wider[0]
    assert 15 in tmax.safe
    assert 25 not in tmax.safe
    # Both ends of the safe range, the others as recommended, are expected to cost less than one noise sd.
    optimum = PUBLISHED.unit(found.optimum)
    for value in lr.safe:
        moved = optimum.copy()
        moved[0] = PUBLISHED.parameters[0].unit(value)
        loss = posterior.predict(optimum[None])[0] - posterior.predict(moved[None])[0]
        assert loss[0] < found.noise.sd


def test_minimised_metrics_and_choices(tmp_path):
    study = mixed(tmp_path)
    found = findings.find(study, Posterior(study))
    assert found.ranked[0].value == min(t.value for t in study.trials)
    lr, name, batch = found.ranges
    assert lr.safe[0] <= 1e-2 * 1.2
    assert lr.safe[1] >= 1e-2 / 1.2
    assert set(name.wider) <= {"adam", "adamw", "sgd"}
    assert isinstance(batch.optimum, int)
    assert [i for i, _ in found.incumbents] == [0, 1, 6]
    assert found.poor[0].gap > 0
    assert found.poor[0].reason.startswith("lr 1.81e-4 is at the low end of its range: the model expects -0.3")


def test_boundaries_are_warned_of():
    lr = Parameter(LR, "float", 1e-5, 1e-3, "log")
    assert effects.boundary(lr, 0.5) == ""
    assert "within 5 % of the upper bound 0.001" in effects.boundary(lr, 0.97)
    assert effects.boundary(lr, 1.0).endswith("widen it to 0.0032.")
    assert effects.boundary(lr, 0.0).endswith("widen it to 3.2e-6.")
    linear = Parameter("augment.hflip", "float", 0.2, 0.6)
    assert effects.boundary(linear, 1.0).endswith("widen it to 0.7.")
    tmax = PUBLISHED.parameters[2]
    assert effects.boundary(tmax, 0.0) == "T_max 15 is the smallest value that was searched: try smaller ones."
    assert effects.boundary(tmax, 0.36) == ""
    assert effects.boundary(MIXED.parameters[1], 0.0) == ""
