"""From a command line to a study: its space, its start, its budget, and what is refused before anything exists."""

import contextlib
import dataclasses
import json
import time
from pathlib import Path

import pytest

from engine.search import ledger, options, plan, trials
from engine.search.model import stopping, surrogate
from engine.search.space import Parameter, Space, size
from engine.search.study import Confirmation, Runner, Study
from pipelines.errors import UserError
from tests.engine.search.conftest import LR, SWEEP, message, study_of, sweep_file


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("  models.optimizer.lr: {min: 1e-5, max: 200.0}\n", ["models.optimizer.lr", "0 to 100"]),
        ("  models.scheduler.T_max: {min: 15.0, max: 25.5}\n", ["models.scheduler.T_max", "whole number"]),
        ("  models.scheduler.T_max: {values: [15, 20.5]}\n", ["models.scheduler.T_max=20.5", "a whole number"]),
        ("  loss.mode: {values: [paper, papre]}\n", ["loss.mode=papre", "paper, baseline"]),
        ("  models.optimiser.lr: {min: 1e-5, max: 1e-4}\n", ["did you mean models.optimizer.lr?"]),
        ("  loss.thresh_min: {min: 0.2, max: 0.8}\n", ["loss.thresh_min=0.8", "loss.thresh_max"]),
        ("  data.batch_size: {values: [1, 2]}\n  name: {values: [a, b]}\n", ["name"]),
    ],
)
def test_a_space_that_a_training_would_refuse_is_refused_before(here, parameters, words):
    path = sweep_file(here, parameters)
    text = message("--sweep", path, "preset=demo")
    assert [word for word in words if word not in text] == [], text
    assert [item.name for item in here.iterdir()] == ["sweep.yaml"]


def test_a_metric_that_no_training_has(here):
    head = SWEEP.replace("val/hmean", "val/f1")
    assert "metric val/f1" in message("--sweep", sweep_file(here, LR, head), "preset=demo")


def test_the_default_space_and_the_presets_own_values():
    study, notices = study_of()
    assert study.space.names == (
        "models.optimizer.lr", "models.optimizer.weight_decay", "models.scheduler.T_max", "models.scheduler.eta_min",
    )  # fmt: skip
    assert list(study.first.values()) == [1e-4, 4e-5, 15, 1e-5] and type(study.first["models.scheduler.T_max"]) is int
    assert (study.budget, study.agents, study.method, study.metric) == (8, 1, "bayes", "val/hmean_macro")
    assert (study.max_epochs, study.early_stop["type"], study.goal) == (20, "curve", "maximize")
    assert notices == []
    demo, notices = study_of("preset=demo", "trainer.max_epochs=7", "--method", "prior", "--agents", "8")
    assert notices == [] and demo.first["models.optimizer.lr"] == 4e-3 and demo.max_epochs == 7
    assert demo.arguments == ["preset=demo", "trainer.max_epochs=7"] and demo.metric == "val/hmean"


def test_a_metric_that_nobody_chose_is_what_picks_the_best_checkpoint(here):
    """The published H-mean is a mean of pages, and eval.select=macro is its preset's."""
    assert study_of("eval.select=micro")[0].metric == "val/hmean"
    assert study_of("preset=demo", "eval.select=macro")[0].metric == "val/hmean_macro"
    path = sweep_file(here, LR)
    study, notices = study_of("--sweep", path)
    assert study.metric == "val/hmean" and "val/hmean_macro" in notices[0]  # the user's word; another picks `best`
    path = sweep_file(here, LR, "method: random\nparameters:\n")
    study, notices = study_of("--sweep", path)
    assert study.metric == "val/hmean_macro" and notices == ["metric is not given: val/hmean_macro, maximize"]
    study, notices = study_of("--sweep", path, "--objective", "search_objective:quadratic")
    assert study.metric == "val/hmean" and notices == ["metric is not given: val/hmean, maximize"]


