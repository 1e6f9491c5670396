"""W&B sweep files: what they mean, what is refused, and the default spaces of the presets."""

import math
import shutil
import zipfile

import pytest
from search_studies import inside

from engine.config.load import load_config, preset_names
from engine.search import sweep
from engine.search.space import Parameter
from pipelines.errors import UserError
from tests.conftest import ROOT

PUBLISHED = """
program: runners/train.py
project: hrnet-w44-1280-sweep
command:
  - ${env}
  - python
  - ${program}
  - ${args_no_hyphens}
method: bayes
metric:
  name: val/hmean
  goal: maximize
parameters:
  preset:
    value: hrnet_w44_1280
  models.optimizer.lr:
    distribution: log_uniform
    min: -11.5  # exp(-11.5) = 0.00001
    max: -8.5
  models.optimizer.weight_decay:
    distribution: log_uniform
    min: -12
    max: -9
  models.scheduler.T_max:
    values: [15, 18, 20, 25]
  models.scheduler.eta_min:
    distribution: log_uniform
    min: -13
    max: -10
  trainer.max_epochs:
    value: 20
  wandb:
    value: true
early_terminate:
  type: hyperband
  min_iter: 5
"""
HEAD = "method: random\nmetric: {name: val/hmean, goal: maximize}\n"


def read(tmp_path, text, free_keys=False):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return sweep.read(path, free_keys)


def parameter(tmp_path, entry, key="a"):
    """The one parameter that `entry` describes; a second one keeps the space from being empty."""
    found = read(tmp_path, f"{HEAD}parameters:\n  {key}: {entry}\n  filler: {{values: [1, 2]}}\n", free_keys=True)
    return found.fixed[key] if key in found.fixed else found.space.parameters[0]


def test_the_published_file_runs_unchanged(tmp_path):
    found = read(tmp_path, PUBLISHED)
    assert (found.method, found.metric, found.goal) == ("bayes", "val/hmean", "maximize")
    assert found.fixed == {"preset": "hrnet_w44_1280", "trainer.max_epochs": 20, "wandb": True}
    assert found.early_stop == {"type": "hyperband", "min_iter": 5, "eta": 3, "strict": True}
    lr, decay, t_max, eta_min = found.space.parameters
    assert (lr.scale, lr.low, lr.high) == ("log", pytest.approx(math.exp(-11.5), rel=1e-5), 0.000203468)
    assert (decay.low, decay.high) == (6.14421e-06, 0.00012341)
    assert (t_max.kind, t_max.values) == ("ordinal", (15, 18, 20, 25))
    assert eta_min.high == 4.53999e-05
    assert found.notices[0].startswith("program, project, command: passed over")
    assert "1.01301e-05 to 0.000203468" in found.notices[1]
    arguments = [f"{key}={value}" for key, value in {**found.fixed, **found.space.values([0.2, 0.4, 0.6, 0.8])}.items()]
    assert load_config(arguments)[0].wandb


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{value: 3}", 3),
        ("{value: text, distribution: constant}", "text"),
        ("{value: [640, 640]}", "[640,640]"),
        ("{value: false}", False),
        ("{values: [7]}", 7),
        ("{min: 3, max: 3}", 3),
        ("{values: [3, 1, 2]}", Parameter("a", "ordinal", values=(1, 2, 3))),
        ("{values: [0.1, 1]}", Parameter("a", "ordinal", values=(0.1, 1))),
        ("{values: [adam, sgd], distribution: categorical}", Parameter("a", "choice", values=("adam", "sgd"))),
        ("{values: [true, false]}", Parameter("a", "choice", values=(True, False))),
        ("{values: [1, two]}", Parameter("a", "choice", values=(1, "two"))),
        ("{values: [[320, 320], [640, 640]]}", Parameter("a", "choice", values=("[320,320]", "[640,640]"))),
        ("{min: 1, max: 9}", Parameter("a", "int", 1, 9)),
        ("{min: 1, max: 9.0}", Parameter("a", "float", 1, 9)),
        ("{min: 1e-5, max: 1}", Parameter("a", "float", 1e-5, 1)),
        ("{min: 1, max: 9, distribution: uniform}", Parameter("a", "float", 1, 9)),
        ("{min: 1, max: 9, distribution: int_uniform}", Parameter("a", "int", 1, 9)),
        ("{min: 1e-5, max: 2e-4, distribution: log_uniform_values}", Parameter("a", "float", 1e-5, 2e-4, "log")),
        ("{min: 0, max: 1, distribution: log_uniform}", Parameter("a", "float", 1, 2.71828, "log")),
        ("{min: 0, max: 9, q: 0.5, distribution: q_uniform}", Parameter("a", "float", 0, 9, step=0.5)),
        ("{min: 0, max: 9, distribution: q_uniform}", Parameter("a", "float", 0, 9, step=1)),
        ("{min: 0, max: 1, q: 2, distribution: q_log_uniform}", Parameter("a", "float", 1, 2.71828, "log", 2)),
        ("{min: 8, max: 64, q: 8, distribution: q_log_uniform_values}", Parameter("a", "float", 8, 64, "log", 8)),
    ],
)  # fmt: skip
def test_parameters_mean_what_they_mean_to_wandb(tmp_path, entry, expected):
    found = parameter(tmp_path, entry)
    assert found == expected and type(found) is type(expected)


