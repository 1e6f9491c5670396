"""Folders to write into: complete or absent, never somebody else's."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import UserError


def refuse_full(out: Path) -> None:
    """Raises UserError for what is no folder, or a folder with something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; name another --out")


@contextmanager
def new_folder(out: Path, replace: bool) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its name when the block ends well: `out` is complete or absent.

    It replaces an `out` that exists, or else the one that was there first stays (two ranks that write the same).
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name[:200]}.{secrets.token_hex(4)}"
    temporary.mkdir()  # under the umask, where mkdtemp's is the user's own
    try:
        yield temporary
        if replace and out.exists():
            out.rename(Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent)) / "old")
        try:
            temporary.rename(out)
        except OSError:
            if not out.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for old in out.parent.glob(f".{out.name}.old.*"):
            shutil.rmtree(old, ignore_errors=True)
