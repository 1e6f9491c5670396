"""Regions of pages put aside, so that a million pages fit: what is kept of each is where its regions lie in a file.

    shelf = Shelf()
    pack(page, shelf)         # page.polygons, page.texts and page.ignore behave as before; 0.6 KB a page instead of 20
    page.polygons[3]          # (n, 2) float32, read from the shelf
    page.polygons.points      # (V, 2) float32, of all of them, read once

The file has no name and goes with the last page that lies in it.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import IO

import numpy as np

from pipelines.annotations.page import Page
from pipelines.errors import UserError

IN_MEMORY = 1 << 26  # bytes: of a smaller set (20,000 pages of 60 words) nothing goes to the disk


def _scratch() -> str:
    """A folder for large files: /tmp is memory on many machines, /var/tmp is a disk by custom."""
    place = "/var/tmp"
    return place if "TMPDIR" not in os.environ and os.access(place, os.W_OK | os.X_OK) else tempfile.gettempdir()


class Shelf:
    """Bytes put aside: the first IN_MEMORY of them in memory, the rest in a file."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._in_file = 0

    def put(self, data: bytes) -> int:
        """Where the bytes lie from now on.

        Raises:
            UserError: the disk is full.
        """
        if self._file is None and len(self._memory) + len(data) <= IN_MEMORY:
            self._memory += data
            return len(self._memory) - len(data)
        place = _scratch()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=place, buffering=0)  # noqa: SIM115 - goes with this object
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise UserError(
                f"{place}: labels of more than {(self._in_file + len(self._memory)) / 1e6:.0f} MB cannot be put aside "
                f"here ({error.strerror}); name a folder with more room, TMPDIR=FOLDER in front of the command"
            ) from error
        self._in_file += len(data)
        return len(self._memory) + self._in_file - len(data)

    def get(self, at: int, size: int) -> bytes:
        """The bytes that lie there."""
        if at < len(self._memory):
            return bytes(memoryview(self._memory)[at : at + size])
        assert self._file is not None
        data = os.pread(self._file.fileno(), size, at - len(self._memory))
        assert len(data) == size
        return data


class Flags(bytearray):
    """Flags of a page's regions, a byte each."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None


class _Packed:
    """Where the items of a page lie: their lengths, then their bytes."""

    __slots__ = ("_at", "_bytes", "_count", "_shelf")

    def __init__(self, lengths: Sequence[int], data: bytes, shelf: Shelf) -> None:
        self._shelf, self._count, self._bytes = shelf, len(lengths), len(data)
        self._at = shelf.put(np.array(lengths, np.uint32).tobytes() + data) if self._count else 0

    def __len__(self) -> int:
        return self._count

    def _read(self) -> tuple[np.ndarray, memoryview]:
        """Lengths (n,) uint32, and the bytes."""
        head = 4 * self._count
        data = memoryview(self._shelf.get(self._at, head + self._bytes) if self._count else b"")
        return np.frombuffer(data[:head], np.uint32), data[head:]


class Polygons(_Packed, Sequence[np.ndarray]):
    """Polygons of a page, on a shelf."""

    __slots__ = ("_scale",)

    def __init__(self, polygons: Sequence[np.ndarray], shelf: Shelf) -> None:
        points = np.concatenate([np.zeros((0, 2), np.float32), *polygons], dtype=np.float32)
        super().__init__([len(polygon) for polygon in polygons], points.tobytes(), shelf)
        self._scale: tuple[int, int] | None = None

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of points (k,) uint32, and the (V, 2) float32 points of all polygons, end to end."""
        lengths, data = self._read()
        points = np.frombuffer(data, np.float32).reshape(-1, 2)
        return lengths, points if self._scale is None else points * np.array(self._scale, np.float32)

    def scale(self, width: int, height: int) -> None:
        """From now on all points are so many times as large."""
        assert self._scale is None
        self._scale = width, height

    def __iter__(self) -> Iterator[np.ndarray]:
        lengths, points = self.read()
        start = 0
        for end in accumulate(lengths.tolist()):
            yield points[start:end]
            start = end

    def __getitem__(self, k: int) -> np.ndarray:  # type: ignore[override]  # no slices
        return list(self)[k]


class Texts(_Packed, Sequence[str]):
    """Texts of a page, on a shelf."""

    __slots__ = ()

    def __init__(self, texts: Sequence[str], shelf: Shelf) -> None:
        super().__init__(list(map(len, texts)), "".join(texts).encode("utf-8", "surrogatepass"), shelf)

    def __iter__(self) -> Iterator[str]:
        lengths, data = self._read()
        joined, start = str(data, "utf-8", "surrogatepass"), 0
        for end in accumulate(lengths.tolist()):
            yield joined[start:end]
            start = end

    def __getitem__(self, k: int) -> str:  # type: ignore[override]  # no slices
        return list(self)[k]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def pack(page: Page, shelf: Shelf) -> Page:
    """The page with its regions on a shelf, in place; nothing may be added to it then."""
    page.polygons = Polygons(page.polygons, shelf)
    page.texts = None if page.texts is None else Texts(page.texts, shelf)
    page.ignore, page.boxed = Flags(page.ignore), tuple(page.boxed)
    return page


def in_pixels(page: Page, width: int, height: int) -> Page:
    """The page with coordinates in pixels, changed in place where they were shares of the image.

    Args:
        width, height: of the image, oriented pixels; 0 = not known, then nothing changes.
    """
    if page.normalized and width:
        if isinstance(page.polygons, Polygons):
            page.polygons.scale(width, height)
        else:
            page.polygons = [polygon * np.array([width, height], np.float32) for polygon in page.polygons]
        page.normalized = False
    return page