def test_a_table_of_h_means_is_taken_for_page_means_and_said_to_be(here):
    (here / "t.csv").write_text(TABLE)
    study, notices, events = plan.prepare(*options.parse(["--import", "t.csv"]))
    assert study.metric == "val/hmean_macro" and events[1]["value"] == 0.96431
    assert notices == ["note: t.csv has no column val/hmean_macro: its column val/hmean is taken for it"]
    both = [line + end for line, end in zip(TABLE.splitlines(), (",val/hmean_macro", ",0.9", ",0.8"), strict=True)]
    (here / "t.csv").write_text("\n".join(both))
    _, notices, events = plan.prepare(*options.parse(["--import", "t.csv"]))
    assert notices == [] and events[1]["value"] == 0.8


def test_a_start_outside_the_space_is_moved_and_said(here):
    study, notices = study_of("--sweep", sweep_file(here, LR), "preset=demo")
    assert study.first == {"models.optimizer.lr": 2e-4}
    assert notices == ["note: models.optimizer.lr=0.004 lies outside the space; trial 0 has 0.0002"]
    study, notices = study_of("--sweep", sweep_file(here, LR), "preset=demo", "models.optimizer.lr=3e-5")
    assert study.first == {"models.optimizer.lr": 3e-5} and "where trial 0 starts" in notices[0]
    assert study.arguments == ["preset=demo"]  # the trials' own values are the only ones


def test_a_choice_outside_the_space(here):
    path = sweep_file(here, "  models.scheduler.name: {values: [cosine, poly]}\n")
    study, notices = study_of("--sweep", path, "preset=demo")
    assert study.first == {"models.scheduler.name": "cosine"} and "models.scheduler.name=onecycle" in notices[0]


def test_fixed_values_of_the_sweep_file_and_the_command_line_over_them(here):
    fixed = "  trainer.max_epochs: {value: 5}\n  trainer.ema: {value: false}\n  preset: {value: demo}\n"
    fixed += "  seed: {value: 7}\n"
    study, _ = study_of("--sweep", sweep_file(here, LR + fixed), "trainer.max_epochs=6")
    assert study.max_epochs == 6
    assert {"preset=demo", "trainer.ema=false"} <= set(study.arguments)
    assert study.seed == 7 and study.name.startswith("demo-") and not [a for a in study.arguments if "seed=" in a]
    assert study_of("--sweep", str(here / "sweep.yaml"), "--seed", "0")[0].seed == 0


def test_a_searched_key_without_effect_is_a_caution(here):
    path = sweep_file(here, LR + "  models.scheduler.T_max: {values: [15, 18, 20]}\n")
    _, notices = study_of("--sweep", path, "preset=demo")  # onecycle
    (caution,) = [line for line in notices if line.startswith("WARNING")]
    assert "models.scheduler.T_max" in caution and "only cosine has it" in caution
    _, notices = study_of("--sweep", path)
    assert not [line for line in notices if line.startswith("WARNING")]


def test_the_objectives_start(here):
    path = sweep_file(here, "  x: {min: 0.0, max: 1.0}\n  T_max: {values: [15, 20]}\n  c: {value: 3}\n")
    (here / "mine.py").write_text("raise SystemExit('it is imported in the trials only')\n")
    study, _ = study_of("--objective", "mine:f", "--sweep", path, "x=0.25")
    assert study.first == {"x": 0.25, "T_max": 15} or study.first == {"x": 0.25, "T_max": 20}
    assert (study.early_stop, study.arguments) == ({"type": "none"}, [])
    first = trials.new_trial(study, study.first, "preset", 0)
    assert json.loads(trials.command(study, first, 0)[4]) == {**study.first, "c": 3}
    study, _ = study_of("--objective", "mine:f", "--sweep", path, "--early-stop", "curve", "--epochs", "9")
    assert (study.early_stop, study.max_epochs) == (stopping.default_rule(9), 9)
    for argv, words in {
        ("mine:f", "--early-stop", "curve"): "--epochs N",
        ("mine:f", "y=1"): "only searched keys",
        ("mine:f", "x=one"): "expected a number",
        ("mine",): "module:function",
        ("not.there:f",): "no module",
    }.items():
        assert words in message("--sweep", path, "--objective", *argv), argv


