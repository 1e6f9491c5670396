"""What a study is said to have found: import of tables, gain and noise, influence, ranges, repeats, refined spaces."""

import dataclasses
import math
import re

import numpy as np
import pytest
from search_studies import (
    DECAY,
    ETA,
    LR,
    MIXED,
    PUBLISHED,
    TMAX,
    Posterior,
    mixed,
    published,
    repeated,
    surface,
    synthetic,
)

from engine.search import confirm, import_table, refine
from engine.search.model.surrogate import fitted
from engine.search.report import effects, findings, repeats, write
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial
from pipelines.errors import UserError

HEADER = "lr,weight_decay,T_max,eta_min,hmean,epochs"
ROW = "1e-4,4e-5,15,1e-5,0.97,15"


def read(tmp_path, *lines, space=PUBLISHED, metric="val/hmean"):
    path = tmp_path / "study.csv"
    path.write_text("\n".join(lines) + "\n")
    return import_table.read(path, space, metric)


# Tables


def test_the_published_rows(tmp_path):
    study = published(tmp_path)
    assert [t.name[-4:] for t in study.trials] == ["0748", "0251", "0927", "1403", "1858", "2037", "0132", "0311"]
    best = study.incumbent()
    assert (best.number, best.value, best.scores["recall"]) == (1, 0.97561, 0.97748)
    assert best.values == {LR: 9.98e-05, DECAY: 3.98e-05, TMAX: 15, ETA: 1.11e-05}
    assert [t.state for t in study.trials].count("stopped") == 4
    assert (study.max_epochs, study.budget, {t.kind for t in study.trials}) == (15, 8, {"imported"})


@pytest.mark.parametrize("title", ["hmean", "val/hmean", "Val H-mean", "H-mean", "val_hmean"])
def test_spellings_of_a_header(tmp_path, title):
    header = f"Run Name,LR,Weight Decay,T max,models.scheduler.eta_min,{title},Epochs,Test"
    (trial,) = read(tmp_path, header, "a,1e-4,4e-5,15,1e-5,0.97,15,0.9")
    assert (trial.value, trial.values[DECAY], trial.values[TMAX], trial.state) == (0.97, 4e-5, 15, "finished")


def test_states_follow_from_epochs_and_values_unless_given(tmp_path):
    trials = read(tmp_path, HEADER, ROW, "1e-4,4e-5,15,1e-5,0.96,5", "1e-4,4e-5,15,1e-5,,3")
    assert [t.state for t in trials] == ["finished", "stopped", "infeasible"]
    assert trials[2].value is None
    (trial,) = read(tmp_path, HEADER + ",state", ROW + ",stopped")
    assert trial.state == "stopped"


def test_a_column_order_sorts_and_numbers_count_from_zero(tmp_path):
    trials = read(tmp_path, "name,order," + HEADER, f"b,7,{ROW}", f"a,2,{ROW}")
    assert [(t.name, t.number) for t in trials] == [("a", 0), ("b", 1)]


