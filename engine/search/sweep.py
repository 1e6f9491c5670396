"""W&B sweep files, read unchanged: `--sweep sweep.yaml`, and the default spaces of `engine/config/presets/sweeps`.

What is supported means what it means to W&B (docs.wandb.ai, "Sweep configuration options"; PyPI `sweeps` 0.3.0,
schema.json). What is not is refused by name, unless leaving it out changes nothing of the search: a notice says so.

    value, or one of values   fixed
    values                    ordinal when all are numbers, else choice
    min, max                  int_uniform when both are whole, else uniform
    log_uniform               bounds are exponents of e:  exp(-11.5) = 1.01e-5
    log_uniform_values        bounds are the values
    q_*                       multiples of q (default 1) within the bounds
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.config.load import PRESET_FOLDER, keys, keys_and_values, load_config, split_extra
from engine.console import did_you_mean
from engine.files import read_text, yaml_values
from engine.search.space import Parameter, Space, is_number
from pipelines.errors import UserError

SWEEP_FOLDER = PRESET_FOLDER / "sweeps"
METRIC, GOAL = "val/hmean", "maximize"
METHODS = ("bayes", "random", "grid")
READ = ("method", "metric", "parameters", "early_terminate", "run_cap")
PASSED_OVER = (
    "program", "command", "name", "description", "project", "entity", "apiVersion", "kind", "controller", "job",
    "image_uri",
)  # fmt: skip
REFUSED = {
    "metrics": "one metric is searched; give `metric` the one that decides",
    "scheduler": "the search brings its own surrogate; remove it, `method: bayes` stays",
}
REFUSED_METRIC = {
    "target": "a search ends with its budget; remove it",
    "impute": "failed trials are told as infeasible, stopped ones by their extrapolated curve; remove it",
    "impute_while_running": "running trials are told at the surrogate's mean; remove it",
}
BOUNDED = {  # distribution: (kind, scale, whether the bounds are exponents of e, whether q is read)
    "uniform": ("float", "linear", False, False),
    "int_uniform": ("int", "linear", False, False),
    "log_uniform": ("float", "log", True, False),
    "log_uniform_values": ("float", "log", False, False),
    "q_uniform": ("float", "linear", False, True),
    "q_log_uniform": ("float", "log", True, True),
    "q_log_uniform_values": ("float", "log", False, True),
}
UNSUPPORTED = {
    "normal": "uniform", "q_normal": "q_uniform", "log_normal": "log_uniform_values",
    "q_log_normal": "q_log_uniform_values", "beta": "uniform", "q_beta": "q_uniform",
    "inv_log_uniform": "log_uniform_values with the inverse bounds",
    "inv_log_uniform_values": "log_uniform_values", "categorical_w_probabilities": "values without probabilities",
}  # fmt: skip
RUNNERS = ("name", "run_root", "resume", "init_from")  # decided for each trial by the search
SINGLE = {"preset": "a search has one starting point", "seed": "seeds are repeated with --confirm, not searched"}
HYPERBAND = {"min_iter": 1, "eta": None, "s": 1, "max_iter": 1, "strict": None}  # key: least whole number
SIGNIFICANT = 6  # digits of a bound that was an exponent


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file says."""

    space: Space  # the parameters of more than one value
    fixed: dict[str, Any]  # {key of the configuration: plain value} of the others, `preset` among them
    metric: str  # e.g. val/hmean
    names_metric: bool  # whether the file names it
    goal: str  # maximize or minimize
    method: str  # bayes, random or grid
    early_stop: dict[str, Any]  # as `stopping.decide` takes it; {} = the file has none
    run_cap: int | None  # most trials; None = the file has none
    notices: list[str]  # for the user, a line each: what was passed over, and why that changes nothing


def default_file(preset: str) -> Path:
    """The sweep file of a preset's default space: its own, else the published study's."""
    own = SWEEP_FOLDER / f"{preset}.yaml"
    return own if own.is_file() else SWEEP_FOLDER / "published.yaml"


def preset_values(space: Space, arguments: list[str]) -> dict[str, Any]:
    """The values that `preset=... key=value ...` itself gives the searched keys, plain."""
    values = keys_and_values(load_config(arguments)[0])
    return {name: _plain(values[name]) for name in space.names}


def read(path: str | Path, free_keys: bool = False) -> Sweep:
    """Reads a W&B sweep file.

    Args:
        path: YAML file.
        free_keys: parameters need not be keys of the configuration (an objective of the user's own takes them).

    Raises:
        UserError: one line: the file, the entry and its mend.
    """
    try:
        values = yaml_values(read_text(Path(path)))
        if not isinstance(values, dict):
            raise UserError("not a sweep file (expected method, metric and parameters)")
        return _sweep(values, free_keys)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sweep(values: dict, free_keys: bool) -> Sweep:
    _check_keys(values, (*READ, *PASSED_OVER), REFUSED, "")
    notices = []
    passed = [key for key in values if key in PASSED_OVER]
    if passed:
        notices.append(f"{', '.join(passed)}: passed over; every trial is a training of this engine")
    method = values.get("method")
    if method not in METHODS:
        raise UserError(f"method: {method}: expected one of {', '.join(METHODS)}")
    metric, goal = _metric(values, method)
    parameters, fixed = _parameters(values.get("parameters"), free_keys, notices)
    endless = [one.name for one in parameters if one.kind == "float" and not one.step]
    if method == "grid" and endless:
        raise UserError(f"method: grid: {endless[0]} has no list of values; give it values, or use random")
    cap = values.get("run_cap")
    if cap is not None and not _whole(cap, 1):
        raise UserError(f"run_cap: {cap}: expected a whole number of at least 1")
    early_stop = _early_stop(values["early_terminate"]) if "early_terminate" in values else {}
    named = "metric" in values
    return Sweep(Space(tuple(parameters)), fixed, metric, named, goal, method, early_stop, cap, notices)


