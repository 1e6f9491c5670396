"""Builds the index of an annotation source, and opens one for whatever the user names (the layout: index_store)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations.packed import in_pixels
from pipelines.annotations.page import Source
from pipelines.annotations.read import annotation_files, read_source
from pipelines.errors import UserError, printable
from pipelines.folders import new_folder
from pipelines.index.clean import PROBLEMS, clean
from pipelines.index.conventions import other_convention
from pipelines.index.headers import (
    MAX_WORKERS,
    Headers,
    Progress,
    keep_known,
    read_headers,
    refuse_regions,
)
from pipelines.index.store import KIND, VERSION, ConcatIndex, Index, is_index, load
from pipelines.index.write import Pages, save_rows
from pipelines.limits import DEFAULT, Limits

__all__ = ["MAX_WORKERS", "ConcatIndex", "Index", "build", "is_index", "load", "open_index", "subset"]

logger = logging.getLogger(__name__)

LOOKS = 1000  # files that a thread looks at in one go

# What an index counts besides findings of the reader: regions by their problem, pages of another size than stated.
COUNTS = (*(kind.replace("-", "_") for kind in PROBLEMS), "wrong_size", "several_pages")


def _drop_bad(source: Source, headers: Headers, skip_bad: bool, counts: dict[str, int]) -> list[int]:
    """Rows without a problem.

    Raises:
        UserError: naming the first bad image and how many there are, unless `skip_bad`.
    """
    bad = sorted(headers.problems)
    if bad and (not skip_bad or len(bad) == len(headers)):
        problem, detail = headers.problems[bad[0]]
        raise UserError(
            f"{source.root / source.pages[bad[0]].path}: {problem} ({detail}); "
            f"{len(bad)} of {len(headers)} pages are unusable: `pipelines.dataset check` names them all, "
            "`pipelines.dataset build --skip-bad` makes an index without them"
        )
    for row in bad:
        problem, detail = headers.problems[row]
        logger.warning("%s", printable(f"{source.pages[row].path}: {problem} ({detail}), left out"))
    counts["skipped_images"] = len(bad)
    return [row for row in range(len(headers)) if row not in headers.problems]


def _write_pages(
    folder: Path, source: Source, headers: Headers, rows: list[int], counts: dict[str, int], limits: Limits
) -> None:
    """Writes the arrays of some pages, cleaned and with the images' own sizes; fills in the rest of the counts."""
    with Pages(folder, texts=any(source.pages[row].texts is not None for row in rows)) as pages:
        for row in rows:
            page, (width, height) = source.pages[row], headers.size_wh[row].tolist()
            counts["wrong_size"] += bool(page.width) and (page.width, page.height) != (width, height)
            cleaned = clean(page, width, height, limits.points)
            for kind, regions in cleaned.problems.items():
                counts[kind.replace("-", "_")] += len(regions)
            ignore = np.array(cleaned.page.ignore, bool)
            pages.add(page.path, cleaned.lengths, cleaned.points, ignore, cleaned.page.texts)
    arrays = {name: getattr(headers, name)[rows] for name in ("size_wh", "orientation", "file_stat")}
    save_rows(folder, **arrays)
    counts["several_pages"] = int(headers.several[rows].sum())
    counts |= {"pages": pages.pages, "polygons": pages.polygons, "ignored": pages.ignored}


