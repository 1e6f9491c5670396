"""A trained detector by its name: a run folder, a checkpoint, or the file of an ensemble.

    opened = open_detector("runs/mine", ["post.bin_thresh=0.2"])     # settings over the detector's own
    forward = opened.load()                                          # the weights, on the device
    detect_pages(forward, pages, opened.config, opened.ranks)

Every command that names a detector opens it here, so all of them take the same names.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from engine import cli, distributed
from engine.checkpoint import store
from engine.config import Config, changed
from engine.config.load import load_config, shown, split_extra, to_dict
from engine.detection import ensemble_file
from engine.detection.ensemble import Ensemble, Member
from engine.detection.ensemble_file import Place, joint_config
from engine.distributed import Ranks
from engine.model import DBNet, build_model
from engine.model.forward import check_kernels
from pipelines.errors import UserError


@dataclasses.dataclass(frozen=True)
class Opened:
    """A detector that was found by its name."""

    config: Config
    path: Path  # of the checkpoint, as it was named (`best` may be a link), or of the ensemble's file
    ranks: Ranks
    load: Callable[[], DBNet | Ensemble]  # the detector in evaluation mode on the device
    files: list[Path]  # what decides its maps


def open_detector(named: str | Path, settings: Sequence[str], ranks: Ranks | None = None) -> Opened:
    """The detector of a name.

    Args:
        named: run folder (its best checkpoint, else its last), checkpoint, or an ensemble's file or folder.
        settings: `section.key=value` each, over the detector's own.
        ranks: where it runs; None = as trainer.device says, and the ranks start here.

    Raises:
        UserError: there is none, it is damaged, or a setting is wrong.
    """
    if ensemble_file.is_ensemble(named):
        return _open_ensemble(Path(named), settings, ranks)
    path = store.locate(named)
    found = path.resolve()  # of a run that goes on, `best` may be another one a moment later
    config, _ = load_config(list(settings), base=store.load_settings(found))
    ranks = ranks or distributed.start(config.trainer.device, config.trainer.threads)
    return Opened(config, path, ranks, partial(load_detector, found, config, ranks), _weights(found))


def is_detector(path: str | Path) -> bool:
    """Whether a path looks like a run folder, a checkpoint or an ensemble; nothing is read."""
    inside = any((Path(path) / name).exists() for name in ("manifest.json", "checkpoints"))
    return inside or ensemble_file.is_ensemble(path)


def _open_ensemble(named: Path, settings: Sequence[str], given: Ranks | None) -> Opened:
    device = split_extra(list(settings), {"trainer.device": "auto"})[0]["trainer.device"]
    ranks = given or distributed.start(device)
    ensemble, config = open_ensemble(named, ranks, settings)
    if given is None:
        distributed.limit_threads(config.trainer.threads)
    path = named / ensemble_file.FILE if named.is_dir() else named
    weights = [file for place in ensemble_file.read(path)[0] for file in _weights(place.path)]
    return Opened(config, path, ranks, lambda: ensemble, [path, *weights])


def open_ensemble(path: str | Path, ranks: Ranks, settings: Sequence[str] = ()) -> tuple[Ensemble, Config]:
    """The ensemble of a file that `engine.ensemble --out` wrote, and the settings to detect with.

    Give both to whatever takes a model and its settings: `detect_pages(ensemble, pages, config, ranks)`,
    `engine.detection.maps.prob_batches`. `Ensemble.maps` takes images that are on its canvases already.

    Args:
        path: ensemble.yaml, or the folder it lies in.
        ranks: where it runs.
        settings: key=value over every member's own and the file's.

    Raises:
        UserError: the file or a checkpoint is missing, damaged or wrong.
    """
    places, flips, scales, post = ensemble_file.read(path)
    ensemble = Ensemble([open_member(place, settings, ranks) for place in places], flips, scales)
    config = joint_config(ensemble, post)
    own = [item for item in settings if item.startswith("post.")]  # the command line has the last word
    return ensemble, load_config(own, base=to_dict(config))[0]


def open_member(place: Place, settings: Sequence[str], ranks: Ranks) -> Member:
    """A member of an ensemble with its weights on the device; `settings` (key=value) override its own."""
    canvas = [f"eval.image_size={shown(place.canvas)}"] if place.canvas else []
    config, _ = load_config([*canvas, *settings], base=store.load_settings(place.path))
    return Member(place.name, config, load_detector(place.path, config, ranks), place.weight)


def load_detector(path: Path, config: Config, ranks: Ranks) -> DBNet:
    """The detector of a checkpoint in evaluation mode on the device; averaged weights if there are any and eval.ema."""
    check_kernels(config, ranks.device)
    # Weights come from the checkpoint, so the encoder must not ask for the hub or a file of its own.
    model = build_model(changed(config, {"models.encoder.weights": "", "models.encoder.freeze": "none"}))
    tensors = store.load_judged(path, config.eval.ema)
    if config.trainer.precision == "float64":
        model = model.double()
    store.load_model(model, tensors, path)
    return model.to(ranks.device).eval()


def _weights(path: Path) -> list[Path]:
    """The files of a checkpoint that `load_detector` may read; which of them, eval.ema decides."""
    return [path / f"{part}.safetensors" for part in ("ema", "model") if (path / f"{part}.safetensors").exists()]


def checkpoint_of(
    argv: list[str], extra: Mapping[str, str] | None = None, describe: str = ""
) -> tuple[str, list[str], dict[str, str]]:
    """Reads a command line with `checkpoint=PATH`, `--checkpoint PATH` or a bare PATH.

    Answers `--help` and `--print-config` itself and exits.

    Args:
        argv, extra, describe: as for `engine.cli.parse`.

    Returns:
        what `checkpoint` names and the settings, both for `open_detector`; values of the extra keys.

    Raises:
        UserError: no checkpoint is named, an unknown key.
    """
    own = {"checkpoint": "", **(extra or {})}
    argv = _as_setting(argv)
    if cli.wants_help(argv):
        cli.parse(argv, own, describe)
    flags = [item for item in argv if item in cli.FLAGS]
    extras, settings = split_extra([item for item in argv if item not in flags], own)
    named = extras.pop("checkpoint")
    if not named:
        raise UserError("checkpoint=PATH is missing: name a run folder (runs/NAME) or one of its checkpoints")
    if "--print-config" in flags:
        cli.parse(argv, own, describe, base=store.load_settings(store.locate(named)))
    if "--dry-run" in flags:
        raise UserError("--dry-run belongs to engine.train; an evaluation of few pages is one already")
    return named, settings, extras


def _as_setting(argv: list[str]) -> list[str]:
    """The arguments with the checkpoint as `checkpoint=PATH`, however it was named.

    Raises:
        UserError: a bare PATH beside another.
    """
    argv = cli.checkpoints(argv)
    bare = [item for item in argv if item[:1] not in ("-", "+", "~") and ("=" not in item or Path(item).exists())]
    named = [item.removeprefix(cli.NAMED) for item in argv if item.startswith(cli.NAMED)]
    if len(bare) > 1 or (bare and named):
        raise UserError(f"name one checkpoint, not {' and '.join([*named, *bare])}")
    return [cli.NAMED + item if item in bare else item for item in argv]
