"""The file that names an ensemble: which checkpoints, views and settings.

    kind: dbnet-ensemble        OUT/ensemble.yaml
    version: 1
    members:
    - checkpoint: ../runs/a/checkpoints/step_00000120     relative to the file, or absolute
      canvas: [1280, 1280]
      weight: 1.0
    flips: h                    none, h, v or hv
    scales: [1.0, 1.25]
    post: {bin_thresh: 0.3}     settings of the mean map's regions; those left out are the first member's

`save` writes it and `read` checks every value of it. `engine.detection.open` opens the detectors that it names.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from engine import files
from engine.checkpoint import store
from engine.config import Config, changed
from engine.config.load import from_dict, to_dict
from engine.detection.ensemble import FLIPS, Ensemble
from engine.files import replace_text
from pipelines.errors import UserError

FILE, KIND, VERSION = "ensemble.yaml", "dbnet-ensemble", 1
MOST_MEMBERS, LEAST_SCALE, MOST_SCALE = 64, 0.25, 4.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a member lies."""

    name: str  # for the table
    path: Path  # of the checkpoint
    weight: float = 1.0
    canvas: tuple[int, ...] = ()  # () = its own


def joint_config(ensemble: Ensemble, post: dict | None = None) -> Config:
    """The first member's settings on the reference canvas: what the mean is judged with."""
    config = ensemble.members[0].config
    config = changed(config, {"eval.image_size": list(ensemble.canvas)})
    if not post:
        return config
    values = to_dict(config)
    return from_dict(values | {"post": values["post"] | post})


def save(folder: Path, ensemble: Ensemble, places: Sequence[Place], config: Config) -> Path:
    """Writes `folder/ensemble.yaml`, whole or not at all. Checkpoints below the folder are named relative to it."""
    root = folder.resolve()
    paths = [place.path.resolve() for place in places]
    members = [
        {
            "checkpoint": str(path.relative_to(root) if path.is_relative_to(root) else path),
            "canvas": list(member.canvas),
            "weight": float(member.weight),
        }
        for path, member in zip(paths, ensemble.members, strict=True)
    ]
    values = {"kind": KIND, "version": VERSION, "members": members, "flips": ensemble.flips}
    values |= {"scales": list(ensemble.scales), "post": to_dict(config.post)}
    replace_text(folder / FILE, yaml.safe_dump(values, sort_keys=False))
    return folder / FILE


def replace_post(path: Path, post: dict) -> None:
    """Replaces the post settings of an ensemble's file; a kill leaves the old one or the new."""
    values = files.yaml_values(files.read_text(path)) | {"post": post}
    replace_text(path, yaml.safe_dump(values, sort_keys=False))


def is_ensemble(path: str | Path) -> bool:
    """Whether a path means an ensemble's file, or the folder it lies in; a run folder or checkpoint stays one."""
    path = Path(path)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return True
    return (path / FILE).is_file() and not any((path / name).exists() for name in ("checkpoints", "manifest.json"))


def read(path: str | Path) -> tuple[list[Place], str, tuple[float, ...], dict]:
    """Members, flips, scales and post settings of an ensemble's file (or its folder), every value checked.

    Raises:
        UserError: not such a file, or a value in it is wrong.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        values = files.yaml_values(files.read_text(path))
        if not isinstance(values, dict) or values.get("kind") != KIND or values.get("version") != VERSION:
            raise UserError(f"is no ensemble file (kind: {KIND}, version: {VERSION}); engine.ensemble --out writes one")
        if unknown := set(values) - {"kind", "version", "members", "flips", "scales", "post"}:
            raise UserError(f"has no key {min(map(str, unknown))}")
        places = _places(values.get("members"), path.parent)
        flips, scales = check_views(values.get("flips", "none"), values.get("scales", [1.0]))
        post = values.get("post") or {}
        if not isinstance(post, dict) or not all(isinstance(key, str) for key in post):
            raise UserError("post must be settings and their values")
        from_dict({"post": post})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return places, flips, scales, post


def _places(members: object, folder: Path) -> list[Place]:
    if not isinstance(members, list) or not 1 <= len(members) <= MOST_MEMBERS:
        raise UserError(f"members must be a list of 1 to {MOST_MEMBERS}")
    places = []
    for number, item in enumerate(members, 1):
        entry: dict[str, Any] = {"canvas": [], "weight": 1.0} | item if isinstance(item, dict) else {}
        if set(entry) != {"checkpoint", "canvas", "weight"} or not isinstance(entry["checkpoint"], str):
            raise UserError(f"member {number}: expected checkpoint: PATH, and canvas and weight if any")
        if not _is_number(entry["weight"]) or not entry["weight"] > 0:
            raise UserError(f"member {number}: weight must be a number above 0")
        try:
            canvas = from_dict({"eval": {"image_size": entry["canvas"]}}).eval.image_size
        except UserError as error:
            raise UserError(f"member {number}: canvas must be [height, width] ({error})") from None
        path = store.locate(folder / entry["checkpoint"], key="member")
        places.append(Place(entry["checkpoint"], path, float(entry["weight"]), tuple(canvas)))
    return places


def check_views(flips: object, scales: object) -> tuple[str, tuple[float, ...]]:
    """Flips and scales as an Ensemble takes them.

    Raises:
        UserError: unknown flips, no numbers, beyond 0.25 to 4, twice the same, or 1 is missing.
    """
    if not isinstance(flips, str) or flips not in FLIPS:
        raise UserError(f"flips={flips}: allowed is {', '.join(FLIPS)}")
    if not isinstance(scales, (list, tuple)) or not all(_is_number(scale) for scale in scales):
        raise UserError(f"scales={scales}: expected numbers, e.g. 0.8,1,1.25")
    numbers = tuple(float(scale) for scale in scales)
    if not all(LEAST_SCALE <= number <= MOST_SCALE for number in numbers):
        raise UserError(f"scales={scales}: each must be {LEAST_SCALE:g} to {MOST_SCALE:g}")
    if 1.0 not in numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"scales={scales}: 1 must be among them, and none twice")
    return flips, numbers


def _is_number(value: object) -> bool:
    """Whether it is a number that a float holds; false for NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
