"""What a tuning leaves behind: the settings in the checkpoint (or in the ensemble's file), and tune.json beside them.

    apply(path, post, {"hmean": ...})

No training may be at work in the checkpoint's run meanwhile: `alone` keeps it away.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from engine.checkpoint import store
from engine.config import PostConfig
from engine.config.load import from_dict, to_yaml
from engine.detection import ensemble_file
from engine.files import replace_text
from engine.run.folder import InUse, Lock
from pipelines.errors import UserError

NAME = store.TUNED


def run_folder(path: Path) -> Path | None:
    """The run that a checkpoint belongs to; None for a checkpoint on its own."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "checkpoints" else None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps trainings away from the checkpoint's run.

    Raises:
        UserError: one is at work in it.
    """
    folder = run_folder(path)
    try:
        held = contextlib.closing(Lock(folder)) if folder else contextlib.nullcontext()
    except InUse as error:
        words = str(error).partition(": give another")[0]
        raise UserError(f"{words}: tune it when that has ended, or with --no-write") from None
    with held:
        yield


def folder_of(path: Path) -> Path:
    """Where the record of a checkpoint, or of an ensemble's file, lies."""
    return path.resolve().parent if path.is_file() else path.resolve()


def apply(path: Path, post: PostConfig, record: dict) -> None:
    """Writes settings into a checkpoint's config.yaml, or an ensemble's file, and tune.json beside it.

    A kill leaves the old or the new.

    Args:
        path: the checkpoint, or a link to it, or ensemble.yaml.
        post: the settings; all others stay as they were saved.
        record: JSON-ready.

    Raises:
        UserError: a training is at work in the run. OSError: it cannot be written.
    """
    path, values = path.resolve(), dataclasses.asdict(post)
    with alone(path):
        if path.is_file():
            ensemble_file.replace_post(path, values)
        else:
            store.replace_settings(path, to_yaml(from_dict(store.load_settings(path) | {"post": values})))
        replace_text(folder_of(path) / NAME, json.dumps(record, indent=1) + "\n")