def test_quantized_values_are_multiples_and_whole_for_whole_keys(tmp_path):
    text = HEAD + "parameters: {models.scheduler.T_max: {min: 10, max: 31, q: 5, distribution: q_uniform}}"
    (t_max,) = read(tmp_path, text).space.parameters
    assert [t_max.value(u) for u in (0, 0.3, 1)] == [10, 15, 30] and isinstance(t_max.value(0.3), int)


def test_nested_parameters_are_joined_with_dots(tmp_path):
    text = HEAD + "parameters: {models: {parameters: {optimizer: {parameters: {lr: {min: 1e-5, max: 1e-3}}}}}}"
    assert read(tmp_path, text).space.names == ("models.optimizer.lr",)
    double = text.replace("parameters: {models:", "parameters: {models.optimizer.lr: {value: 1}, models:")
    with pytest.raises(UserError, match="lr is given twice"):
        read(tmp_path, double)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{distribution: normal, mu: 0, sigma: 1}", "a: distribution normal is not supported; use uniform"),
        ("{distribution: q_log_normal}", "a: distribution q_log_normal is not supported; use q_log_uniform_values"),
        ("{distribution: beta}", "a: distribution beta is not supported; use uniform"),
        ("{distribution: inv_log_uniform_values, min: 1, max: 2}", "not supported; use log_uniform_values"),
        ("{values: [1, 2], probabilities: [0.1, 0.9]}", "categorical_w_probabilities is not supported; use values"),
        ("{distribution: log_unifrom, min: 1, max: 2}", "did you mean log_uniform?"),
        ("{min: 1}", "a: expected value, values, or min and max"),
        ("{min: 1, max: 2, value: 1, distribution: uniform}", "a: unknown key value"),
        ("{min: 1, max: 2, mean: 1}", "a: unknown key mean"),
        ("{min: 5, max: 2}", "a: bounds 5 to 2 are not in ascending order"),
        ("{min: 0, max: 2, distribution: log_uniform_values}", "a: a log scale needs a lower bound above 0"),
        ("{min: 0, max: 2e3, distribution: log_uniform}", "write log_uniform_values"),
        ("{min: 1.5, max: 2, distribution: int_uniform}", "expected two whole numbers"),
        ("{min: 1, max: 2, q: 0, distribution: q_uniform}", "q: 0: expected a number above 0"),
        ("{min: true, max: 2}", "expected two numbers"),
        ("{min: 1, max: .inf}", "expected two numbers"),
        ("{values: []}", "a: values: expected a list"),
        ("{values: [1, 1]}", "all different"),
        ("{value: null}", "None is no value"),
        ("{values: [1, {b: 2}]}", "is no value"),
        ("{value: .nan}", "is no finite number"),
        ("3", "a: expected value, values or min and max below it, not 3"),
    ],
)
def test_parameters_refused_by_name(tmp_path, entry, message):
    with pytest.raises(UserError) as error:
        parameter(tmp_path, entry)
    assert message in str(error.value) and "sweep.yaml: parameters: a" in str(error.value)
    assert "\n" not in str(error.value)


