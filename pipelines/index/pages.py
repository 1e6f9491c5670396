"""What loading and judging ask of pages, wherever they come from: an index, several, bare files, or a bench's own."""

from pathlib import Path
from typing import Protocol

import numpy as np

from pipelines.geometry import Labels


class Pages(Protocol):
    """Image files with their sizes and labels, by row. `Index`, `ConcatIndex` and `BareIndex` are such."""

    @property
    def size_wh(self) -> np.ndarray: ...  # (N, 2) int32 upright pixels
    @property
    def orientation(self) -> np.ndarray: ...  # (N,) uint8 EXIF orientation, 1 to 8
    def __len__(self) -> int: ...
    def path(self, row: int, /) -> Path: ...  # of the image
    def name(self, row: int, /) -> str: ...  # of the image file
    def num_bytes(self, row: int, /) -> int: ...  # that the image file must have
    def labels(self, row: int, /) -> Labels: ...  # upright pixels


class LabelledPages(Pages, Protocol):
    """Pages with what judging detections on them asks for."""

    @property
    def bad(self) -> dict[int, str]: ...  # rows that a run has found it cannot read, and why
    def polygons(self, row: int, /) -> list[np.ndarray]: ...  # (n, 2) float32 upright pixels
    def ignore(self, row: int, /) -> np.ndarray: ...  # (k,) bool, one flag a polygon
    def texts(self, row: int, /) -> list[str] | None: ...  # None where there are no transcriptions at all
