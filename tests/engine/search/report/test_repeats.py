"""What repeats with other seeds say: paired gains, and the noise between trainings."""

import math

import numpy as np
import pytest
from search_studies import (
    synthetic,
)

from engine.search.model.surrogate import fitted
from engine.search.report import findings, repeats, write
from engine.search.study import Trial


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
    assert "no gain, the baseline is better" in write.write(study, fitted(study)).with_suffix(".md").read_text()


def test_the_noise_of_repeats_leaves_out_what_a_seed_does_to_all(tmp_path):
    study = synthetic(tmp_path, 12)
    for number, level in ((0, 0.967), (4, 0.973), (5, 0.970)):
        for seed, luck in ((1, 0.02), (2, -0.02), (3, 0.0)):
            trial = Trial(len(study.trials), study.trials[number].values, "confirm", seed, number, "finished")
            trial.value = level + luck + 0.001 * ((number + seed) % 2)
            study.trials.append(trial)
    sd, degrees = repeats.pooled_noise(study)
    assert degrees == 4 and 0.0002 < sd < 0.001
