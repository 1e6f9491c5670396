"""Readers of one line a page: PaddleOCR's labels, and JSON lines as WildReceipt and MMOCR 0.x have them."""

import codecs
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.annotations.json_formats import coco_outline, coco_text
from pipelines.annotations.json_source import Pages, finish
from pipelines.annotations.json_values import expect, points, size, text
from pipelines.annotations.marks import flagged, ignored_text, yes
from pipelines.annotations.page import Page, Source, safe_relative
from pipelines.errors import UserError, printable

logger = logging.getLogger(__name__)


def stream_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, read as they are asked for.

    UTF-8, or UTF-16 by its mark; a line that is no UTF-8 is read with one byte a letter (coordinates are ASCII).
    """
    with path.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
    warned = False
    with path.open(encoding=encoding, errors=errors) as lines:
        for number, line in enumerate(lines, 1):
            if not line.isascii() and not _is_text(line):
                if not warned:
                    logger.warning("%s: line %d is not UTF-8, read as Latin-1", printable(path), number)
                warned = True
                line = line.encode("utf-8", "surrogateescape").decode("latin-1")
            if line.strip():
                yield number, line


def _is_text(line: str) -> bool:
    """Whether no byte had to be escaped."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(line: str, where: str, what: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {what} not valid JSON: {str(error)[:80]}") from error


def is_paddle(line: str) -> bool:
    """Whether a line is `path<TAB>[...]`."""
    return line.partition("\t")[2].lstrip().startswith("[")


def read_paddle(path: Path, root: str | Path | None) -> Source:
    """PaddleOCR label lines: `path<TAB>[{"transcription": ..., "points": [[x, y], ...]}, ...]`.

    `###` and `*` are ignored, as PaddleOCR's own loader does. Two tabs in a row, a bad JSON part or an image that is
    listed twice are errors.
    """
    listed = Pages(path, "line")
    for number, line in stream_lines(path):
        where = f"{path}:{number}"
        name, tab, rest = line.partition("\t")
        if not tab:
            raise UserError(f"{where}: no tab between image path and labels; not a PaddleOCR label line")
        page = Page(safe_relative(name.strip(), where))
        for word in expect(_parsed(rest, where, "labels are"), list, where, "a list of words"):
            expect(word, dict, where, "an object")
            said = text(word.get("transcription"))
            ignore = flagged(word) or ignored_text(said) or said == "*"
            page.add(points(word.get("points") or [], where), ignore, said)
        listed.add(page, number)
    return finish("paddle", path, root, listed.pages, [], [])


def _line_pages(path: Path) -> Iterator[tuple[str, int, Page, list]]:
    """Where, the line, its page without regions, and its annotations."""
    for number, line in stream_lines(path):
        where = f"{path}:{number}"
        entry = expect(_parsed(line, where, "the line is"), dict, where, "an object")
        if not isinstance(entry.get("file_name"), str):
            raise UserError(f"{where}: no file_name; not a line of this format")
        name = safe_relative(entry["file_name"], where)
        page = Page(name, size(entry.get("width"), where), size(entry.get("height"), where))
        yield where, number, page, expect(entry.get("annotations"), list, where, "annotations as a list")


def line_format(path: Path) -> str:
    """`wildreceipt` or `mmocr-lines`, by the first line with an annotation."""
    for where, _, _, items in _line_pages(path):
        if items:
            return "wildreceipt" if "box" in expect(items[0], dict, where, "an object") else "mmocr-lines"
    return "mmocr-lines"


def read_wildreceipt(path: Path, root: str | Path | None) -> Source:
    """WildReceipt: JSON lines, {file_name, height, width, annotations: [{box: [x1, y1, ..., x4, y4], text, label}]}.

    Label 0 is the class `Ignore` of its class_list.txt. https://arxiv.org/abs/2103.14470, as MMOCR publishes it.
    """
    listed = Pages(path, "line")
    for where, number, page, words in _line_pages(path):
        for word in words:
            expect(word, dict, where, "an object")
            said, label = text(word.get("text")), word.get("label", 1)
            page.add(points(word.get("box") or [], where), not yes(label) or flagged(word) or ignored_text(said), said)
        listed.add(page, number)
    return finish("wildreceipt", path, root, listed.pages, [], [])


def read_mmocr_lines(path: Path, root: str | Path | None) -> Source:
    """MMOCR 0.x: JSON lines, {file_name, height, width, annotations: [{iscrowd, bbox, segmentation}]}, as in COCO."""
    listed = Pages(path, "line")
    for where, number, page, items in _line_pages(path):
        for item in items:
            expect(item, dict, where, "an object")
            outline, bounds = coco_outline(item, where)
            said = coco_text(item)
            page.add(outline, flagged(item) or ignored_text(said), said, bounds)
        listed.add(page, number)
    return finish("mmocr-lines", path, root, listed.pages, [], [])
