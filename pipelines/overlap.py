"""Pages of one set that are in another one too: a score on them is flattered.

    found = overlap(train, val)
    found.same, found.alike, found.example            # rows of val; by bytes, by picture; "a.jpg is b.jpg"

Made to run at the start of a training. Files are compared by path, then by size and pixels as the index has them, then
by CHUNK bytes of their middle, and only what agrees so far is read whole: 100,000 pages of training with 10,000 of
validation, all different, take 8 s on two busy cores. Up to ALIKE_PAGES pages in all pictures are compared too
(pipelines.split).
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.errors import UserError
from pipelines.index.build import MAX_WORKERS
from pipelines.index.store import ConcatIndex
from pipelines.limits import DEFAULT, Limits

ALIKE_PAGES = 500  # of both sets; 5 to 15 ms each on one core, so 8 s at the most
CHUNK = 4096
MOST_READ = 20_000  # files whose middle is read; more have one size only where nothing is compressed


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What two sets have in common."""

    same: list[int]  # rows of the second set whose file is in the first
    alike: list[int]  # other rows of the second set whose picture looks as one of the first
    example: str  # "" where there is none
    unread: int = 0  # files of one size, too many to read: only those of one path were found


def overlap(first: ConcatIndex, second: ConcatIndex, limits: Limits = DEFAULT) -> Overlap:
    """Pages of `second` that are in `first`. A file that cannot be read now is like no other."""
    pairs, unread = _same(first, second)
    alike: dict[int, int] = {}
    if len(first) + len(second) <= ALIKE_PAGES:
        alike = {row: other for row, other in _alike(first, second, limits).items() if row not in pairs}
    example = next((f"{second.path(row)} is {first.path(other)}" for row, other in (pairs | alike).items()), "")
    return Overlap(sorted(pairs), sorted(alike), example, unread)


def _same(first: ConcatIndex, second: ConcatIndex) -> tuple[dict[int, int], int]:
    """Row of `second` -> row of `first` with the same path or bytes; how many files were too many to read."""
    ours, theirs = _shapes(second), _shapes(first)
    common = np.intersect1d(ours, theirs)
    rows, others = (np.flatnonzero(np.isin(shapes, common)) for shapes in (ours, theirs))
    known = {path: other for other, path in _paths(first, others)}
    pairs = {row: known[path] for row, path in _paths(second, rows) if path in known}
    rows = np.array([row for row in rows.tolist() if row not in pairs], np.int64)
    others = others[np.isin(theirs[others], ours[rows])]
    if len(rows) + len(others) > MOST_READ:
        return pairs, len(rows) + len(others)
    for look in (_middle, _digest):
        here, there = _by(look, second, rows), _by(look, first, others)
        both = set(here.values()) & set(there.values())
        rows = np.array([row for row, mark in here.items() if mark in both], np.int64)
        others = np.array([row for row, mark in there.items() if mark in both], np.int64)
    place = {mark: row for row, mark in there.items()}
    return pairs | {row: place[here[row]] for row in rows.tolist()}, 0


def _paths(pages: ConcatIndex, rows: np.ndarray) -> Iterator[tuple[int, str]]:
    """Rows with the paths of their images."""
    paths = pages.paths if len(rows) else []  # all at once: one by one a million take 8 s
    return ((row, paths[row]) for row in rows.tolist())


def _shapes(pages: ConcatIndex) -> np.ndarray:
    """One number (N,) of bytes, width and height of every page; different ones may share it."""
    size = np.concatenate([part.file_stat[:, 1] for part in pages.parts]).astype(np.uint64)
    width, height = pages.size_wh.astype(np.uint64).T
    return (size * np.uint64(2**24) + width) * np.uint64(2**24) + height  # wraps around


def _by(look: Callable[[str], bytes | None], pages: ConcatIndex, rows: Iterable[int]) -> dict[int, bytes]:
    """Row -> what `look` finds in its file; without those it cannot read."""
    listed = [int(row) for row in rows]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_WORKERS)) as pool:
        found = pool.map(look, [str(pages.path(row)) for row in listed])
        return {row: mark for row, mark in zip(listed, found, strict=True) if mark is not None}


def _middle(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            file.seek(os.fstat(file.fileno()).st_size // 2)
            return hashlib.sha256(file.read(CHUNK)).digest()
    except OSError:
        return None


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _alike(first: ConcatIndex, second: ConcatIndex, limits: Limits) -> dict[int, int]:
    """Row of `second` -> row of `first` whose picture looks the same."""
    from pipelines.split import find_copies  # here: it needs Pillow, which a loader does without

    paths = [pages.path(row) for pages in (first, second) for row in range(len(pages))]
    try:
        groups = find_copies(paths, limits=limits)
    except UserError:  # a file has gone since the index was built
        return {}
    known = {group: row for row, group in reversed(list(enumerate(groups[: len(first)].tolist())))}
    return {row: known[group] for row, group in enumerate(groups[len(first) :].tolist()) if group in known}