def _check_keys(entry: Any, known: Collection[str], refused: Mapping[str, str], where: str) -> None:
    """Refuses what is no mapping, what is refused by name, and unknown keys."""
    if not isinstance(entry, dict):
        raise UserError(f"{where or 'the file'}: expected keys and values, not {entry!r}")
    for key in entry:
        if key in refused:
            raise UserError(f"{where + ': ' if where else ''}{key} is not supported: {refused[key]}")
        if key not in known:
            hint = did_you_mean(str(key), known) or f"expected {', '.join(known)}"
            raise UserError(f"{where + ': ' if where else ''}unknown key {key}; {hint}")


def _metric(values: dict, method: str) -> tuple[str, str]:
    if "metric" not in values:
        if method == "bayes":
            raise UserError(f"metric is missing: write metric: {{name: {METRIC}, goal: {GOAL}}}")
        return METRIC, GOAL
    metric = values["metric"]
    _check_keys(metric, ("name", "goal"), REFUSED_METRIC, "metric")
    name, goal = metric.get("name"), metric.get("goal")
    if not isinstance(name, str) or not name:
        raise UserError(f"metric: name: expected a text, e.g. {METRIC}")
    if goal is None:  # W&B then minimizes, which nobody means for these
        raise UserError(f"metric: goal of {name} is missing (W&B would minimize it): write goal: maximize or minimize")
    if goal not in ("maximize", "minimize"):
        raise UserError(f"metric: goal: {goal}: expected maximize or minimize")
    return name, goal


def _flat(entries: Any, prefix: str = "") -> dict[str, dict]:
    """{key: description} with nested `parameters:` joined by dots."""
    where = f"parameters: {prefix.rstrip('.')}" if prefix else "parameters"
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{where}: expected at least one parameter")
    found: dict[str, dict] = {}
    for key, entry in entries.items():
        name = f"{prefix}{key}"
        if not isinstance(entry, dict):
            raise UserError(f"parameters: {name}: expected value, values or min and max below it, not {entry!r}")
        inner = {name: entry}
        if "parameters" in entry:
            _check_keys(entry, ("parameters",), {}, f"parameters: {name}")
            inner = _flat(entry["parameters"], name + ".")
        for inside, description in inner.items():
            if inside in found:
                raise UserError(f"parameters: {inside} is given twice")
            found[inside] = description
    return found


def _parameters(entries: Any, free_keys: bool, notices: list[str]) -> tuple[list[Parameter], dict[str, Any]]:
    searched, fixed = [], {}
    for name, entry in _flat(entries).items():
        if not free_keys:
            split_extra([f"{name}="], {})  # an unknown key ends here, with the nearest one that exists
            if name in RUNNERS:
                raise UserError(f"parameters: {name}: the search sets it for each trial; remove it")
        try:
            found = _parameter(name, entry, notices)
        except UserError as error:
            raise UserError(f"parameters: {error}") from None
        if not isinstance(found, Parameter):
            fixed[name] = found
        elif name in SINGLE and not free_keys:
            raise UserError(f"parameters: {name}: give it one value; {SINGLE[name]}")
        else:
            searched.append(found)
        if not free_keys:
            _check_values(name, found)
    if not searched:
        raise UserError("parameters: every one has a single value; give at least one of them several")
    return searched, fixed


def _parameter(name: str, entry: dict, notices: list[str]) -> Parameter | Any:
    """A searched parameter, or the one value it always has."""
    distribution = _distribution(name, entry)
    if distribution == "constant":
        _check_keys(entry, ("value", "distribution"), {}, name)
        return _item(name, entry.get("value"))
    if distribution == "categorical":
        _check_keys(entry, ("values", "distribution"), {}, name)
        items = entry.get("values")
        if not isinstance(items, list) or not items:
            raise UserError(f"{name}: values: expected a list, e.g. [15, 20]")
        items = [_item(name, item) for item in items]
        if len(items) == 1:
            return items[0]
        numbers = all(is_number(item) for item in items)
        return Parameter(name, "ordinal" if numbers else "choice", values=tuple(items))
    return _bounded(name, entry, distribution, notices)