def _save_meta(folder: Path, meta: dict[str, Any]) -> None:
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def build(
    source: str | Path,
    out: str | Path,
    format: str = "auto",
    root: str | Path | None = None,
    *,
    workers: int = 0,
    limits: Limits = DEFAULT,
    skip_bad: bool = False,
    progress: Progress | None = None,
    replace: bool = True,
    known: Index | None = None,
    follow_links: bool = False,
) -> Index:
    """Builds the index of an annotation source in folder `out`.

    Args:
        source, format, root, follow_links: as `formats.read_source`.
        workers: threads that read image headers; 0 = one a core.
        limits: what is beyond them is refused; polygons of too many points are drawn with fewer, or ignored.
        skip_bad: leave missing, unreadable and refused pages out (with a warning each) instead of refusing all.
        progress: called with (done, total).
        replace: replace an index that is there; else it stays and is opened.
        known: an earlier index: pages that were good in it and are not now are kept as they were.

    Raises:
        UserError: bad source, no pages, missing or unreadable images, pages beyond the limits.
    """
    out = Path(out)
    if out.exists() and not is_index(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an index; name another --out")
    made = read_source(source, format, root, limits.annotation_mb, follow_links=follow_links)
    headers, kept = _headers(made, workers, limits, progress, known)
    odd = other_convention(made.pages, headers.size_wh)
    if odd:
        raise UserError(f"{source}: {odd}; read as {made.format}, another data.format (--format) may read it")
    counts = dict.fromkeys(COUNTS, 0)
    rows = _drop_bad(made, headers, skip_bad, counts)
    meta = {"kind": KIND, "version": VERSION, "source": str(Path(source).resolve()), "root": str(made.root)}
    with new_folder(out, replace) as folder:
        _write_pages(folder, made, headers, rows, counts, limits)
        for kind, count in made.findings.counts.items():
            counts[kind.replace("-", "_")] = counts.get(kind.replace("-", "_"), 0) + count
        _save_meta(folder, meta | {"format": made.format, "counts": counts, "kept": kept})
    return load(out)


def _headers(
    made: Source, workers: int, limits: Limits, progress: Progress | None, known: Index | None
) -> tuple[Headers, dict[str, Any]]:
    """Headers of a source's images, with the problems of its pages; regions are in pixels then. And `keep_known`'s."""
    names = [page.path for page in made.pages]
    headers = read_headers(made.root, names, workers, limits, progress)
    kept = keep_known(made.root, names, headers, known)
    for page, (width, height) in zip(made.pages, headers.size_wh, strict=True):
        in_pixels(page, int(width), int(height))
    refuse_regions(made.pages, headers, limits.polygons)
    return headers, kept


def subset(index: Index, rows: np.ndarray, out: Path) -> Index:
    """Builds an index of some pages of another one, of the same image files, in folder `out`.

    Args:
        index: a built index.
        rows: pages to keep, in their new order, at least one.
        out: replaced where it is an index.
    """
    with new_folder(out, replace=True) as folder:
        with Pages(folder, index.has_texts) as pages:
            for row in rows:
                labels = index.labels(row)
                lengths = np.diff(labels.offsets)
                pages.add(index.relative_path(row), lengths, labels.points, labels.ignore, index.texts(row))
        save_rows(
            folder, size_wh=index.size_wh[rows], orientation=index.orientation[rows], file_stat=index.file_stat[rows]
        )
        counts = {"pages": pages.pages, "polygons": pages.polygons, "ignored": pages.ignored}
        meta = {"kind": KIND, "version": VERSION, "source": str(index.folder.resolve()), "root": str(index.root)}
        _save_meta(folder, meta | {"format": index.format, "counts": counts, "kept": {}})
    return load(out)


def _key(path: Path, format: str, where: str, bounds: list[int]) -> str:
    """A hash of what an index depends on: also of name, time and size of the files of its source, a million at most."""
    made = hashlib.sha256(json.dumps([VERSION, format, where, str(path)])[:-1].encode() + b", [")
    between = ""
    for file in annotation_files(path):
        stat = os.stat(file)
        made.update((between + json.dumps((file, stat.st_mtime_ns, stat.st_size))).encode())
        between = ", "
    made.update(f"], {json.dumps(bounds)}]".encode())
    return made.hexdigest()


def _images_unchanged(index: Index) -> bool:
    """Whether every image is as it was when the index was built; bad ones that were kept, still as bad."""
    kept = json.loads((index.folder / "meta.json").read_bytes()).get("kept", {})
    names, root = index.relative_paths(), str(index.root)

    def same(start: int) -> bool:
        for name, then in zip(names[start : start + LOOKS], index.file_stat[start : start + LOOKS].tolist()):
            try:
                stat = os.stat(f"{root}/{name}")
                now = [stat.st_mtime_ns, stat.st_size]
            except OSError:
                now = None
            if now != (kept.get(name, then) if kept else then):
                return False
        return True

    with ThreadPoolExecutor(MAX_WORKERS) as pool:  # a look at a file on another machine's disk is all waiting
        return all(pool.map(same, range(0, len(names), LOOKS)))


def open_index(
    spec: str | Path,
    format: str = "auto",
    cache_dir: str | Path = "runs/.index",
    limits: Limits = DEFAULT,
    root: str | Path | None = None,
) -> Index:
    """Opens a built index, or builds one for an annotation source in the cache.

    The cache entry is used only while the annotation files and every image have the time and size they had when it
    was built, so an edit of either is seen. An image that was good then and is not now keeps its place: see `build`.

    Args:
        spec: a built index, or an annotation source.
        format, root, limits: of the source, as for `build`.
        cache_dir: where indexes of sources are kept.

    Raises:
        UserError: as `load` and `build`.
    """
    path = Path(spec)
    if is_index(path):
        return load(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    bounds = [limits.scans, limits.polygons, limits.points]  # the page size is asked of the index, by engine.data
    where = str(Path(root).resolve()) if root is not None else ""
    key = _key(path.resolve(), format, where, bounds)
    place = hashlib.sha256(f"{format}\n{where}\n{path.resolve()}".encode()).hexdigest()[:12]
    folder = Path(cache_dir) / f"{path.stem}-{place}-{key[:12]}"
    known = load(folder) if is_index(folder) else None
    if known is not None and _images_unchanged(known):
        return known
    logger.info("building the index of %s in %s", printable(path), printable(folder))
    index = build(path, folder, format, root, limits=limits, replace=known is not None, known=known)
    logger.info("%s: %s, %d pages, %d polygons", printable(path), index.format, len(index), len(index.ignore_flags))
    return index