def test_values_beyond_the_space_are_kept(tmp_path):
    (trial,) = read(tmp_path, HEADER, "1e-3,4e-5,12,1e-5,0.97,15")
    assert (trial.values[LR], trial.values[TMAX]) == (1e-3, 12)
    assert not PUBLISHED.contains(trial.values)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER.replace("eta_min", "eta")], "at least one row"),
        ([HEADER.replace("eta_min", "eta"), ROW], "no column models.scheduler.eta_min; the header has lr"),
        ([HEADER.replace("hmean", "f1"), ROW], "no column val/hmean"),
        ([HEADER + ",models.optimizer.lr", ROW + ",1e-4"], "lr and models.optimizer.lr mean the same"),
        ([HEADER, ROW, ROW.replace("1e-4", "fast")], "row 2: models.optimizer.lr fast is no number"),
        ([HEADER, ROW.replace("15,1e-5", ",1e-5")], "row 1: models.scheduler.T_max is empty"),
        ([HEADER, ROW, ROW + ",1"], "row 2 has 7 cells, the header 6"),
        ([HEADER, ROW.replace("0.97", "nan")], "row 1: val/hmean nan is not finite"),
        ([HEADER + ",state", ROW + ",crashed"], "row 1: state crashed is none of"),
        ([HEADER + ",state", ROW.replace("0.97", "") + ",finished"], "row 1: a finished trial needs a value"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(tmp_path, lines, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read(tmp_path, *lines)


def test_a_choice_is_checked_and_no_table_is_a_plain_error(tmp_path):
    with pytest.raises(UserError, match=r"row 1: models.optimizer.name lion is none of adam, adamw, sgd"):
        read(tmp_path, "lr,name,batch_size,loss", "1e-3,lion,4,0.3", space=MIXED, metric="val/loss")
    with pytest.raises(UserError, match="cannot be read"):
        import_table.read(tmp_path / "none.csv", PUBLISHED)
    (tmp_path / "sheet.csv").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        import_table.read(tmp_path / "sheet.csv", PUBLISHED)


def test_a_row_that_was_stopped_is_carried_on_with_its_uncertainty(tmp_path):
    study = published(tmp_path)
    for trial in study.trials:
        if trial.state == "finished":
            assert trial.estimate is None
            continue
        mean, sd = trial.estimate
        assert trial.value < mean < trial.value + 0.01
        assert 0.001 < sd < 0.006
    loss = read(tmp_path, HEADER, ROW, "1e-4,4e-5,15,1e-5,0.97,5")
    assert [t.state for t in loss] == ["finished", "stopped"]
    trials = import_table.read(tmp_path / "study.csv", PUBLISHED, goal="minimize")
    assert trials[1].estimate[0] < trials[1].value


# The published study


@pytest.mark.parametrize(
    "first",
    [
        {},
        {LR: 1e-4, DECAY: 4e-5, TMAX: 15, ETA: 1e-5},  # the presets hrnet_w44_1280 and hrnet_w44_1280_before
        {LR: 4.5e-4, DECAY: 6e-5, TMAX: 20, ETA: 8e-6},
    ],
    ids=["middle", "after", "before"],
)
def test_findings_of_the_published_rows_agree_with_the_published_ones(tmp_path, first):
    """T_max 15, lr 8e-5 to 1.5e-4, weight decay 3e-5 to 5e-5, eta_min 7e-6 to 1.2e-5, wherever the model starts."""
    study = published(tmp_path, first)
    found = findings.find(study, fitted(study), 0.9714)
    values = {item.name: item.optimum for item in found.ranges}
    told = {LR: (8e-5, 1.5e-4), DECAY: (3e-5, 5e-5), ETA: (7e-6, 1.2e-5)}
    assert values[TMAX] == 15
    for name, (low, high) in told.items():
        assert low <= values[name] <= high, name
    tmax = next(e for e in found.effects if e.name == TMAX)
    assert max(tmax.levels, key=lambda v: v.others_best).value == max(tmax.levels, key=lambda v: v.mean).value == 15
    # Safe ranges: they overlap the published ones and end within a factor 1.5 of them; 2.0 with a preset's prior.
    factor = 1.5 if not first else 2.0
    for item in found.ranges:
        if item.name == TMAX:
            assert item.safe == (15,)
            continue
        (low, high), (safe_low, safe_high) = told[item.name], item.safe
        assert safe_low < high
        assert safe_high > low
        assert low / factor <= safe_low <= low * factor, item
        assert high / factor <= safe_high <= high * factor, item
    assert found.gain.measured == pytest.approx(0.00421)
    assert 0.001 < found.gain.expected < found.gain.measured  # less than the luckiest value says


# Gain and noise


def test_gain_by_the_model_covers_the_truth(tmp_path):
    """Over 20 studies with noise 0.001 the 90 % interval holds the true gain of the chosen trial in at least 15."""
    inside = 0
    for seed in range(20):
        study = synthetic(tmp_path, 24, seed)
        posterior = Posterior(study)
        gain = findings.gain_of(study, posterior, findings.noise_of(study, posterior), None)
        best = next(t for t in study.trials if t.number == gain.trial)
        true = surface(best.values) - surface(study.trials[0].values)
        inside += gain.low <= true <= gain.high
    assert inside >= 15


def test_no_difference_is_shown_where_there_is_none(tmp_path):
    study = synthetic(tmp_path, 12)
    rng = np.random.default_rng(1)
    for trial in study.trials:
        trial.state, trial.estimate = "finished", None
        trial.value = 0.97 + 0.001 * rng.standard_normal()
    gain = findings.find(study, Posterior(study)).gain
    assert gain.measured > 0
    assert gain.verdict == "no difference shown"


def test_a_baseline_given_by_hand_and_one_that_is_missing(tmp_path):
    study = published(tmp_path)
    posterior = Posterior(study)
    assert findings.find(study, posterior).gain is None
    gain = findings.find(study, posterior, 0.9714).gain
    assert gain.measured == pytest.approx(0.00421)
    assert gain.low < gain.expected < gain.high < 0.01
    assert "The baseline configuration is not among the trials" in " ".join(findings.find(study, posterior).limits)


def test_without_a_model_no_gain_is_claimed(tmp_path):
    study = synthetic(tmp_path, 4)
    study.trials[1].value = 0.99
    found = findings.find(study, fitted(study))
    assert (found.gain.verdict, found.effects, found.ranges, found.optimum) == ("unknown", [], [], None)
    assert "no influence can be estimated; that takes 5 configurations" in " ".join(found.limits)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_is_concluded_from_nothing(tmp_path, count):
    found = findings.find(synthetic(tmp_path, count), None)
    assert found.effects == found.ranges == found.shared == found.boundaries == []
    assert found.limits


def test_noise_comes_from_repeats_once_there_are_enough(tmp_path):
    study = repeated(synthetic(tmp_path, 12), [4])
    assert "model" in findings.noise_of(study, Posterior(study)).source
    study = repeated(synthetic(tmp_path, 12), [0, 4, 5])
    noise = findings.noise_of(study, None)
    import_table = np.array([t.value for t in study.trials[12:]]).reshape(3, 3)
    residual = import_table - import_table.mean(0) - import_table.mean(1)[:, None] + import_table.mean()
    assert noise.sd == pytest.approx(math.sqrt((residual**2).sum() / 4))
    assert "repeats" in noise.source


# Repeats


def test_the_chosen_are_the_best_two_and_the_baseline(tmp_path):
    study = synthetic(tmp_path, 12)
    posterior = Posterior(study)
    trials = confirm.chosen(study, posterior)
    heights = {t.number: posterior.predict(PUBLISHED.unit(t.values)[None])[0][0] for t in study.measured}
    assert [t.number for t in trials] == [*sorted(heights, key=heights.get)[:-3:-1], 0]
    study.trials[0].value = 0.99  # now the baseline is itself among the best
    assert [t.number for t in confirm.chosen(study, Posterior(study))].count(0) == 1
    assert confirm.chosen(synthetic(tmp_path, 0), None) == []


def test_the_gain_of_repeats_is_paired_by_seed(tmp_path):
    study = synthetic(tmp_path, 12)
    luck = {1: 0.004, 2: -0.003, 3: 0.001}  # the same for both configurations: pairing takes it out
    for number, level in ((0, 0.967), (4, 0.973)):
        for seed, shift in luck.items():
            extra = 0.0002 * (seed - 2) * (number == 4)
            trial = Trial(len(study.trials), study.trials[number].values, "confirm", seed, number, "finished")
            trial.value = level + shift + extra
            study.trials.append(trial)
    best, base = repeats.statistics(study)
    assert (best.number, base.number, base.gain) == (4, 0, None)
    half = 2.919986 * 0.0002 / math.sqrt(3)  # Student's t, 2 degrees of freedom, 95 %
    assert (best.gain, best.low, best.high) == pytest.approx((0.006, 0.006 - half, 0.006 + half))
    assert best.sd == pytest.approx(np.std([luck[1] - 0.0002, luck[2], luck[3] + 0.0002], ddof=1))
    assert repeats.recommended(study) == 4
    assert findings.find(study, None).gain.verdict == "shown"


def test_the_baseline_stays_when_the_repeats_show_no_gain(tmp_path):
    study = synthetic(tmp_path, 12)
    for number, values in ((0, (0.970, 0.968, 0.972)), (4, (0.975, 0.967, 0.971))):
        for seed, value in enumerate(values, 1):
            trial = Trial(len(study.trials), study.trials[number].values, "confirm", seed, number, "finished")
            trial.value = value
            study.trials.append(trial)
    study.trials[-1].state, study.trials[-1].value = "infeasible", None
    best = repeats.statistics(study)[0]
    assert (best.number, best.failed, len(best.values)) == (4, 1, 2)
    assert best.low < 0 < best.high
    assert repeats.recommended(study) == 0


def test_repeats_that_are_all_worse_than_the_baselines_are_called_a_loss(tmp_path):
    """A search on receipts: its winner lost 0.0027 in both repeats, and the report said that no difference is shown."""
    study = synthetic(tmp_path, 12)
    for number, values in ((0, (0.91575, 0.89947)), (4, (0.91277, 0.89712))):
        for seed, value in enumerate(values, 1):
            trial = Trial(len(study.trials), study.trials[number].values, "confirm", seed, number, "finished")
            trial.value = value
            study.trials.append(trial)
    gain = findings.find(study, None).gain
    assert (gain.verdict, gain.trial) == ("a loss", 4) and gain.high < 0
    assert repeats.recommended(study) == 0
    assert "no gain, the baseline is better" in write.write(study).with_suffix(".md").read_text()


def test_the_noise_of_repeats_leaves_out_what_a_seed_does_to_all(tmp_path):
    study = synthetic(tmp_path, 12)
    for number, level in ((0, 0.967), (4, 0.973), (5, 0.970)):
        for seed, luck in ((1, 0.02), (2, -0.02), (3, 0.0)):
            trial = Trial(len(study.trials), study.trials[number].values, "confirm", seed, number, "finished")
            trial.value = level + luck + 0.001 * ((number + seed) % 2)
            study.trials.append(trial)
    sd, degrees = repeats.pooled_noise(study)
    assert degrees == 4 and 0.0002 < sd < 0.001


def test_values_are_rounded_to_what_their_range_can_tell_apart():
    narrow = Parameter("trainer.ema_decay", "float", 0.99, 0.9999)
    assert (effects.digits2(narrow, 0.99552), effects.digits2(narrow, 0.992512)) == (0.9955, 0.9925)
    wide = Parameter("lr", "float", 1e-5, 2e-4, "log")
    assert (effects.digits2(wide, 1.1234e-5), effects.digits2(wide, 1.96e-4)) == (1.1e-5, 2e-4)
    assert effects.digits2(Parameter("a", "float", -1.0, 1.0), 0.0) == 0.0


# Influence, ranges, reasons


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


def test_reasons_name_the_parameter_and_failures_their_error(tmp_path):
    study = synthetic(tmp_path, 40)
    found = findings.find(study, Posterior(study))
    failed = [p for p in found.poor if p.gap is None]
    assert [(p.trial.number, p.reason) for p in failed] == [(5, "the loss is nan at step 17")]
    assert found.infeasible == (1, 40)
    worst = next(p for p in found.poor if p.gap is not None)
    assert worst.reason.startswith("lr ")
    assert "low end" in worst.reason


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


def test_what_the_best_three_share(tmp_path):
    shared = {item.name: item for item in findings.shared_by_best(published(tmp_path))}
    assert shared[TMAX].values == (15, 15, 15)
    assert shared[TMAX].chance == pytest.approx(4 / 56)  # four rows have 15; of 56 triples 4 agree
    assert shared[LR].centre == pytest.approx(1.103e-4, rel=1e-3)  # geometric; the published mean is 1.12e-4
    assert findings.shared_by_best(synthetic(tmp_path, 4)) == []


def test_economy_counts_what_stopping_saved(tmp_path):
    economy = findings.economy_of(published(tmp_path))
    assert (economy.trials, economy.stopped, economy.epochs, economy.whole) == (8, 4, 79, 119)
    assert findings.economy_of(synthetic(tmp_path, 0)) is None


def test_agents_that_knew_nothing_of_each_other_are_named(tmp_path):
    study = synthetic(tmp_path, 12)
    study.agents = 12
    assert "no trial was chosen knowing another's result" in " ".join(findings.limits_of(study, Posterior(study)))


# Refinement


def test_a_refined_space_lies_around_the_optimum(tmp_path):
    study = synthetic(tmp_path, 60)
    posterior = Posterior(study)
    space, first, kept = refine.refined(study, posterior)
    assert space.contains(first)
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
    assert space.contains(first)


def test_trials_beyond_a_space_keep_their_distance():
    narrow = Space((Parameter(LR, "float", 5e-5, 2e-4, "log"), Parameter(TMAX, "ordinal", values=(15, 18))))
    units = narrow.coordinates({LR: 2.5e-5, TMAX: 20})
    assert units == pytest.approx([-0.5, math.log(20 / 15) / math.log(18 / 15)])
    assert narrow.coordinates({LR: 1e-4, TMAX: 15}) == pytest.approx(narrow.unit({LR: 1e-4, TMAX: 15}))
    choice = Parameter("a", "choice", values=("x", "y"))
    with pytest.raises(UserError):
        choice.coordinate("z")


def test_a_study_without_any_value_has_findings(tmp_path):
    trials = [Trial(n, {LR: 1e-4, DECAY: 4e-5, TMAX: 15, ETA: 1e-5}, "model", 0, state="infeasible") for n in range(3)]
    study = Study(tmp_path, "failed", PUBLISHED, trials=trials)
    found = findings.find(study, fitted(study))
    assert found.infeasible == (3, 3)
    assert (found.ranked, found.gain) == ([], None)
    assert found.poor[0].reason == "no reason was recorded"