def _distribution(name: str, entry: dict) -> str:
    """The distribution, written or inferred as W&B does."""
    given = entry.get("distribution")
    if given is None and "probabilities" in entry:
        given = "categorical_w_probabilities"
    if given is not None and not isinstance(given, str):
        raise UserError(f"{name}: distribution {given!r:.60}: expected a text")
    if given in UNSUPPORTED:
        raise UserError(f"{name}: distribution {given} is not supported; use {UNSUPPORTED[given]}")
    known = ("constant", "categorical", *BOUNDED)
    if given is not None and given not in known:
        hint = did_you_mean(given, known) or f"there are {', '.join(known)}"
        raise UserError(f"{name}: unknown distribution {given}; {hint}")
    if given is not None:
        return given
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical"
    if "min" in entry and "max" in entry:
        return "int_uniform" if _whole(entry["min"]) and _whole(entry["max"]) else "uniform"
    raise UserError(f"{name}: expected value, values, or min and max")


def _bounded(name: str, entry: dict, distribution: str, notices: list[str]) -> Parameter | Any:
    kind, scale, exponents, quantized = BOUNDED[distribution]
    _check_keys(entry, ("min", "max", "distribution", *(("q",) if quantized else ())), {}, name)
    given = entry.get("min"), entry.get("max")
    bounds = [bound for bound in given if is_number(bound) and (kind != "int" or _whole(bound))]
    if len(bounds) < 2:
        raise UserError(f"{name}: min {given[0]}, max {given[1]}: expected two {'whole ' * (kind == 'int')}numbers")
    if exponents:
        if max(bounds) > 700:
            raise UserError(f"{name}: {distribution} takes exponents of e; for the values write {distribution}_values")
        bounds = [float(f"{math.exp(bound):.{SIGNIFICANT}g}") for bound in bounds]
        notices.append(
            f"{name}: {distribution} takes exponents of e, so it is searched from {bounds[0]:g} to {bounds[1]:g}"
        )
    step = entry.get("q", 1.0) if quantized else 0.0
    if not is_number(step) or (quantized and step <= 0):
        raise UserError(f"{name}: q: {step}: expected a number above 0")
    if kind == "float":
        bounds = [float(bound) for bound in bounds]
    if bounds[0] == bounds[1]:
        return round(bounds[0] / step) * step if quantized else bounds[0]
    if quantized and float(step).is_integer() and _takes_whole(name):
        kind = "int"
    return Parameter(name, kind, bounds[0], bounds[1], scale, float(step))


def _takes_whole(name: str) -> bool:
    """Whether the key of the configuration takes whole numbers only."""
    return name in keys() and keys()[name].type is int


def _check_values(name: str, found: Parameter | Any) -> None:
    """The ends of the range, or every value, against what the key accepts."""
    if not isinstance(found, Parameter):
        items = [] if name == "preset" else [found]
    elif found.values:
        items = list(found.values)
    elif found.kind == "float" and _takes_whole(name):
        raise UserError(f"parameters: {name}: takes whole numbers; use int_uniform, q_uniform or values")
    else:
        items = [found.low, found.high]
    for item in items:
        try:
            load_config([f"{name}={item}"])
        except UserError as error:
            if str(error).startswith(f"{name}="):  # else two keys disagree, which another preset may settle
                raise UserError(f"parameters: {error}") from None


def _early_stop(entry: Any) -> dict[str, Any]:
    """`early_terminate` as `stopping.decide` takes it, W&B's defaults filled in."""
    _check_keys(entry, ("type", *HYPERBAND), {}, "early_terminate")
    if entry.get("type") != "hyperband":
        raise UserError(f"early_terminate: type: {entry.get('type')}: W&B has hyperband only")
    for key, least in HYPERBAND.items():
        if key in entry and least and not _whole(entry[key], least):
            raise UserError(f"early_terminate: {key}: {entry[key]}: expected a whole number of at least {least}")
    rule = {"type": "hyperband", "eta": 3, "strict": True} | entry
    if not is_number(rule["eta"]) or rule["eta"] <= 1:
        raise UserError(f"early_terminate: eta: {rule['eta']}: expected a number above 1")
    if not isinstance(rule["strict"], bool):
        raise UserError(f"early_terminate: strict: {rule['strict']}: expected true or false")
    if "min_iter" not in rule and not ("max_iter" in rule and "s" in rule):
        raise UserError("early_terminate: expected min_iter, or max_iter and s")
    if "max_iter" in rule and "s" not in rule:
        raise UserError("early_terminate: max_iter needs s, the number of bands below it")
    if "max_iter" in rule and rule["max_iter"] < rule["eta"]:
        raise UserError(f"early_terminate: max_iter: {rule['max_iter']}: no band lies below it at eta {rule['eta']}")
    return rule


def _whole(value: Any, least: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def _plain(value: Any) -> Any:
    """Lists as the text that the command line takes, e.g. [640,640]; other values as they are."""
    return f"[{','.join(str(item) for item in value)}]" if isinstance(value, list) else value


def _item(name: str, value: Any) -> Any:
    """One value; UserError when it is none that a command line can carry."""
    if value is None or isinstance(value, dict):
        raise UserError(f"{name}: {value!r} is no value; expected a number, a text, true, false or a list of them")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not is_number(value):
        raise UserError(f"{name}: {str(value)[:40]} is no finite number")
    return _plain(value)
