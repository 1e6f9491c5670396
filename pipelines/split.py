"""k folds of a data set: copies of a page stay together, and every fold has about as many texts as the others.

Two pages are copies when their files have the same bytes, or their pictures look alike: upright, grey, shrunk to
32 x 32 and standardised, they correlate by at least SIMILARITY. Measured on 421 receipts: a copy as JPEG of quality 30,
at half the size, 0.7 times as bright or with 1.5 times the contrast has 0.986 or more; the nearest two of different
receipts have 0.966. Another scan of the same paper is not found (turned by one degree: 0.86).
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipelines.errors import UserError
from pipelines.folders import new_folder, refuse_full
from pipelines.images.read import PILLOW_FORMATS, pixel_limit
from pipelines.index.build import MAX_WORKERS, subset
from pipelines.index.store import Index, is_index
from pipelines.limits import DEFAULT, Limits

SIMILARITY = 0.975
SIDE = 32  # pixels of a thumbnail; 16 confuse different receipts (0.987), 64 miss copies (0.973 at half the size)
BLOCK = 4096  # pages compared with all others at a time: 64 MB of float32 a 4096
FILE, VERSION = "split.json", 1


def thumbnail(path: Path) -> tuple[str, np.ndarray]:
    """SHA-256 of a file, and its standardised thumbnail: (1024,) float32 of length 1, zeros if blank or broken.

    Raises UserError for a file that cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    digest, nothing = hashlib.sha256(data).hexdigest(), np.zeros(SIDE * SIDE, np.float32)
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
            image.draft("L", (4 * SIDE, 4 * SIDE))  # a JPEG is decoded at a part of its size
            small = ImageOps.exif_transpose(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    # What Pillow's plugins raise for broken data: such a page is like no other.
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, Image.DecompressionBombError):
        return digest, nothing
    grey = np.asarray(small, np.float32).ravel()
    grey = grey - grey.mean()
    length = np.linalg.norm(grey)
    return digest, grey / length if length > SIDE else nothing  # a spread below one grey level: blank


def find_copies(
    paths: Sequence[Path],
    similarity: float = SIMILARITY,
    *,
    workers: int = 0,
    limits: Limits = DEFAULT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """(N,) int64 group of every page: the lowest row among its copies, copies of copies included.

    Args:
        paths: images, read whole; UserError for one that cannot be.
        similarity: least correlation of thumbnails; above 1 only files of the same bytes are copies.
        workers: threads; 0 = one a core.
        progress: called with (done, total).
    """
    digests, thumbnails = [], np.zeros((len(paths), SIDE * SIDE), np.float32)
    count = min(workers or (os.cpu_count() or 1), MAX_WORKERS)
    with pixel_limit(limits.pixels), ThreadPoolExecutor(count) as pool:
        for row, (digest, thumb) in enumerate(pool.map(thumbnail, paths)):
            digests.append(digest)
            thumbnails[row] = thumb
            progress(row + 1, len(paths))
    first: dict[str, int] = {}
    same = [(first.setdefault(digest, row), row) for row, digest in enumerate(digests)]
    a, b = np.array([*same, *_alike(thumbnails, similarity)], np.int64).reshape(-1, 2).T
    links = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(paths), len(paths)))
    _, group, of_page = np.unique(
        connected_components(links, directed=False)[1], return_index=True, return_inverse=True
    )
    return group[of_page]


def _alike(thumbnails: np.ndarray, similarity: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose product is at least `similarity`."""
    for start in range(0, len(thumbnails), BLOCK):
        block = thumbnails[start : start + BLOCK]
        for other in range(start, len(thumbnails), BLOCK):
            found = np.argwhere(block @ thumbnails[other : other + BLOCK].T >= similarity)
            yield from ((start + a, other + b) for a, b in found.tolist() if start + a < other + b)


def assign(groups: np.ndarray, texts: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) int64 fold of every page: groups, most of the (N,) texts first, each into the fold with the fewest so far.

    Equal ones are in an order drawn from `seed`; of folds with as many texts the one with fewer pages takes the group.
    Raises UserError for fewer groups than folds.
    Method: Graham 1969, "Bounds on multiprocessing timing anomalies" (longest processing time first).
    """
    names, inverse = np.unique(groups, return_inverse=True)
    if len(names) < folds:
        copies = len(groups) - len(names)
        raise UserError(f"--folds {folds}: there are {len(names)} different pages ({copies} copies); use fewer folds")
    weight, pages = np.bincount(inverse, texts), np.bincount(inverse)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-weight[order], kind="stable")]
    fold_of, load = np.zeros(len(names), np.int64), np.zeros((folds, 2))
    for group in order:
        fold = min(range(folds), key=lambda k: (load[k, 0], load[k, 1], k))
        fold_of[group] = fold
        load[fold] += weight[group], pages[group]
    return fold_of[inverse]


def split(
    index: Index,
    out: Path,
    folds: int,
    seed: int = 0,
    similarity: float = SIMILARITY,
    *,
    workers: int = 0,
    limits: Limits = DEFAULT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Writes `out/fold_0/train`, `out/fold_0/val`, ... as built indexes of the same images, and `out/split.json`.

    Args:
        index: of all pages.
        out: a new or empty folder; complete or absent.
        folds: k, at least 2; each page is in the validation pages of one fold.
        seed, similarity, workers, limits, progress: as `assign` and `find_copies`.

    Returns:
        what split.json holds: seed, similarity, per fold pages and texts of its validation pages, and the groups of
        copies.

    Raises:
        UserError: too few pages, `out` is taken, an image cannot be read, or a fold would have nothing to learn from.
    """
    if folds < 2:
        raise UserError(f"--folds {folds}: must be at least 2")
    refuse_full(out)
    texts = np.array([np.count_nonzero(~index.ignore(i)) for i in range(len(index))])
    groups = find_copies(
        [index.path(i) for i in range(len(index))], similarity, workers=workers, limits=limits, progress=progress
    )
    fold_of = assign(groups, texts, folds, seed)
    described = [{"pages": int((fold_of == k).sum()), "texts": int(texts[fold_of == k].sum())} for k in range(folds)]
    for k, fold in enumerate(described):
        if fold["texts"] == texts.sum():
            raise UserError(f"--folds {folds}: all texts are in fold {k}, the others have none; use fewer folds")
    copies = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    result = {
        "kind": "dbnet-split", "version": VERSION, "source": str(index.folder), "root": str(index.root), "seed": seed,
        "similarity": similarity, "folds": described,
        "copies": [[index.relative_path(i) for i in rows.tolist()] for rows in copies if len(rows) > 1],
    }  # fmt: skip
    with new_folder(out, replace=True) as temporary:
        for k in range(folds):
            subset(index, np.flatnonzero(fold_of != k), temporary / f"fold_{k}" / "train")
            subset(index, np.flatnonzero(fold_of == k), temporary / f"fold_{k}" / "val")
        (temporary / FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def fold_folders(out: Path) -> list[Path]:
    """Folders of the folds of a split, in order; [] where there is none."""
    every = [path for path in out.glob("fold_*") if path.name[5:].isdecimal()] if (out / FILE).is_file() else []
    whole = [path for path in every if is_index(path / "train") and is_index(path / "val")]
    return sorted(whole, key=lambda path: int(path.name[5:]))
