"""A checkpoint or an ensemble by name: its settings, its weights, its files"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from engine import cli, distributed
from engine.checkpoint import store
from engine.config import Config
from engine.config.load import load_config, split_extra
from engine.detection import ensemble_file
from engine.detection.pages import load_detector
from engine.distributed import Ranks
from pipelines.errors import UserError


def checkpoint_settings(argv: list[str], extra: dict[str, str], describe: str) -> tuple[Config, dict[str, str], Path]:
    """Parses `checkpoint=PATH` and overrides; the base is the checkpoint's own configuration.

    Raises:
        UserError: no checkpoint named, none found, or it is damaged.
    """
    own = {"checkpoint": "", **extra}
    if cli.wants_help(argv):
        cli.parse(argv, own, describe)
    named = split_extra([item for item in argv if not item.startswith("--")], own)[0]["checkpoint"]
    if not named:
        raise UserError("checkpoint=PATH is missing: name a run folder (runs/NAME) or one of its checkpoints")
    path = store.locate(named)
    config, extras, dry_run = cli.parse(argv, own, describe, base=store.load_settings(path))
    if dry_run:
        raise UserError("--dry-run belongs to engine.train; an evaluation of few pages is one already")
    return config, extras, path


@dataclasses.dataclass(frozen=True)
class Opened:
    """What predicts: a checkpoint, or the ensemble that a file names."""

    config: Config
    ranks: Ranks
    load: Callable[[], Callable]  # the detector on the device
    files: list[Path]  # what decides its maps


def open_named(named: str, settings: list[str]) -> Opened:
    """The checkpoint or the ensemble of a name, with `settings` over its own.

    Raises:
        UserError: there is none, it is damaged, or a setting is wrong.
    """
    if ensemble_file.is_ensemble(named):
        ranks = distributed.start(split_extra(settings, {"trainer.device": "auto"})[0]["trainer.device"])
        ensemble, config = ensemble_file.load(named, ranks, settings)
        distributed.limit_threads(config.trainer.threads)
        file = Path(named) / ensemble_file.FILE if Path(named).is_dir() else Path(named)
        files = [file, *(weights for place in ensemble_file.read(named)[0] for weights in _weights(place.path))]
        return Opened(config, ranks, lambda: ensemble, files)
    path = store.locate(named).resolve()  # of a run that goes on, `best` may be another one a moment later
    config, _ = load_config(settings, base=store.load_settings(path))
    ranks = distributed.start(config.trainer.device, config.trainer.threads)
    return Opened(config, ranks, lambda: load_detector(path, config, ranks), _weights(path))


def _weights(path: Path) -> list[Path]:
    """The files of a checkpoint that `load_detector` may read; which of them, eval.ema decides."""
    return [path / f"{part}.safetensors" for part in ("ema", "model") if (path / f"{part}.safetensors").exists()]
