"""Pages for `bench.gpu` without a data set: drawn receipts as JPEG files on disk, and an index of them in memory.

Needs numpy and Pillow; nothing of `pipelines.index.build`, whose libraries a bare machine may lack.
"""

import itertools
from pathlib import Path

import numpy as np

from pipelines.geometry import Labels, pack

LINES = 54  # of a page, as on a real receipt


class Pages:
    """`pipelines.index.pages.LabelledPages` in memory."""

    def __init__(self, paths: list[Path], size_wh: tuple[int, int], polygons: list[np.ndarray]) -> None:
        self._paths, self._polygons = paths, polygons
        self.size_wh = np.tile(np.array(size_wh, np.int32), (len(paths), 1))
        self.orientation = np.ones(len(paths), np.uint8)
        self.lengths = [len(paths)]
        self.bad: dict[int, str] = {}

    def repeated(self, count: int) -> "Pages":
        """`count` pages, these over and over."""
        paths = list(itertools.islice(itertools.cycle(self._paths), count))
        width, height = self.size_wh[0].tolist()
        return Pages(paths, (width, height), self._polygons)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, row: int) -> Path:
        """Path of a page."""
        return self._paths[int(row)]

    def name(self, row: int) -> str:
        """File name of a page."""
        return self._paths[int(row)].name

    def num_bytes(self, row: int) -> int:
        """Bytes of a page's file."""
        return self.path(row).stat().st_size

    def labels(self, row: int) -> Labels:
        """LINES quads of a page, none to be ignored."""
        return pack(self.polygons(row), self.ignore(row))

    def polygons(self, row: int) -> list[np.ndarray]:
        """(4, 2) float32 quads of a page's lines, pixel centres at i + 0.5; the same on every page."""
        return list(self._polygons)

    def ignore(self, row: int) -> np.ndarray:
        """(LINES,) bool, none."""
        return np.zeros(len(self._polygons), bool)

    def texts(self, row: int) -> None:
        """There are none."""


def draw_pages(folder: Path, count: int, height: int = 1600, width: int = 900) -> Pages:
    """Writes `count` JPEG pages of grained paper with LINES lines of dark strokes, and returns their index."""
    rng = np.random.default_rng(0)
    pitch = (height - 80) / LINES
    quads = []
    for line in range(LINES):
        top, left, right = 40 + line * pitch, rng.integers(20, width // 3), rng.integers(width // 2, width - 20)
        bottom = top + 0.7 * pitch
        quads.append(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32))
    paths = []
    for number in range(count):
        page = np.clip(rng.normal(225, 6, (height, width, 3)), 0, 255).astype(np.uint8)
        for quad in quads:
            (left, top), (right, bottom) = quad[0].astype(int), quad[2].astype(int)
            strokes = rng.random(right - left) < 0.5
            page[top:bottom, left:right][:, strokes] = rng.integers(10, 90)
        paths.append(folder / f"{number:03}.jpg")
        _write(paths[-1], page)
    return Pages(paths, (width, height), quads)


def _write(path: Path, page: np.ndarray) -> None:
    from PIL import Image  # torchvision, and so timm, brings it

    Image.fromarray(page).save(path, quality=90)
