"""Files: small ones from outside read without trust, JSON lines, text replaced in one move, locks.

    values = yaml_values(read_text(Path("sweep.yaml")))
    replace_text(Path("summary.json"), json.dumps(summary))

What comes from outside (settings, sweeps, tables, a checkpoint's JSON) is bounded and parsed without running code.
Whatever is wrong with it is a UserError in a few words; callers put the file's name in front.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import UserError

MOST_BYTES = 1 << 20  # a preset has 3 kB, a sweep file less; a megabyte of YAML takes 0.3 s
# Nodes once aliases are written out: nine lines of "billion laughs" would be 10^9. A preset has 200.
MOST_NODES = 10_000
LONGEST_LINE = 1 << 20  # of JSON lines: a record of metrics.jsonl has 500 bytes, a page's regions 100,000
NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
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


def json_record(data: bytes | str) -> dict[str, Any] | None:
    """The object of a line or of a small file; None for what is torn or holds no object."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def owner_record(path: Path) -> dict[str, Any]:
    """A small JSON file that others write, such as a lock's owner; {} where there is none or it is being written."""
    try:  # opened anew each time: NFS shows another host's writes only to those who open
        return json_record(path.read_bytes()) or {}
    except OSError:
        return {}


def write_record(descriptor: int, record: dict[str, Any]) -> None:
    """Writes an open lock's owner in place, one line: a rename would take the flock's file away from its holder."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(record) + "\n").encode(), 0)
    os.fsync(descriptor)


def json_lines(path: Path, offset: int = 0, torn: bool = True) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(byte at which the line ends, its object) of every line from byte `offset` on, in constant memory.

    A line torn by a kill or a full disk has None for an object, as have the parts of one above LONGEST_LINE.

    Args:
        torn: whether a last line without its end is among them. Without it a reader that follows a growing file
            goes on at the last number it got.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            if not torn and not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                return
            offset += len(line)
            yield offset, json_record(line)


@contextlib.contextmanager
def replacing(path: Path, errors: str = "strict", draft: str = "") -> Iterator[TextIO]:
    """A text file (UTF-8, line ends as written) that takes its name in one move when the block ends well.

    Until then, and for ever if the block fails or the disk is full, readers see the old one.

    Args:
        errors: for what UTF-8 cannot hold, as `open` takes it.
        draft: first letters of the temporary name beside it; "" = a dot and the file's own name.
    """
    name = (draft or f".{path.name}")[:200]
    temporary = path.with_name(f"{name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask, as any new file
    try:
        with open(descriptor, "w", newline="", encoding="utf-8", errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file in one move: a reader sees the old text or the new one, a full disk leaves the old one.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(text)


def flock(descriptor: int) -> bool | None:
    """Whether the flock of an open file is ours now; None where the file system has none. Never waits."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True
