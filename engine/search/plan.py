"""From the command line to a study that is checked and not yet on disk.

Every bound of the space goes through `engine.config.load` with the settings of the trials, so that whatever a training
would refuse is refused here, in one line, before anything has been created.
"""

import dataclasses
import datetime
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.config.cautions import warnings
from engine.config.load import DEFAULT_PRESET, load_config, shown
from engine.evaluation.cleval import key_of
from engine.search import import_table, ledger, objective, sweep
from engine.search.model import stopping
from engine.search.options import NEWEST, Options
from engine.search.space import Parameter, Space, size
from engine.search.study import GIVEN, SCORES, Confirmation, Runner, Study, Trial, field_of, untried
from pipelines.errors import UserError

OWN = {  # settings that the search gives to every trial itself, and what to use instead
    "run_root": "--study-root FOLDER",
    "name": "--study NAME",
    "resume": "--resume STUDY",
    "seed": "--seed N",
    "wandb_group": "--study NAME",
    "wandb_job_type": "nothing",
}
BUDGET = 8
HYPERBAND = {"type": "hyperband", "min_iter": 5, "eta": 3, "strict": True}  # the published study's, W&B's defaults
REFINED_BY = (  # flags that go with --refine
    "--budget", "--agents", "--study", "--study-root", "--executor", "--seed", "--confirm", "--timeout", "--stall",
    "--method", "--early-stop", "--baseline", "--dry-run",
)  # fmt: skip
RESUMED_BY = ("--budget", "--agents", "--confirm", "--executor", "--timeout", "--stall", "--baseline")


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a search starts, and what its trials have in common."""

    first: dict[str, Any]  # values of the searched keys, inside the space or not
    epochs: int  # of a whole trial
    metric: str
    arguments: list[str]  # preset=... key=value ... of every trial
    notices: list[str]


def prepare(options: Options, items: Sequence[str]) -> tuple[Study, list[str], list[dict]]:
    """The study that a command line asks for, alone or from what another study or a table knows.

    Returns:
        the study, notices, and the events that bring in the trials that are known.
    """
    known: list[Trial] = []
    if options.refine:
        study, notices, known = _refined(options.refine, options, items)
    else:
        study, notices = new_study(options, items)
        if options.import_:
            known = import_table.read(options.import_, study.space, study.metric, study.goal, notices)
            study.budget = options.budget or 0  # a table alone is reported, nothing is trained
    most = untried(study.space, known)
    if study.budget > most:
        words = f"of the {size(study.space)} configurations of the space {most} are left"
        notices.append(f"note: {words}; the budget is {most}, not {study.budget}")
        study.budget = int(most)
    check_method(study, known=bool(known))
    return study, notices, [event for trial in known for event in ledger.imported_events(trial)]


def _refined(named: str, options: Options, items: Sequence[str]) -> tuple[Study, list[str], list[Trial]]:
    """A study in the narrowed space around the best of the study `named`, which knows that one's trials.

    Raises:
        UserError: there is too little to narrow it by, or settings are given that the older study has decided.
    """
    from engine.search import refine
    from engine.search.model import surrogate

    late = [flag for flag in options.given() if flag not in ("--refine", *REFINED_BY)] + list(items)
    if late:
        raise UserError(f"{late[0]}: --refine keeps the older study's own; it takes {', '.join(REFINED_BY)}")
    old = ledger.read(find_study(named, options))
    space, first, known = refine.refined(old, surrogate.fitted(old))
    name = _folder_name(options.study or f"{old.name}-refined")
    root = options.root if options.study_root or options.study else old.folder.parent
    study = dataclasses.replace(
        old,
        folder=_free(root / name),
        name=name,
        space=space,
        first=first,
        trials=[],
        budget=options.budget or BUDGET,
        agents=options.agents or old.agents,
        method=options.method or old.method,
        seed=old.seed if options.seed is None else options.seed,
        early_stop=_rules(old.max_epochs)[options.early_stop] if options.early_stop else old.early_stop,
        runner=runner(options, old.runner),
        confirmation=Confirmation(options.confirm or 0),
    )
    return study, [f"note: {len(known)} trials of {old.folder} are known here"], known


def new_study(options: Options, items: Sequence[str]) -> tuple[Study, list[str]]:
    """A study from a sweep file and settings, without trials, and notices to print, one line each.

    Raises:
        UserError: whatever is wrong.
    """
    if options.objective and not options.sweep:
        raise UserError("--objective needs --sweep FILE: the space of the function's values")
    path = Path(options.sweep) if options.sweep else sweep.default_file(_preset(items))
    found = sweep.read(path, free_keys=bool(options.objective))
    if options.objective:
        start = _objective(options, found, items)
    else:
        start = _training(options, found, items)
    first, moved = _into_space(found.space, start.first)
    if not found.names_metric:
        moved.append(f"metric is not given: {start.metric}, {found.goal}")
    name = _folder_name(options.study or default_name(start.arguments, options.objective))
    study = Study(
        folder=_free(options.root / name),
        name=name,
        space=found.space,
        metric=start.metric,
        goal=found.goal,
        method=options.method or found.method,
        budget=options.budget or found.run_cap or BUDGET,
        agents=options.agents or 1,
        seed=_seed(options, found.fixed),
        max_epochs=start.epochs,
        early_stop=_early_stop(options, found.early_stop, start.epochs),
        arguments=start.arguments,
        first=first,
        objective=options.objective or "",
        runner=runner(options, Runner(fixed=found.fixed if options.objective else {})),
        confirmation=Confirmation(options.confirm or 0),
    )
    stopping.check(study.early_stop)
    return study, [*found.notices, *start.notices, *moved]


def _free(folder: Path) -> Path:
    """The folder, if no study lies there yet."""
    if (folder / ledger.FILE).exists():
        raise ledger.exists(folder)
    return folder


def _seed(options: Options, fixed: dict[str, Any]) -> int:
    """The flag's, else the sweep file's single value, which may be no other than the flag's, else 0."""
    if options.seed is not None:
        return options.seed
    seed = fixed.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 10**9:
        raise UserError(f"parameters: seed {shown(seed)}: expected a whole number, 0 to 10^9")
    return seed


