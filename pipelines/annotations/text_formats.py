"""Readers of text-line annotations: pages from pairs of an image and its file of lines (the layouts: text_layouts)."""

import codecs
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipelines.annotations.packed import Shelf, pack
from pipelines.annotations.page import Finding, Findings, Page
from pipelines.annotations.text_layouts import (
    LAYOUTS,
    Line,
    Region,
    Tally,
    choose_layout,
    interpret,
    is_text_line,
    parse_line,
)
from pipelines.annotations.text_marks import settle
from pipelines.errors import UserError, printable

__all__ = ["LAYOUTS", "build_pages", "choose_layout", "interpret", "is_text_line", "parse_line", "read_lines"]

logger = logging.getLogger(__name__)

DOTA = ("imagesource:", "gsd:")  # the two lines above DOTA's boxes
CHUNK = 1 << 20  # bytes; a file of one page's labels is hardly ever larger


def _encoding(head: bytes, file: io.BufferedReader) -> tuple[str, int]:
    """What a file's text is: UTF-8, or UTF-16 by its mark; else one byte one letter (coordinates are ASCII).

    Returns:
        encoding, and the first byte that is not UTF-8 (-1 for none).
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", -1
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    while True:
        at -= len(decoder.getstate()[0])  # the start of a letter that the last chunk ended in
        try:
            decoder.decode(head, final=not head)
        except UnicodeDecodeError as error:
            return "latin-1", at + error.start
        if not head:
            return "utf-8-sig", -1
        at += len(head)
        head = file.read(CHUNK)


def read_lines(path: Path, *, warn: bool = True) -> Iterator[str]:
    """The lines of a text file, without their ends; a large file is never held whole."""
    with path.open("rb") as file:
        head = file.read(CHUNK)
        encoding, bad_byte = _encoding(head, file)
        if bad_byte >= 0 and warn:
            logger.warning("%s: not UTF-8 (byte %d), transcriptions read as Latin-1", printable(path), bad_byte)
        if len(head) < CHUNK:  # nearly always
            whole = head.decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")
            yield from whole.removesuffix("\n").split("\n") if whole else ()
            return
        file.seek(0)
        # Lines end at \n, \r\n or \r, not where splitlines() ends them: a transcription may hold a form feed or U+2028.
        with io.TextIOWrapper(file, encoding, errors="replace", newline=None) as text:
            for line in text:
                yield line.removesuffix("\n")


def parsed(path: Path, *, warn: bool = True) -> Iterator[Line]:
    """The lines of a file that are not blank."""
    lines = enumerate(read_lines(path, warn=warn), 1)
    return (parse_line(text, n) for n, text in lines if text.strip() and not (n <= 2 and text.startswith(DOTA)))


def _count(paths: Iterable[str], where: str) -> tuple[Tally, str]:
    """Counts of all lines, and the header of the files; "" for none.

    A header is a first line without a number that all files (two or more) have, such as `x1,y1,x2,y2,text`.
    """
    tally, heads, files = Tally(), Counter[str](), 0
    for path in paths:
        for at, line in enumerate(parsed(Path(path))):
            tally.add(line)
            files += at == 0
            if at == 0 and not _has_number(line.text) and len(heads) < 2:
                heads[line.text.strip()] += 1
    header = next((text for text, count in heads.items() if count == files >= 2), "")
    if header:
        tally.total -= files
        logger.warning(
            "%s: every label file begins with %s, read as a header", printable(where), printable(header[:60])
        )
    return tally, header


def _has_number(text: str) -> bool:
    return bool(np.isfinite(interpret(parse_line(text, 0), "icdar").points).any()) or any(
        map(str.isdigit, text.split())
    )


def _add(page: Page, line: Line, region: Region, path: str, findings: Findings) -> None:
    page.add(region.points, region.ignore, region.text)
    if region.problem:
        detail = f"{os.path.basename(path)}:{line.number}: {region.problem}, masked"
        findings.append(Finding(page.path, "bad-line", detail))


def build_pages(items: list[tuple[str, str]], layout: str, where: str, findings: Findings) -> tuple[str, list[Page]]:
    """Pages from (image path relative to the root, label file) pairs.

    Args:
        layout: `auto` or one of LAYOUTS.
        findings: gets one `bad-line` for every line that does not fit; what it states is a region to be ignored.

    Returns:
        The layout and the pages.

    Raises:
        UserError: most lines do not fit, or look like another layout.
    """
    # Read twice, so that only the lines of one file are held at a time.
    tally, header = _count((path for _, path in items), where)
    if layout == "auto":
        layout = tally.layout(where)
    tally.refuse_other(layout, where)
    pages, shelf = [], Shelf()
    for name, path in items:
        page = Page(name, normalized=layout == "yolo")
        for at, line in enumerate(parsed(Path(path), warn=False)):
            if at == 0 and line.text.strip() == header:
                continue
            _add(page, line, interpret(line, layout), path, findings)
        pages.append(pack(page, shelf))
    bad = findings.counts["bad-line"]
    if bad * 2 > tally.total:
        raise UserError(
            f"{where}: {bad} of {tally.total} lines do not fit the {layout} layout; name another data.format (--format)"
        )
    settle(pages, shelf)
    return layout, pages
