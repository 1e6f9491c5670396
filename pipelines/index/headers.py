"""Image headers of a whole source in arrays, 30 bytes a page, and what makes a page unusable.

headers = read_headers(root, ["a.jpg", "b.jpg"], workers=0)
headers.size_wh                    # (N, 2) int32 oriented pixels
headers.problems                   # {1: ("missing", "No such file or directory")}, by row
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations.packed import Polygons
from pipelines.annotations.page import Page
from pipelines.index.store import Index
from pipelines.limits import DEFAULT, Limits

logger = logging.getLogger(__name__)

# More threads than this only queue at the disk; a header costs about 0.2 ms.
MAX_WORKERS = 32
# Files whose headers wait to be looked at, and those that a thread reads in one go: a task costs as much as a header.
BLOCK, TOGETHER = 8192, 16  # the one a multiple of the other
LARGEST = 2**31 - 1  # sides above it are only stated, by files that are refused as too large
Progress = Callable[[int, int], None]


class Headers:
    """Headers of N files, by row.

    Attributes:
        size_wh, orientation, file_stat: as an index has them (`pipelines.index.store`).
        several: (N,) bool, more pages or frames than the one that is read.
        problems: row -> problem and detail, of `pipelines.images.read.read_header` and others found here.
    """

    def __init__(self, count: int) -> None:
        self.size_wh = np.zeros((count, 2), np.int32)
        self.orientation = np.ones(count, np.uint8)
        self.file_stat = np.zeros((count, 2), np.int64)
        self.several = np.zeros(count, bool)
        self.problems: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self.size_wh)


def read_headers(
    root: Path, names: Sequence[str], workers: int, limits: Limits = DEFAULT, progress: Progress | None = None
) -> Headers:
    """Headers of files below a folder, on a thread pool (0 workers = one a core, at most 32)."""
    from pipelines.images.read import pixel_limit, read_header  # here: loaders of annotated pages do without Pillow

    count = min(workers or (os.cpu_count() or 1), MAX_WORKERS)
    made = Headers(len(names))
    with pixel_limit(limits.pixels), ThreadPoolExecutor(count) as pool:
        for start in range(0, len(names), BLOCK):
            ends = range(start, min(start + BLOCK, len(names)), TOGETHER)
            parts = pool.map(lambda at: [read_header(root / name, limits) for name in names[at : at + TOGETHER]], ends)
            for row, header in enumerate(chain.from_iterable(parts), start):
                made.size_wh[row] = min(header.width, LARGEST), min(header.height, LARGEST)
                made.orientation[row], made.several[row] = header.orientation, header.several
                made.file_stat[row] = header.mtime_ns, header.num_bytes
                if header.problem:
                    made.problems[row] = header.problem, header.detail
                if progress is not None:
                    progress(row + 1, len(names))
    return made


def keep_known(root: Path, names: Sequence[str], headers: Headers, known: Index | None) -> dict[str, Any]:
    """A file that was good in an earlier index, and is not now, becomes what it was then.

    A run that starts again after a file went bad under it must find the same pages: its epoch has an order. Reading
    the file then fails, and another page takes its place.

    Returns:
        path -> [mtime_ns, bytes] of those files as they are now, None where there is none.
    """
    if known is None or not headers.problems:
        return {}
    rows = {name: i for i, name in enumerate(known.relative_paths())}
    kept: dict[str, Any] = {}
    for row, (problem, detail) in list(headers.problems.items()):
        before = rows.get(names[row])
        if before is None:
            continue
        logger.warning("%s: %s (%s), kept as it was", root / names[row], problem, detail)
        kept[names[row]] = headers.file_stat[row].tolist() if headers.file_stat[row, 0] else None
        headers.size_wh[row], headers.orientation[row] = known.size_wh[before], known.orientation[before]
        headers.file_stat[row] = known.file_stat[before]
        del headers.problems[row]
    return kept


def refuse_regions(pages: Sequence[Page], headers: Headers, most: int) -> None:
    """Pages of more than `most` polygons get the problem `too-many-polygons`, those with a region of which nothing is
    a number `nowhere`; a page that has a problem keeps it."""
    for row, page in enumerate(pages):
        count = len(page.polygons)
        if not count or row in headers.problems:
            continue
        if count > most:
            headers.problems[row] = "too-many-polygons", f"{count} are more than the {most} allowed"
            continue
        lost = _nowhere(page.polygons)
        if lost is not None:
            headers.problems[row] = "nowhere", f"region {lost + 1} has no coordinates: mend or delete it"


def _nowhere(polygons: Sequence[np.ndarray]) -> int | None:
    """The first region of which nothing is a number."""
    if isinstance(polygons, Polygons):
        lengths, points = polygons.read()
        if lengths.min() and np.isfinite(points).all():
            return None  # nearly always
    return next((k for k, region in enumerate(polygons) if not np.isfinite(region).all(1).any()), None)
