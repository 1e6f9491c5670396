"""The flags of `python -m engine.search`; everything else on its command line is `key=value`.

options, items = parse(["--budget", "8", "--agents=2", "preset=demo"])
options.budget, items                                # 8, ["preset=demo"]
"""

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import Any

from engine.cli import plain_settings
from engine.config.load import preset_names
from engine.console import did_you_mean
from pipelines.errors import Parser, UserError
from pipelines.options import check_options, option

METHODS = ("bayes", "prior", "random", "grid")
EARLY_STOPS = ("curve", "hyperband", "none")
NEWEST = "newest"  # what --resume without a study stands for


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags as given. None: a new study takes its sweep file's or the engine's default, a resumed one its own."""

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

    @property
    def root(self) -> Path:
        """Folder that holds the studies."""
        return Path(self.study_root or "studies")

    def given(self) -> list[str]:
        """Flags that were given, as they are written."""
        return [flag for flag, field in FIELDS.items() if getattr(self, field.name) not in (None, False)]


FIELDS = {f"--{f.name.rstrip('_').replace('_', '-')}": f for f in dataclasses.fields(Options)}


def parser(describe: str = "") -> Parser:
    """The flags, as the fields of `Options` describe them.

    Args:
        describe: text on top of `--help`.
    """
    presets = ", ".join(preset_names())
    made = Parser(
        prog="python -m engine.search", description=describe, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [flags] [preset=NAME] [key=value ...]", allow_abbrev=False,
        epilog=f"presets (preset=NAME or preset=FILE.yaml): {presets}\n"
        "key=value settings go to every trial; `python -m engine.train --help` lists them",
    )  # fmt: skip
    made.add_argument("items", nargs="*", help=argparse.SUPPRESS)
    for flag, field in FIELDS.items():
        if field.type is bool:
            made.add_argument(flag, action="store_true", help=field.metadata["help"])
            continue
        kind, choices = typing.get_args(field.type)[0], field.metadata["choices"]
        without: dict[str, Any] = {"nargs": "?", "const": NEWEST} if flag == "--resume" else {}
        metavar = None if choices else flag[2:].upper()
        made.add_argument(
            flag, dest=field.name, type=kind, choices=choices, metavar=metavar, help=field.metadata["help"], **without
        )
    return made


def parse(argv: list[str], describe: str = "") -> tuple[Options, list[str]]:
    """Splits a command line; `--help` is answered here.

    Returns:
        the flags, and the other items in order (`preset=... key=value`).

    Raises:
        UserError: unknown flag, missing or wrong value.
    """
    words = plain_settings(argv, FIELDS)
    for place, word in enumerate(words[:-1]):
        if word == "--resume" and "=" in words[place + 1]:  # a setting is no study's name
            words[place] = f"--resume={NEWEST}"
    found, unknown = parser(describe).parse_known_intermixed_args(words)
    values = vars(found)
    items = values.pop("items")
    if unknown:
        flag = unknown[0].partition("=")[0]
        hint = did_you_mean(flag, FIELDS) or f"flags are {', '.join(FIELDS)}"
        raise UserError(f"unknown flag {flag}; {hint}")
    for word in items:
        if "=" not in word:
            raise UserError(f"unexpected argument {word!r}: settings are written key=value, flags begin with --")
    empty = [flag for flag, field in FIELDS.items() if values[field.name] == ""]
    if empty:
        raise UserError(f"{empty[0]}: expected a text")
    options = Options(**values)
    check_options(options, "--")
    return options, items
