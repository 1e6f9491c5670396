"""Regions of a page in little memory: one array of points and one string of texts, read as the lists they were.

pack(page)                # page.polygons and page.texts behave as before; 50 bytes a region instead of 300
page.polygons[3]          # (n, 2) float32, a view
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from pipelines.annotations.page import Page


def _span(ends: "array[int]", k: int) -> slice:
    end = ends[k]
    return slice(ends[k - 1] if k % len(ends) else 0, end)


class Polygons(Sequence[np.ndarray]):
    """Polygons end to end."""

    def __init__(self, polygons: Sequence[np.ndarray]) -> None:
        self._ends = array("I", accumulate(map(len, polygons)))
        if isinstance(polygons, Polygons):
            self._points = polygons.points
            return
        self._points = np.concatenate([np.zeros((0, 2), np.float32), *polygons])

    @property
    def points(self) -> np.ndarray:
        """(n, 2) float32 points of all of them, end to end."""
        return self._points

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, k: int) -> np.ndarray:  # type: ignore[override]  # no slices
        return self._points[_span(self._ends, k)]

    def __iter__(self) -> Iterator[np.ndarray]:
        start = 0
        for end in self._ends:
            yield self._points[start:end]
            start = end


class Texts(Sequence[str]):
    """Texts end to end."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._ends = array("I", accumulate(map(len, texts)))
        self._joined = "".join(texts)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, k: int) -> str:  # type: ignore[override]  # no slices
        return self._joined[_span(self._ends, k)]

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends:
            yield self._joined[start:end]
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def pack(page: Page) -> Page:
    """The page with polygons and texts packed, in place; nothing may be added to it then."""
    page.polygons = Polygons(page.polygons)
    page.texts = None if page.texts is None else Texts(page.texts)
    return page
