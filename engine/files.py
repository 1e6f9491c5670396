"""Small files from outside (settings, sweeps, tables, a checkpoint's JSON): bounded, parsed without running code.

Whatever is wrong with one is a UserError in a few words; callers put the file's name in front.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import UserError

MOST_BYTES = 1 << 20  # a preset has 3 kB, a sweep file less; a megabyte of YAML takes 0.3 s
# Nodes once aliases are written out: nine lines of "billion laughs" would be 10^9. A preset has 200.
MOST_NODES = 10_000
# A wrong tag or number (`!!int x`, a date of month 99, 5,000 digits, 900 levels) leaves the parsers as one of these.
FAULTS = (
    yaml.YAMLError,
    OmegaConfBaseException,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Contents of a regular file of at most `most` bytes (a pipe or a device would never end).

    Raises:
        UserError: it cannot be read, is no regular file, or is larger.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError("is no regular file")
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the name
        raise error if isinstance(error, UserError) else UserError(f"cannot be read ({error})") from None
    if len(data) > most:
        raise UserError(f"is larger than the {most} bytes allowed for such a file")
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """As `read_bytes`, UTF-8 with or without its mark."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot be read (not UTF-8 text, byte {error.start})") from None


def yaml_values(text: str) -> Any:
    """YAML -> plain values; `1e-5` is a number, tags of Python objects are refused, interpolation is not resolved.

    Raises:
        UserError: no YAML, or one that would grow beyond MOST_NODES.
    """
    try:
        return OmegaConf.to_container(OmegaConf.create(text, max_yaml_expanded_nodes=MOST_NODES))
    except FAULTS as error:
        raise UserError(f"not a YAML file ({' '.join(str(error).split())[:200] or type(error).__name__})") from None


def json_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        UserError: it cannot be read, is too large, no JSON, or no object.
    """
    text = read_text(path, most)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is no JSON ({str(error)[:100]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path.name} holds no JSON object")
    return values


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one move: a reader sees the old text or the new one, a full disk leaves the old one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
