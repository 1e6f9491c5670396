"""Schedules compared: what is planned, what is said of planted and absent differences, and that no kill loses anything.

Objectives of `search_objective.py` take the place of trainings, each in a process of its own.
"""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from engine.compare import plan, report, result, verdict
from engine.compare.__main__ import main
from engine.compare.plan import LR, SCHEDULE, WARMUP
from engine.search import ledger
from engine.search.__main__ import main as search_main
from engine.search.study import Trial
from pipelines.errors import UserError
from tests.conftest import ROOT, SUPPORT

WORDS = ["schedules=cosine,onecycle,poly", "warmup=0,1", "seeds=3"]
SMALL = ["preset=demo", "trainer.max_epochs=4"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where objectives can be imported by the attempts."""
    monkeypatch.chdir(SUPPORT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def study_of(folder, value, words=("schedules=cosine,onecycle,poly", "seeds=5"), epochs=4):
    """A finished study: `value(values, seed, epoch)` is what each training measured."""
    study = plan.study_of(plan.request(words, "x:y"), folder, 1, {"executor": "local"}, "x:y")
    for trial in study.trials:
        trial.curve = [(epoch, float(value(trial.values, trial.seed, epoch))) for epoch in range(1, epochs + 1)]
        trial.value, trial.state, trial.epochs = max(v for _, v in trial.curve), "finished", epochs
    return study


# ---- statistics


def test_tukeys_worked_example():
    """The figures of the module's docstring, and a two-level family is a t test."""
    noise = verdict.Noise(1e-6, 8)
    found = verdict.compare("schedules", ["a", "b", "c"], np.array([0.9, 0.903, 0.9025]), 5, noise, 1)
    assert found.width == pytest.approx(4.041 * math.sqrt(1e-6 / 5), rel=1e-3)
    assert found.detectable == pytest.approx(0.00237, rel=2e-3)
    assert [(p.first, p.second, p.shown) for p in found.pairs] == [
        ("b", "a", True),
        ("c", "a", True),
        ("b", "c", False),
    ]
    two = verdict.compare("schedules", ["a", "b"], np.array([0.9, 0.901]), 5, noise, 1)
    t = 0.001 / math.sqrt(2 * 1e-6 / 5)
    assert two.pairs[0].p == pytest.approx(2 * verdict.t.sf(t, 8), rel=1e-6)


def test_noise_is_what_combinations_and_seeds_do_not_explain():
    rng = np.random.default_rng(0)
    rest = rng.standard_normal((4, 6))
    seeds, levels = 100 * rng.standard_normal((1, 6)), 10 * rng.standard_normal((4, 1))
    assert verdict.noise_of(rest + seeds + levels).mse == pytest.approx(verdict.noise_of(rest).mse)
    many = [verdict.noise_of(rng.standard_normal((4, 6))).mse for _ in range(400)]
    assert np.mean(many) == pytest.approx(1.0, abs=0.05) and verdict.noise_of(rest).df == 15
    assert verdict.noise_of(seeds + levels).mse == 0.0  # rounding is no noise


def test_luck_is_called_a_difference_in_five_of_a_hundred_and_a_detectable_one_found_in_four_of_five():
    rng = np.random.default_rng(1)
    noise = verdict.noise_of(rng.standard_normal((6, 3)))
    one = verdict.compare("", list("abcdef"), np.zeros(6), 3, verdict.Noise(1.0, noise.df), 1)
    wrong = found = 0
    for _ in range(1500):
        values = rng.standard_normal((6, 3)) + 5 * rng.standard_normal((1, 3))
        limit = one.width * math.sqrt(verdict.noise_of(values).mse)
        wrong += np.ptp(values.mean(1)) > limit
        values[0] += one.detectable
        found += values[0].mean() - values[1].mean() > limit
    assert 0.035 < wrong / 1500 < 0.07
    assert 0.72 < found / 1500 < 0.85


# ---- what is said


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


def test_spreads_that_differ_are_said_wherever_the_verdict_is(tmp_path):
    luck = np.random.default_rng(4)
    sd = {"cosine": 0.001, "onecycle": 0.001, "poly": 0.03}
    plain, _ = report.write(study_of(tmp_path, lambda v, s, e: 0.9 + luck.normal(0, sd[v[SCHEDULE]])))
    assert len(plain["cautions"]) == 1 and plain["cautions"][0] in report.text_of(plain)
    assert plain["cautions"][0] in (tmp_path / "report.md").read_text()


def test_more_schedules_than_colours_are_drawn(tmp_path):
    """Functions (--objective) name schedules as they like."""
    study = study_of(tmp_path, lambda v, s, e: 0.9 + 0.001 * s, ("schedules=a,b,c,d,e,f", "seeds=2"))
    report.write(study)
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 10_000


# ---- plan


def test_every_combination_is_trained_with_every_seed_and_whole_seeds_come_first(tmp_path):
    asked = plan.request([*SMALL, "schedules=cosine,poly", "warmup=0,0.5", "lrs=1e-3,4e-3", "seeds=4,9"])
    study = plan.study_of(asked, tmp_path, 1, {"executor": "local"})
    wanted = set(itertools.product(("cosine", "poly"), (0, 0.5), (1e-3, 4e-3), (4, 9)))
    assert {(*trial.values.values(), trial.seed) for trial in study.trials} == wanted and study.budget == 16
    assert [trial.seed for trial in study.trials] == [4] * 8 + [9] * 8
    assert list(study.trials[0].values) == [SCHEDULE, WARMUP, LR] and study.early_stop == {"type": "none"}
    assert study.max_epochs == 4 and "models.scheduler.T_max=4" in study.arguments  # as long as the others
    again = report._again(result.Result(study, 4, [4, 9], [], [], [], []))
    assert plan.request(again.split()[3:]) == plan.Request(asked.axes, [4, 9], asked.settings, again_notices(asked))


def again_notices(asked: plan.Request) -> list[str]:
    """Those of a request whose T_max is written out."""
    return [line for line in asked.notices if "cosine runs with T_max" not in line]


def test_a_T_max_that_is_given_stays(tmp_path):
    asked = plan.request([*SMALL, "models.scheduler.T_max=3"])
    assert [item for item in asked.settings if "T_max" in item] == ["models.scheduler.T_max=3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["schedules=cosine,step"], "models.scheduler.name"),
        (["schedules=cosine"], "nothing to be compared"),
        (["schedules=cosine,cosine"], "different values"),
        (["schedules=cosine,"], "different values"),
        (["seeds=1"], "2 or more"),
        (["seeds=a"], "expected how many"),
        (["seeds=-3"], "expected how many"),
        (["seeds=1,1"], "different values"),
        (["seeds=99999999"], "more than 10000"),
        (["warmup=x"], "expected numbers"),
        (["warmup=0,nan"], "expected different numbers"),
        (["warmup=0,4"], "take a shorter one"),
        (["warmup=0,-1"], "models.scheduler.warmup_epochs"),
        (["lrs=1e-3,-1"], "models.optimizer.lr"),
        (["lrs=1e-3,2e-3", "models.optimizer.lr=1e-3"], "use lrs="),
        (["models.scheduler.name=poly"], "use schedules="),
        (["seed=3"], "use seeds="),
        (["name=x"], "--out"),
        (["warmup=0", "warmup=1"], "given twice"),
        (["nonsense"], "key=value"),
        (["trainer.epochs=3"], "trainer.epochs"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(words, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        main([*SMALL, *words, "--out", str(tmp_path / "c")])
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--agents", "0", *SMALL], "--agents 0"),
        (["--resume"], "need --out"),
        (["--resume", "--out", "nowhere"], "no study"),
        (["--nonsense"], "--help"),
        (["--objective", "x:y", "preset=demo"], "no settings"),
    ],
)
def test_flags_that_cannot_be(flags, said):
    with pytest.raises(UserError, match=said):
        main(flags)


# ---- trainings, in processes of their own


def test_a_comparison_runs_to_its_end_grows_by_seeds_and_is_no_search(place, capsys):
    out = str(place / "c")
    flags = ["--out", out, "--agents", "2", "--json", "--objective", "search_objective:scheduled"]
    assert main(["schedules=cosine,poly", "seeds=2", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["label"] for c in found["combinations"]] == ["cosine", "poly"] and found["seeds"] == [0, 1]
    assert found["combinations"][0]["final"]["by_seed"]["1"] > found["combinations"][1]["final"]["by_seed"]["1"]
    with pytest.raises(UserError, match="exists already"):
        main(["schedules=cosine,poly", *flags])
    with pytest.raises(UserError, match="is a comparison"):
        search_main(["--resume", out])
    with pytest.raises(UserError, match="keeps its own settings"):
        main(["--resume", "--out", out, "warmup=0,1"])
    before = (place / "c" / ledger.FILE).read_bytes()
    assert main(["--resume", "--out", out, "seeds=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [0, 1, 2] and (place / "c" / ledger.FILE).read_bytes().startswith(before)
    assert "Seeds were added after 4 trainings" in (place / "c" / "report.md").read_text()
    assert "Seeds were added after 4 trainings" in found["cautions"][0]
    assert [trial.attempts for trial in ledger.read(place / "c").trials] == [1] * 6


def test_a_killed_comparison_goes_on_and_trains_nothing_twice(place):
    """SIGKILL of the command, and of one of its trainings: the second run ends what is left."""
    command = [sys.executable, "-m", "engine.compare", "schedules=cosine,poly", "seeds=2", "--out", str(place / "c")]
    environment = {**os.environ, "SEARCH_TEST_SLEEP": "0.15"}
    first = subprocess.Popen(
        [*command, "--objective", "search_objective:scheduled"], env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if (place / "c" / ledger.FILE).exists() and ledger.read(place / "c").trials[1].curve:
            break
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    cut = ledger.read(place / "c")
    assert main(["--report", "--out", str(place / "c")]) == 0
    assert "nothing can be told from luck yet" in (place / "c" / "report.md").read_text()
    assert cut.trials[0].state == "finished" and cut.trials[1].state == "running"
    assert main(["--resume", "--out", str(place / "c")]) == 0
    study = ledger.read(place / "c")
    assert [trial.state for trial in study.trials] == ["finished"] * 4
    assert [trial.attempts for trial in study.trials] == [1, 2, 1, 1]
    assert (place / "c" / "report.html").exists()


def test_a_comparison_in_which_nothing_trains_ends_with_the_reason(place, monkeypatch):
    monkeypatch.setenv("SEARCH_TEST_MODE", "crash")
    monkeypatch.setenv("SEARCH_TEST_AT", "1")
    flags = ["--out", str(place / "c"), "--agents", "2", "--objective", "search_objective:bowl"]
    with pytest.raises(UserError, match="this configuration crashes"):
        main(["schedules=cosine,poly", "seeds=2", *flags])


def test_the_trainings_of_a_dry_run_are_listed_and_nothing_is_made(tmp_path, capsys, monkeypatch):
    from engine.compare import __main__ as entry

    monkeypatch.setattr(entry, "minutes_each", lambda study, gpus: 1.5)
    assert main([*SMALL, "seeds=2", "--out", str(tmp_path / "c"), "--dry-run", "--agents", "3"]) == 0
    out = capsys.readouterr().out
    assert sum("engine.train" in line for line in out.splitlines()) == 6 and "1.5 minutes a training, 3 in all" in out
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_real_trainings_are_compared_and_their_rates_drawn(tmp_path, tiny, capsys):
    """Four tiny trainings, the estimate before them, and the learning rates in the picture as they were."""
    words = [*tiny, "schedules=cosine,constant", "seeds=2", "--out", str(tmp_path / "c")]
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["minutes_each"] > 0.01  # 9 minutes on a machine with a load of 30
    assert main(words) == 0
    found = result.find(ledger.read(tmp_path / "c"))
    from engine.compare.figures import rates_of

    cosine, constant = (rates_of(found, cell) for cell in found.cells)
    assert len(cosine) == 8 and {lr for _, lr in constant} == {4e-3} and cosine[0][1] == 4e-3 > cosine[-1][1]
    assert (tmp_path / "c" / "figures" / "curves.png").stat().st_size > 10_000
    assert isinstance(found.cells[0].trials[0], Trial)
