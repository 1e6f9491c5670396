"""The flags of `python -m engine.search`: `--flag value` or `--flag=value`; everything else is `key=value`.

None = not given: a new study then takes its sweep file's or the engine's default, a resumed one its own.
"""

import dataclasses
import difflib
import math
import typing
from pathlib import Path
from typing import Any

from engine.config.load import preset_names
from pipelines.errors import UserError
from pipelines.options import allowed, option

METHODS = ("bayes", "prior", "random", "grid")
EARLY_STOPS = ("curve", "hyperband", "none")
NEWEST = "newest"  # what --resume without a study stands for
SWITCHES = ("dry_run", "help")


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags as given."""

    budget: int | None = option(None, "number of trials, early-stopped ones included (default 8)", 1, 10000)
    agents: int | None = option(None, "trials at a time; each gets its share of the GPUs (default 1)", 1, 1000)
    sweep: str | None = option(None, "W&B sweep file with the space (default: the preset's own, or the published one)")
    study: str | None = option(None, "name of the new study (default: preset and UTC time)")
    resume: str | None = option(None, "go on with a study: name or folder, nothing = the newest; --budget extends it")
    refine: str | None = option(None, "new study in a narrowed space around this study's best, its trials kept")
    confirm: int | None = option(
        None, "after the budget: new seeds to run the two best and the preset's own with (default 0)", 0, 100
    )
    import_: str | None = option(None, "table of finished trials to start from; without --budget it is only reported")
    baseline: float | None = option(None, "value to beat, for the report of trials without the preset's", -1e9, 1e9)
    report: str | None = option(None, "write the report of a study anew and leave")
    objective: str | None = option(None, "module:function to search instead of a training: f(values, report) -> value")
    epochs: int | None = option(None, "epochs that --objective reports at most; early stopping needs it", 1, 100000)
    executor: str | None = option(
        None, "where trials run: local, ray[:gpus=K,...], slurm[:partition=P,...] (default local)"
    )
    seed: int | None = option(None, "seed of the search and of its trainings (default 0)", 0, 10**9)
    timeout: float | None = option(None, "minutes after which a trial is given up, 0 = never (default)", 0.0, 1e6)
    stall: float | None = option(None, "minutes without an evaluation after which it is, 0 = never (default)", 0.0, 1e6)
    early_stop: str | None = option(None, "rule that ends poor trials (default: the sweep file's)", choices=EARLY_STOPS)
    method: str | None = option(None, "how configurations are chosen (default: the sweep file's)", choices=METHODS)
    study_root: str | None = option(None, "folder that holds the studies (default studies)")
    dry_run: bool = option(False, "check everything, print the plan, start nothing")
    help: bool = option(False, "show this text")

    @property
    def root(self) -> Path:
        """Folder that holds the studies."""
        return Path(self.study_root or "studies")

    def given(self) -> list[str]:
        """Flags that were given, as they are written."""
        return [flag_of(f) for f in dataclasses.fields(self) if getattr(self, f.name) not in (None, False)]


FIELDS = {f"--{f.name.rstrip('_').replace('_', '-')}": f for f in dataclasses.fields(Options)}


def flag_of(field: dataclasses.Field) -> str:
    """`--early-stop` of the field early_stop."""
    return next(flag for flag, known in FIELDS.items() if known.name == field.name)


def parse(argv: list[str]) -> tuple[Options, list[str]]:
    """Splits a command line.

    Returns:
        the flags, and the other items in order (`preset=... key=value`).

    Raises:
        UserError: unknown flag, missing or wrong value.
    """
    values: dict[str, Any] = {}
    rest, items = [], list(argv)
    while items:
        item = items.pop(0)
        if not item.startswith("-"):
            if "=" not in item:
                raise UserError(f"unexpected argument {item!r}: settings are written key=value, flags begin with --")
            rest.append(item)
            continue
        flag, equals, text = item.partition("=")
        flag = {"-h": "--help"}.get(flag, flag)
        if flag not in FIELDS:
            raise _unknown(flag)
        field = FIELDS[flag]
        if field.name in SWITCHES:
            if equals:
                raise UserError(f"{item}: {flag} takes no value")
            values[field.name] = True
            continue
        if not equals:
            text = _next_value(flag, items)
        values[field.name] = value_of(flag, text, field)
    return Options(**values), rest


def _next_value(flag: str, items: list[str]) -> str:
    """Takes the value that stands after a flag; only --resume can do without."""
    if items and not items[0].startswith("--") and not (flag == "--resume" and "=" in items[0]):
        return items.pop(0)
    if flag == "--resume":
        return NEWEST
    raise UserError(f"{flag} needs a value: {flag} VALUE or {flag}=VALUE")


def _unknown(flag: str) -> UserError:
    near = difflib.get_close_matches(flag, FIELDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"flags are {', '.join(FIELDS)}"
    return UserError(f"unknown flag {flag}; {hint}")


def value_of(flag: str, text: str, field: dataclasses.Field) -> Any:
    """The text of a flag as its type, within its range.

    Raises:
        UserError: it is not; the message begins with `flag` and the text.
    """
    kind = typing.get_args(field.type)[0]
    low, high, choices = (field.metadata[name] for name in ("low", "high", "choices"))
    words = allowed(field.metadata)
    if kind is str:
        if not text or (choices and text not in choices):
            near = difflib.get_close_matches(text, choices or (), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{flag} {text}: expected {words or 'a text'}{hint}")
        return text
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"{flag} {text}: expected a {'whole ' if kind is int else ''}number, {words}") from None
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"{flag} {text}: allowed is {words}")
    return value


def help_text(describe: str) -> str:
    """What `--help` prints."""
    lines = []
    for flag, field in FIELDS.items():
        choices = field.metadata["choices"]
        words = f" ({', '.join(choices)})" if choices else ""
        lines.append(f"  {flag:<14}{field.metadata['help']}{words}")
    return (
        f"{describe.strip()}\n\nflags (--flag VALUE or --flag=VALUE):\n" + "\n".join(lines) + "\n\n"
        f"presets (preset=NAME or preset=FILE.yaml): {', '.join(preset_names())}\n"
        "key=value settings go to every trial; `python -m engine.train --help` lists them\n"
    )