def _early_stop(options: Options, found: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The rule of the flag, else the sweep file's, else the learning-curve model's."""
    if options.objective and not options.epochs:
        if options.early_stop not in (None, "none") or found:
            raise UserError("early stopping with --objective needs --epochs N, the length of a whole curve")
        return {"type": "none"}
    if options.early_stop in (None, found.get("type")):
        return found or stopping.default_rule(epochs)
    return _rules(epochs)[options.early_stop]


def _rules(epochs: int) -> dict[str, dict[str, Any]]:
    return {"curve": stopping.default_rule(epochs), "hyperband": HYPERBAND, "none": {"type": "none"}}


def check_method(study: Study, known: bool) -> None:
    """Refuses a search that could only be called Bayesian: all its trials are asked before one has come back.

    Args:
        known: whether there are results already.
    """
    if study.method == GIVEN:
        raise UserError(f"{study.folder} is a comparison: `python -m engine.compare --resume --out {study.folder}`")
    if study.method == "grid" and size(study.space) == math.inf:
        raise UserError("--method grid: a parameter with a continuous range has no grid; give values or a q_ step")
    if study.method == "bayes" and study.agents >= study.budget > 1 and not known:
        raise UserError(
            f"--agents {study.agents} with --budget {study.budget}: no result comes back before the last trial is "
            f"asked, so this would be a random search; use --agents {max(1, study.budget // 2)} or fewer, "
            "--method prior (points near the preset's configuration) or --method random"
        )


def runner(options: Options, before: Runner) -> Runner:
    """How the driver runs a study: what is given, else what it was."""
    given = {name: getattr(options, name) for name in ("executor", "timeout", "stall", "baseline")}
    return dataclasses.replace(before, **{name: value for name, value in given.items() if value is not None})


def find_study(text: str, options: Options) -> Path:
    """The folder of the study that --resume, --refine or --report names: a path, a name below the root, or the newest.

    Raises:
        UserError: there is none.
    """
    if text != NEWEST:
        for folder in (Path(text), options.root / text):
            if (folder / ledger.FILE).is_file():
                return folder
        raise UserError(f"{text}: no study there (a folder with {ledger.FILE}), nor in {options.root}")
    files = sorted(options.root.glob(f"*/{ledger.FILE}"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(f"--resume: {options.root} holds no study; start one with --budget N")
    return files[-1].parent


def resume_changes(study: Study, options: Options, items: Sequence[str]) -> dict[str, Any]:
    """Fields of the study that a --resume changes, by name.

    Raises:
        UserError: something is given that the study has decided long ago, or a budget that takes trials away.
    """
    late = [flag for flag in options.given() if flag not in ("--resume", "--study-root", "--dry-run", *RESUMED_BY)]
    if late or items:
        known = f"{', '.join(RESUMED_BY[:-1])} and {RESUMED_BY[-1]}"
        raise UserError(f"{[*late, *items][0]}: a resumed study keeps its own; --resume takes {known}")
    if options.budget is not None and options.budget < len(study.searched):
        raise UserError(f"--budget {options.budget}: the study has {len(study.searched)} trials already")
    most = len(study.searched) + untried(study.space, study.trials)
    if options.budget is not None and options.budget > most:
        raise UserError(f"--budget {options.budget}: the space has no more than {most} configurations to search")
    asked: dict[str, Any] = {"budget": options.budget, "agents": options.agents}
    asked["runner"] = runner(options, study.runner)
    if options.confirm is not None:
        asked["confirmation"] = dataclasses.replace(study.confirmation, seeds=options.confirm)
    return {name: value for name, value in asked.items() if value not in (None, getattr(study, name))}


def _preset(items: Sequence[str]) -> str:
    """Name of the preset among `items`, without folder and ending."""
    names = [Path(item.partition("=")[2]).stem for item in items if item.startswith("preset=")]
    return names[-1] if names else DEFAULT_PRESET


def _folder_name(name: str) -> str:
    if "/" in name or name in (".", ".."):
        raise UserError(f"--study {name}: expected a plain folder name; the folder above it is --study-root")
    return name


def default_name(items: Sequence[str], objective: str | None) -> str:
    """Preset (or function) and UTC time, as runs are named."""
    stem = objective.rpartition(":")[2] if objective else _preset(items)
    now = datetime.datetime.now(datetime.UTC)
    return f"{stem}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"


def _training(options: Options, found: sweep.Sweep, items: Sequence[str]) -> Start:
    """The preset's own values of the searched keys; every bound has been tried by then."""
    for item in items:
        key, equals, _ = item.partition("=")
        if equals and key in OWN:
            raise UserError(f"{item}: the search sets {key} for every trial; use {OWN[key]}")
    # The sweep file's single values, then the command line's, which win.
    arguments = [*(f"{key}={shown(value)}" for key, value in found.fixed.items() if key not in OWN), *items]
    if options.epochs:
        raise UserError("--epochs is for --objective; a training's length is trainer.max_epochs=N")
    config, _ = load_config(arguments)
    first = sweep.preset_values(found.space, arguments)
    given = {item.partition("=")[0] for item in arguments}
    notices = []
    for parameter in found.space.parameters:
        notices += _check_parameter(parameter, arguments, config)
        if parameter.name in given:
            notices.append(f"{parameter.name} is searched: the value given is where trial 0 starts")
    selected = key_of("hmean", config.eval.select)
    # a default space is about what it searches, not about how a run's best is picked: its metric is the preset's
    metric = found.metric if options.sweep and found.names_metric else f"val/{selected}"
    key = field_of(metric)
    if key not in SCORES:
        raise UserError(f"metric {metric}: a training measures {', '.join(f'val/{name}' for name in SCORES)}")
    if key in ("hmean", "hmean_macro") and key != selected:
        notices.append(f"note: the search goes by {metric}, a trial's best checkpoint by val/{selected}")
    others = [item for item in arguments if item.partition("=")[0] not in found.space.names]
    return Start(first, config.trainer.max_epochs, metric, others, notices)


def _check_parameter(parameter: Parameter, arguments: list[str], config: Config) -> list[str]:
    """Tries a parameter's bounds (or values) and one in between; returns cautions."""
    if parameter.name in OWN or parameter.name == "preset":
        raise UserError(f"{parameter.name} cannot be searched: the search sets it for every trial")
    tried = list(parameter.values) or [parameter.value(0.0), parameter.value(1.0), parameter.value(0.37)]
    idle = []
    for value in tried:
        try:
            trial, _ = load_config([*arguments, f"{parameter.name}={shown(value)}"])
        except UserError as error:
            raise UserError(f"the space of the search: {error}") from None
        idle.append([line for line in warnings(trial) if line.startswith(f"{parameter.name}=") and "no effect" in line])
    lines = [found[0] for found in idle if found]
    # a value that equals the preset's is never reported, so the others decide
    if len(lines) >= len(tried) - 1 and lines:
        return [f"WARNING: searching {parameter.name} is of no use with these settings: {lines[0]}"]
    return []


def _objective(options: Options, found: sweep.Sweep, items: Sequence[str]) -> Start:
    """Where the search of a function starts: `key=value` of searched keys, else the space's middle."""
    space = found.space
    module, _ = objective.names(options.objective or "")
    try:  # it is looked for only: imported it is in the trials, whatever it needs
        known = importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        known = False
    if not known:
        words = f"there is no module {module} here; start where it can be imported"
        raise UserError(f"--objective {options.objective}: {words}")
    middle = space.values([0.5] * len(space.parameters))
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or key not in space.names:
            raise UserError(f"{item}: with --objective only searched keys can be given, as the start: {space.names}")
        parameter = next(p for p in space.parameters if p.name == key)
        middle[key] = _number_or_text(parameter, text)
        parameter.unit(middle[key])
    return Start(middle, options.epochs or 1, found.metric, [], [])


def _number_or_text(parameter: Parameter, text: str) -> Any:
    if parameter.kind == "choice":
        return next((value for value in parameter.values if shown(value) == text), text)
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{parameter.name}={text}: expected a number") from None
    if parameter.kind == "int" and not number.is_integer():
        raise UserError(f"{parameter.name}={text}: expected a whole number")
    return int(number) if number.is_integer() and parameter.kind != "float" else number


def _into_space(space: Space, first: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The first configuration, moved to the nearest values of the space where it lies outside, with notices."""
    inside, notices = {}, []
    for parameter in space.parameters:
        value = first[parameter.name]
        if parameter.kind == "choice":
            nearest = value if parameter.contains(value) else parameter.values[0]
        elif parameter.kind == "float" and parameter.contains(value) and not parameter.step:
            nearest = value  # with all its digits
        else:
            nearest = parameter.value(parameter.unit(value))  # of the parameter's own type: no 15.0 for 15
        inside[parameter.name] = nearest
        if nearest != value:
            notices.append(
                f"note: {parameter.name}={shown(value)} lies outside the space; trial 0 has {shown(nearest)}"
            )
    return inside, notices


def describe(study: Study) -> list[str]:
    """The plan in a few lines, for --dry-run and the start of a search."""
    trials = f"{study.budget} trials, {study.method}" if study.budget else "a table alone"
    lines = [f"study {study.folder}: {trials}, {study.goal} {study.metric}"]
    for p in study.space.parameters:
        span = ", ".join(map(shown, p.values)) if p.values else f"{p.low:g} to {p.high:g} {p.scale}"
        lines.append(f"  {p.name}: {span}; trial 0 has {shown(study.first[p.name])}")
    stop = ", ".join(f"{key} {value}" for key, value in study.early_stop.items() if key != "type")
    lines.append(f"  early stop: {study.early_stop.get('type', 'none')}{f' ({stop})' if stop else ''}")
    return lines