LR = "parameters: {models.optimizer.lr: {min: 1e-5, max: 1e-3}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: tpe\n" + LR, "method: tpe: expected one of bayes, random, grid"),
        (LR, "method: None: expected one of"),
        ("method: custom\n" + LR, "method: custom: expected one of"),
        ("method: bayes\n" + LR, "metric is missing: write metric: {name: val/hmean, goal: maximize}"),
        ("method: bayes\nmetric: {name: val/hmean}\n" + LR, "goal of val/hmean is missing"),
        ("method: bayes\nmetric: {name: val/hmean, goal: max}\n" + LR, "goal: max: expected maximize or minimize"),
        ("method: bayes\nmetric: {name: val/hmean, goal: maximize, target: 1}\n" + LR, "metric: target is not supp"),
        ("method: bayes\nmetric: {name: a, goal: maximize, impute: best}\n" + LR, "metric: impute is not supported"),
        ("method: bayes\nmetrics: []\n" + LR, "metrics is not supported: one metric is searched"),
        (HEAD + "scheduler: {engine: optuna}\n" + LR, "scheduler is not supported"),
        (HEAD + "run_cap: 0\n" + LR, "run_cap: 0: expected a whole number of at least 1"),
        (HEAD + "early_terminte: {}\n" + LR, "unknown key early_terminte; did you mean early_terminate?"),
        (HEAD + "early_terminate: {type: median}\n" + LR, "type: median: W&B has hyperband only"),
        (HEAD + "early_terminate: {type: hyperband}\n" + LR, "expected min_iter, or max_iter and s"),
        (HEAD + "early_terminate: {type: hyperband, max_iter: 9}\n" + LR, "expected min_iter, or max_iter and s"),
        (HEAD + "early_terminate: {type: hyperband, max_iter: 2, s: 2}\n" + LR, "no band lies below it at eta 3"),
        (HEAD + "early_terminate: {type: hyperband, min_iter: 0}\n" + LR, "min_iter: 0: expected a whole number"),
        (HEAD + "early_terminate: {type: hyperband, min_iter: 5, eta: 1}\n" + LR, "eta: 1: expected a number above 1"),
        (HEAD + "parameters: {models.optimizer.learning_rate: {values: [1, 2]}}", "unknown key models.optimizer.learn"),
        (HEAD + "parameters: {lr: {values: [1, 2]}}", "unknown key lr; did you mean models.optimizer.lr?"),
        (HEAD + "parameters: {models.optimizer: {values: [1, 2]}}", "models.optimizer is a section"),
        (HEAD + "parameters: {models.optimizer.lr: {values: [1, 200]}}", "models.optimizer.lr=200"),
        (HEAD + "parameters: {models.optimizer.lr: {values: [a, b]}}", "models.optimizer.lr=a: expected a number"),
        (HEAD + "parameters: {models.scheduler.T_max: {min: 15, max: 25.5}}", "takes whole numbers; use int_uniform"),
        (HEAD + "parameters: {preset: {values: [demo, resnet18_640]}}", "preset: give it one value"),
        (HEAD + "parameters: {seed: {min: 0, max: 9}}", "seed: give it one value; seeds are repeated with --confirm"),
        (HEAD + "parameters: {run_root: {value: a}}", "run_root: the search sets it for each trial"),
        (HEAD + "parameters: {seed: {value: 1}}", "every one has a single value"),
        (HEAD + "parameters: {}", "parameters: expected at least one parameter"),
        (HEAD, "parameters: expected at least one parameter"),
        ("method: grid\n" + LR, "method: grid: models.optimizer.lr has no list of values"),
        ("- a\n- b\n", "not a sweep file"),
        ("a: [", "not a YAML file"),
    ],
)
def test_files_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    assert message in str(error.value) and str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        sweep.read(tmp_path / "none.yaml")


def test_what_a_random_search_may_leave_out(tmp_path):
    found = read(tmp_path, "method: random\nrun_cap: 12\ndescription: a\nentity: b\n" + LR)
    assert (found.metric, found.goal, found.run_cap, found.early_stop) == ("val/hmean", "maximize", 12, {})
    assert found.notices == ["description, entity: passed over; every trial is a training of this engine"]
    assert not found.names_metric and read(tmp_path, HEAD + LR).names_metric


def test_hyperband_keeps_what_the_file_says(tmp_path):
    text = HEAD + LR + "early_terminate: {type: hyperband, max_iter: 27, s: 2, eta: 2.5, strict: false}"
    expected = {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 2.5, "strict": False}
    assert read(tmp_path, text).early_stop == expected


def test_keys_of_an_objective_are_free(tmp_path):
    text = HEAD + "parameters: {x: {min: 0.0, max: 1.0}, name: {value: a}}"
    assert read(tmp_path, text, free_keys=True).space.names == ("x",)
    with pytest.raises(UserError, match="unknown key x"):
        read(tmp_path, text)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_lies_inside_its_default_space(preset):
    space = sweep.read(sweep.default_file(preset)).space
    assert inside(space, sweep.preset_values(space, [f"preset={preset}"]))


@pytest.mark.parametrize("path", sorted(sweep.SWEEP_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_default_spaces_search_hmean_upwards_by_the_search_s_own_rule(path):
    found = sweep.read(path)
    assert (found.metric, found.goal, found.method, found.early_stop) == ("val/hmean", "maximize", "bayes", {})
    assert path.stem in ("published", *preset_names())


def test_the_published_space_is_the_issue_s():
    lr, decay, t_max, eta_min = sweep.read(sweep.default_file("hrnet_w44_1280")).space.parameters
    assert [(p.low, p.high, p.scale) for p in (lr, decay, eta_min)] == [
        (1e-5, 2e-4, "log"),
        (6.1e-6, 1.23e-4, "log"),
        (2.2e-6, 4.5e-5, "log"),
    ]
    assert t_max.values == (15, 18, 20, 25)


def test_a_wheel_holds_the_default_spaces(tmp_path):
    backend = pytest.importorskip("setuptools.build_meta")
    copy = tmp_path / "copy"
    copy.mkdir()
    _copy_what_a_build_reads(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        name = backend.build_wheel(str(tmp_path))
    packed = zipfile.ZipFile(tmp_path / name).namelist()
    for path in sweep.SWEEP_FOLDER.glob("*.yaml"):
        assert f"engine/config/presets/sweeps/{path.name}" in packed


def _copy_what_a_build_reads(folder):
    """What a build reads: pyproject.toml, README, LICENSE and the package `engine`."""
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for package in ("engine", "kernels", "pipelines", "bench"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "results", "data")
        )
