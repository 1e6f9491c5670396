"""JSON documents piece by piece, so that a large one never lies in memory whole.

    for place, key, value in walk(path, repeated):   # of {"info": {...}, "images": [{"id": 1}, ...]}
        ...                                          # ("", "info", {...}), ("", "images", []), ("images", 0, {"id": 1})

Python's own parser does the pieces: 80 MB take 1.5 s. Whole, such a document takes 10 times its bytes.
"""

import codecs
import json
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]  # the stub lacks it
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pipelines.annotations.page import MOST_FINDINGS
from pipelines.errors import UserError

# Top-level values with an item a page or a region: walked into. All others are small, or a page themselves.
OPENED = ("images", "annotations", "imgs", "anns", "data_list", "_via_img_metadata")
BLOCK = 1 << 18  # bytes
BLANK = " \t\n\r"
# Of a number cut off by the end of a block (`1.`, `1e+`) this many letters at most lie behind what parses.
CUT_NUMBER = 3

Member = tuple[str, Any, Any]  # place ("" = top level), key or number, value


def _pairs(repeated: list[str]) -> Any:
    """A hook that makes dicts and notes keys that occur twice in one object (Python keeps the last)."""

    def made(items: list[tuple[str, Any]]) -> dict:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen and len(repeated) < MOST_FINDINGS:
                    repeated.append(key)
                seen.add(key)
        return found

    return made


class _Text:
    """The text of a file from where the parser is, and a way on."""

    def __init__(self, path: Path, file: BinaryIO, repeated: list[str]) -> None:
        self.path, self.file, self.repeated = path, file, repeated
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.parser = json.JSONDecoder(object_pairs_hook=_pairs(repeated))
        self.text, self.at, self.ended, self.read = "", 0, False, 0
        self.lines, self.columns = 0, 0  # in front of self.text

    def more(self) -> bool:
        """Drops what is passed and reads on; false at the end of the file."""
        if self.ended:
            return False
        passed = self.text[: self.at]
        self.lines += passed.count("\n")
        self.columns = len(passed) - passed.rfind("\n") - 1 + (0 if "\n" in passed else self.columns)
        self.text, self.at = self.text[self.at :], 0
        block = self.file.read(max(BLOCK, len(self.text)))
        self.read += len(block)
        self.ended = not block
        try:
            self.text += self.decoder.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            byte = self.read - len(error.object) + error.start
            raise UserError(f"{self.path}: not UTF-8 text (byte {byte}); save it as UTF-8") from error
        return True

    def fail(self, at: int, message: str) -> NoReturn:
        before = self.text[:at]
        line = self.lines + before.count("\n") + 1
        column = at - before.rfind("\n") + (0 if "\n" in before else self.columns)
        raise UserError(f"{self.path}: not valid JSON, line {line} column {column}: {message}")

    def peek(self) -> str:
        """The next letter that is not blank; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in BLANK:
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def take(self, letter: str, message: str) -> None:
        if self.peek() != letter:
            self.fail(self.at, message)
        self.at += 1

    def key(self) -> str:
        """A member's name, and the colon behind it."""
        if self.peek() != '"':
            self.fail(self.at, "Expecting property name enclosed in double quotes")
        while True:
            try:
                name, end = scanstring(self.text, self.at + 1, True)
                break
            except json.JSONDecodeError as error:
                if not self.more():
                    self.fail(error.pos, error.msg)
        self.at = end
        self.take(":", "Expecting ':' delimiter")
        return name

    def value(self) -> Any:
        self.peek()
        known = len(self.repeated)
        while True:
            del self.repeated[known:]  # of a try that met the end of the block
            try:
                value, end = self.parser.scan_once(self.text, self.at)  # type: ignore[attr-defined]
                if isinstance(value, (int, float)) and end + CUT_NUMBER > len(self.text) and self.more():
                    continue
                self.at = end
                return value
            except StopIteration as stop:
                if not self.more():
                    self.fail(int(stop.value), "Expecting value")
            except json.JSONDecodeError as error:
                if not self.more():
                    self.fail(error.pos, error.msg)
            except RecursionError as error:
                raise UserError(f"{self.path}: JSON nested too deeply to be an annotation file") from error
            except ValueError as error:  # Python's limit of 4,300 digits
                words = "not valid JSON: a number of more digits than any coordinate has"
                raise UserError(f"{self.path}: {words}") from error


def _members(text: _Text, repeated: list[str]) -> Iterator[Any]:
    """Keys, or numbers, of the container that starts here; the caller reads each value."""
    is_object = text.peek() == "{"
    close = "}" if is_object else "]"
    text.at += 1
    seen: set[str] = set()
    number = 0
    if text.peek() == close:
        text.at += 1
        return
    while True:
        key: Any = text.key() if is_object else number
        if is_object and key in seen and len(repeated) < MOST_FINDINGS:
            repeated.append(key)
        if is_object:
            seen.add(key)
        number += 1
        yield key
        if text.peek() == close:
            text.at += 1
            return
        text.take(",", "Expecting ',' delimiter")


def walk(path: Path, repeated: list[str] | None = None, *, alone: bool = True) -> Iterator[Member]:
    """The members of a document in their order, those of the OPENED ones one by one.

    An opened one comes first itself, empty. A document that is no object and no list comes as ("", None, value).

    Args:
        repeated: gets the keys that occur twice in one object, MOST_FINDINGS at most.
        alone: refuse a document with another behind it, as JSON lines have.

    Raises:
        UserError: naming line and column where the JSON breaks.
    """
    repeated = [] if repeated is None else repeated
    with path.open("rb") as file:
        text = _Text(path, file, repeated)
        start = text.peek()
        if start not in ("{", "["):
            yield "", None, text.value()
        else:
            for key in _members(text, repeated):
                inner = text.peek()
                if start == "[" or key not in OPENED or inner not in ("{", "["):
                    yield "", key, text.value()
                    continue
                yield "", key, {} if inner == "{" else []
                for name in _members(text, repeated):
                    yield key, name, text.value()
        if alone and text.peek():
            text.fail(text.at, "Extra data")


def load_json(path: Path) -> tuple[Any, list[str]]:
    """A small document whole, and the keys that occur twice in one object (the last wins; the user should know).

    Raises:
        UserError: naming line and column where the JSON breaks.
    """
    repeated: list[str] = []
    with path.open("rb") as file:
        text = _Text(path, file, repeated)
        value = text.value()
        if text.peek():
            text.fail(text.at, "Extra data")
    return value, repeated
