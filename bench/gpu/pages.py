"""Pages for benches without a data set: drawn receipts as JPEG files on disk, and an index of them in memory.

Needs numpy and Pillow; nothing of `pipelines.index.build`, whose libraries a bare machine may lack.
"""

from pathlib import Path

import numpy as np
from PIL import Image  # torchvision, and so timm, brings it

from pipelines.geometry import Labels, pack
from pipelines.index.bare import BareIndex

LINES = 54  # of a page, as on a real receipt


class Pages(BareIndex):
    """Image files with the same lines on every page: `pipelines.index.pages.LabelledPages` in memory."""

    def __init__(self, paths: list[Path], polygons: list[np.ndarray]) -> None:
        super().__init__(paths)
        self._polygons, self.lengths = polygons, [len(paths)]

    def repeated(self, count: int) -> "Pages":
        """`count` pages, these over and over."""
        return Pages([self._paths[row % len(self)] for row in range(count)], self._polygons)

    def labels(self, row: int) -> Labels:
        """LINES quads of a page, none to be ignored."""
        return pack(self._polygons, self.ignore(row))

    def polygons(self, row: int) -> list[np.ndarray]:
        """(4, 2) float32 quads of a page's lines, pixel centres at i + 0.5."""
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
        Image.fromarray(page).save(paths[-1], quality=90)
    return Pages(paths, quads)