def test_an_objective_starts_with_values_of_the_parameters_own_types(here):
    path = sweep_file(here, "  n: {min: 1, max: 9}\n  T_max: {values: [15, 20]}\n  c: {values: [[1, 2], [3]]}\n")
    (here / "mine.py").touch()
    given = ("--objective", "mine:f", "--sweep", path)
    study, notices = study_of(*given, "n=3", "T_max=15.0", "c=[1,2]")
    assert json.dumps(study.first) == '{"n": 3, "T_max": 15, "c": "[1,2]"}' and notices == []
    study, notices = study_of(*given, "n=12", "T_max=16")
    assert json.dumps([study.first["n"], study.first["T_max"]]) == "[9, 15]" and len(notices) == 2
    assert "n=3.5: expected a whole number" in message(*given, "n=3.5")
    assert "expected one of [1,2], [3]" in message(*given, "c=[4]")


@pytest.mark.parametrize("seed", ["abc", "-1", "1.5", "true"])
def test_the_seed_of_a_sweep_file_is_checked_as_the_flags(here, seed):
    (here / "mine.py").touch()
    path = sweep_file(here, f"  x: {{min: 0.0, max: 1.0}}\n  seed: {{value: {seed}}}\n")
    assert f"seed {seed}: " in message("--objective", "mine:f", "--sweep", path)


def test_what_a_resume_can_change(tmp_path):
    space = Space((Parameter("x", "float"),))
    study = Study(tmp_path, "s", space, budget=8)

    def changes(*argv):
        return plan.resume_changes(study, *options.parse(["--resume", "s", *argv]))

    assert changes() == {} and changes("--budget", "8") == {}
    assert changes("--budget", "16", "--agents=2") == {"budget": 16, "agents": 2}
    assert changes("--confirm", "3") == {"confirmation": Confirmation(3)}
    for argv in (["--method", "random"], ["--seed", "1"], ["--sweep", "a"], ["preset=demo"]):
        with pytest.raises(UserError, match="a resumed study keeps its own"):
            changes(*argv)


def test_the_newest_study_is_found(here):
    for name in ("a", "b", "c"):
        ledger.create(Study(here / "studies" / name, name, Space((Parameter("x", "float"),)))).close()
        time.sleep(0.01)
    (here / "studies" / "b" / ledger.FILE).touch()
    given = options.Options()
    assert plan.find_study(options.NEWEST, given).name == "b"
    assert plan.find_study("a", given) == plan.find_study("studies/a", given)
    assert "exists already" in message("--study", "a", "preset=demo")


TABLE = """name,order,lr,weight_decay,T_max,eta_min,val/hmean,epochs
late,2,9.09e-05,3.24e-05,15,1.21e-05,0.97431,15
early,1,1.09e-04,3.24e-05,20,1.21e-05,0.96431,5
"""


def test_a_table_is_what_the_search_knows_already(here):
    (here / "t.csv").write_text(TABLE)
    study, _, events = plan.prepare(*options.parse(["--import", "t.csv", "--study", "a"]))
    assert study.budget == 0 and not (here / "studies").exists()
    book = ledger.create(study, events)
    early, late = book.study.trials
    assert (early.name, early.state, early.epochs, early.value) == ("early", "stopped", 5, 0.96431)
    assert (late.name, late.state, late.kind, late.scores) == ("late", "finished", "imported", {"hmean_macro": 0.97431})
    assert book.study.searched == []
    book.close()
    # with results already there, all of the budget can run at once
    study, _, _ = plan.prepare(*options.parse(["--import", "t.csv", "--budget", "4", "--agents", "4"]))
    assert (study.budget, study.agents) == (4, 4)
    assert "no column" in message("--import", "t.csv", "preset=demo")  # its space has pct_start


