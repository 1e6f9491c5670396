"""Total-Text's own text files: `x: [[..]], y: [[..]], ornt: [u'c'], transcriptions: [u'..']`, one record a region.

    pages = build_pages([("img/img1.jpg", "poly_gt_img1.txt")], "folder", findings)

Numpy printed the numbers, so that a long record goes over several lines and its numbers stand between blanks. `#` is a
region to be ignored. (The set's other text files, `x1,y1,...,xn,yn,text`, are polygons: text_layouts.)
"""

import ast
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipelines.annotations.packed import Shelf, pack
from pipelines.annotations.page import Finding, Findings, Page
from pipelines.annotations.text_formats import read_lines
from pipelines.annotations.text_marks import is_mark
from pipelines.errors import UserError

LOOKED_AT = 32  # files whose first line is looked at
LONGEST_RECORD = 200_000  # characters: an outline of 10,000 points
_START = re.compile(r"\s*x\s*:\s*\[")
_NUMBERS = {name: re.compile(rf"\b{name}\s*:\s*\[+([^\]]*)\]") for name in ("x", "y")}
_WORDS = re.compile(r"\btranscriptions\s*:\s*\[(.*)\]", re.DOTALL)
_WORD = re.compile(r"""u?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")


def is_record(line: str) -> bool:
    """Whether a line begins a record."""
    return bool(_START.match(line))


def is_total_text(paths: Iterable[str]) -> bool:
    """Whether label files begin as Total-Text's do."""
    firsts = (
        next((s for s in read_lines(Path(p), warn=False) if s.strip()), "") for p in itertools.islice(paths, LOOKED_AT)
    )
    return any(map(is_record, firsts))


def _records(path: Path) -> Iterator[tuple[int, str]]:
    """Number of the first line, and the text, of every record."""
    parts: list[str] = []
    at = length = 0
    for number, line in enumerate(read_lines(path), 1):
        if _START.match(line) and parts:
            yield at, " ".join(parts)
            parts, length = [], 0
        if line.strip():
            at = at if parts else number
            parts.append(line.strip())
            length += len(line)
        if length > LONGEST_RECORD:
            raise UserError(
                f"{path}:{at}: a record of more than {LONGEST_RECORD:,} characters is no region of Total-Text"
            )
    if parts:
        yield at, " ".join(parts)


def _numbers(record: str, name: str) -> list[float]:
    found = _NUMBERS[name].search(record)
    values = []
    for text in re.split(r"[\s,]+", found[1].strip()) if found else []:
        try:
            values.append(float(text))
        except ValueError:
            values.append(float("nan"))
    return values


def _word(record: str) -> str | None:
    """The transcription; Total-Text cuts one with commas into several."""
    found = _WORDS.search(record)
    pieces = []
    for literal in _WORD.findall(found[1]) if found else []:
        try:
            pieces.append(str(ast.literal_eval(literal)))
        except (ValueError, SyntaxError, MemoryError):
            pieces.append(literal[1:-1])
    return ",".join(pieces) if pieces else None


def _add(page: Page, record: str) -> str:
    """Appends a record's region; returns what is wrong with it."""
    x, y = _numbers(record, "x"), _numbers(record, "y")
    with np.errstate(over="ignore"):
        points = np.array(list(zip(x, y, strict=False)), np.float64).reshape(-1, 2).astype(np.float32)
    text = _word(record)
    problem = "" if len(x) == len(y) >= 3 else f"{len(x)} numbers x and {len(y)} numbers y are no outline"
    page.add(points, bool(problem) or is_mark(text or "", fewest=1), text)
    return problem


def build_pages(items: list[tuple[str, str]], where: str, findings: Findings) -> list[Page]:
    """Pages from (image path relative to the root, label file) pairs; a record that is no outline is masked.

    Raises:
        UserError: most records are none.
    """
    pages, total, shelf = [], 0, Shelf()
    for name, path in items:
        page = Page(name)
        for at, record in _records(Path(path)):
            total += 1
            problem = _add(page, record)
            if problem:
                findings.append(Finding(name, "bad-line", f"{os.path.basename(path)}:{at}: {problem}, masked"))
        pages.append(pack(page, shelf))
    bad = findings.counts["bad-line"]
    if bad * 2 > total:
        raise UserError(
            f"{where}: {bad} of {total} records are none of Total-Text's; name another data.format (--format)"
        )
    return pages
