"""What a tuning leaves behind: the settings in the checkpoint, and tune.json beside them."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from engine import checkpoint
from engine.config import PostConfig, from_dict, to_yaml
from engine.lock import InUse, Lock
from engine.runlog import write_text
from pipelines.errors import UserError

NAME = "tune.json"


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


def apply(path: Path, post: PostConfig, record: dict) -> None:
    """Writes settings into a checkpoint's config.yaml, and tune.json beside it. A kill leaves the old or the new.

    Args:
        path: the checkpoint, or a link to it.
        post: the settings; all others stay as they were saved.
        record: JSON-ready.

    Raises:
        UserError: a training is at work in the run. OSError: it cannot be written.
    """
    path = path.resolve()
    values = checkpoint.load_settings(path) | {"post": dataclasses.asdict(post)}
    with alone(path):
        checkpoint.replace_settings(path, to_yaml(from_dict(values)))
        write_text(path / NAME, json.dumps(record, indent=1) + "\n")