def test_a_refined_study_has_the_narrow_space_and_the_knowledge(here, monkeypatch):
    from engine.search import refine

    (here / "t.csv").write_text(TABLE)
    study, _, events = plan.prepare(*options.parse(["--import", "t.csv", "--study", "a", "trainer.max_epochs=15"]))
    ledger.create(study, events).close()
    narrow = dataclasses.replace(study.space.parameters[0], low=8e-5, high=1.1e-4)
    space = Space((narrow, *study.space.parameters[1:]))
    best = {**study.first, "models.optimizer.lr": 9.5e-5}
    monkeypatch.setattr(surrogate, "fitted", lambda old: None)  # two trials are too few for a model
    monkeypatch.setattr(refine, "refined", lambda old, model: (space, best, refine.kept_trials(old, space)))
    new, notices, events = plan.prepare(*options.parse(["--refine", "a", "--budget", "6"]))
    assert (new.name, new.folder, new.budget, new.space) == ("a-refined", Path("studies/a-refined"), 6, space)
    assert (new.arguments, new.max_epochs, new.first) == (["trainer.max_epochs=15"], 15, best)
    assert "2 trials of studies/a are known" in notices[0]
    with contextlib.closing(ledger.create(new, events)) as book:
        assert [(trial.kind, trial.value) for trial in book.study.trials] == [
            ("imported", 0.96431),
            ("imported", 0.97431),
        ]
    assert "exists already" in message("--refine", "a")
    refined = ["--refine", "b", "--study", "c"]
    old = dataclasses.replace(study, folder=study.folder.with_name("b"), name="b", seed=7)
    old.runner = Runner(baseline=0.96)
    ledger.create(old).close()
    kept, given = (plan.prepare(*options.parse([*refined, *more]))[0] for more in ([], ["--seed=0", "--baseline=0.9"]))
    assert (kept.seed, kept.runner.baseline) == (7, 0.96)
    assert (given.seed, given.runner.baseline) == (0, 0.9)
    assert "preset=demo: --refine keeps" in message("--refine", "a", "preset=demo")
    assert "--sweep: --refine keeps" in message("--refine", "a", "--sweep", "x.yaml")


def test_a_small_space_bounds_the_budget(here):
    path = sweep_file(
        here, "  models.scheduler.T_max: {values: [15, 18, 20]}\n  trainer.ema: {values: [true, false]}\n"
    )
    study, notices = study_of("--sweep", path)
    assert study.budget == 6 and any("6 configurations" in line for line in notices)
    assert size(Space((Parameter("a", "int", 2, 5), Parameter("b", "float", 0.05, 0.3, step=0.1)))) == 4 * 3
    assert size(Space((Parameter("a", "int", 2, 5), Parameter("b", "float")))) == float("inf")


def test_a_method_is_checked_against_the_budget_that_the_space_leaves(here):
    path = sweep_file(here, "  models.scheduler.T_max: {values: [15, 18, 20, 25]}\n")
    text = message("--sweep", path, "--budget", "8", "--agents", "4")
    assert "--agents 4 with --budget 4" in text and "--agents 2" in text


def test_what_is_known_of_a_small_space_is_not_part_of_the_budget(here):
    path = sweep_file(here, "  models.scheduler.T_max: {values: [15, 18, 20, 25]}\n")
    (here / "t.csv").write_text("T_max,val/hmean\n18,0.9\n18,0.91\n19,0.92\n")
    given = options.parse(["--import", "t.csv", "--sweep", path, "--budget", "4", "--study", "a"])
    study, notices, events = plan.prepare(*given)
    assert study.budget == 3 and any("3 are left" in line for line in notices)
    ledger.create(study, events).close()
    with pytest.raises(UserError, match=r"--budget 4: .* 3 configurations"):
        plan.resume_changes(ledger.read(study.folder), *options.parse(["--resume", "a", "--budget", "4"]))
