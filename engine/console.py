"""Words for the user: warnings, tables, and what is said of an error or of a name that does not exist.

    warn("WARNING: config.yaml is not written (No space left on device)")
    raise UserError(f"unknown key {key}; {did_you_mean(key, names) or '--help lists all keys'}")

A warning can stop nothing: the disk that is full may be the log's own.
"""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence

from pipelines.errors import UserError, printable

NUMBER = re.compile(r"\(os error (\d+)\)")  # of the operating system's error inside one of a Rust library


def warn(text: str) -> None:
    """Shows one line on stderr; where stderr itself cannot be written, nothing."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
        print(printable(text), file=sys.stderr, flush=True)


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name most like a word, "" where none is like it; `cutoff` is the least likeness, 0..1."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)), "")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """`did you mean NAME?` with the `nearest` name, "" where there is none."""
    name = nearest(word, names)
    return f"did you mean {name}?" if name else ""


def one_line(error: BaseException, most: int = 160) -> str:
    """The first `most` letters of what an error says, without line ends; its kind when it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def reason(error: BaseException) -> str:
    """Why something could not be written, in a few words: `No space left on device`."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = NUMBER.search(str(error))
    return os.strerror(int(number[1])) if number else " ".join(str(error).split()) or type(error).__name__


def text_table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Rows of cells, the header first, as lines with aligned columns.

        text_table([["", "H-mean"], ["fold 0", "0.9421"]])

    Args:
        left: columns of words, which begin at the left; the others hold numbers and end at the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [cell.ljust(widths[i]) if i in left else cell.rjust(widths[i]) for i, cell in enumerate(row)] for row in rows
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


@contextlib.contextmanager
def optional(what: object) -> Iterator[None]:
    """For what a run can do without (pictures, curves, the summary): not written is a warning, and the run goes on."""
    try:
        yield
    except (OSError, UserError) as error:
        warn(f"WARNING: {what} not written ({reason(error)}); the run goes on")
