"""Builds the index of an annotation source, and opens one for whatever the user names (the layout: index_store)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.annotations.packed import Polygons, pack
from pipelines.annotations.page import Page, Source, in_pixels
from pipelines.annotations.read import annotation_files, read_source
from pipelines.errors import UserError, printable
from pipelines.folders import new_folder
from pipelines.index.clean import PROBLEMS, clean
from pipelines.index.conventions import other_convention
from pipelines.index.store import KIND, VERSION, ConcatIndex, Index, is_index, load
from pipelines.limits import DEFAULT, Limits

if TYPE_CHECKING:
    from pipelines.images.read import Header

__all__ = ["ConcatIndex", "Index", "build", "is_index", "load", "open_index", "read_headers", "subset"]

logger = logging.getLogger(__name__)

# More threads than this only queue at the disk; a header costs about 0.2 ms.
MAX_WORKERS = 32
Progress = Callable[[int, int], None]


# What an index counts besides findings of the reader: regions by their problem, pages of another size than stated.
COUNTS = (*(kind.replace("-", "_") for kind in PROBLEMS), "wrong_size", "several_pages")


def _blob(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as UTF-8 bytes end to end, and their offsets."""
    encoded = [s.encode("utf-8", errors="surrogatepass") for s in strings]
    return np.frombuffer(b"".join(encoded), np.uint8), _offsets([len(e) for e in encoded])


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _arrays(pages: list[Page], headers: list[Header]) -> dict[str, np.ndarray]:
    points = [Polygons(page.polygons).points for page in pages]
    lengths = [len(polygon) for page in pages for polygon in page.polygons]
    names, name_offsets = _blob([page.path for page in pages])
    made: dict[str, np.ndarray] = {
        "size_wh": np.array([(h.width, h.height) for h in headers], np.int32).reshape(-1, 2),
        "orientation": np.array([h.orientation for h in headers], np.uint8),
        "file_stat": np.array([(h.mtime_ns, h.num_bytes) for h in headers], np.int64).reshape(-1, 2),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *points]).astype(np.float32, copy=False),
        "point_offsets": _offsets(lengths),
        "page_offsets": _offsets([len(page.polygons) for page in pages]),
        "ignore": np.array([flag for page in pages for flag in page.ignore], bool),
        "names": names,
        "name_offsets": name_offsets,
    }
    if any(page.texts is not None for page in pages):
        texts = [text for page in pages for text in (page.texts or [""] * len(page.polygons))]
        made["texts"], made["text_offsets"] = _blob(texts)
    return made


def read_headers(
    paths: list[Path], workers: int, limits: Limits = DEFAULT, progress: Progress | None = None
) -> list[Header]:
    """Headers of many files, in order, on a thread pool (0 workers = one a core, at most 32)."""
    from pipelines.images.read import pixel_limit, read_header  # here: loaders of annotated pages do without Pillow

    count = min(workers or (os.cpu_count() or 1), MAX_WORKERS)
    headers = []
    with pixel_limit(limits.pixels), ThreadPoolExecutor(count) as pool:
        for header in pool.map(lambda path: read_header(path, limits), paths):
            headers.append(header)
            if progress is not None:
                progress(len(headers), len(paths))
    return headers


def _refuse_crowded(pages: list[Page], headers: list[Header], most: int) -> list[Header]:
    """Headers in which a page with too many polygons has the problem `too-many-polygons`."""
    return [
        header._replace(problem="too-many-polygons", detail=f"{len(page.polygons)} are more than the {most} allowed")
        if len(page.polygons) > most and not header.problem
        else header
        for page, header in zip(pages, headers, strict=True)
    ]


def _refuse_nowhere(pages: list[Page], headers: list[Header]) -> list[Header]:
    """Headers in which a page has the problem `nowhere` when nothing in one of its regions is a number."""
    made = []
    for page, header in zip(pages, headers, strict=True):
        if not page.polygons or (min(map(len, page.polygons)) and np.isfinite(np.concatenate(page.polygons)).all()):
            made.append(header)  # nearly always
            continue
        lost = next((k for k, region in enumerate(page.polygons) if not np.isfinite(region).all(1).any()), None)
        if lost is not None and not header.problem:
            header = header._replace(
                problem="nowhere", detail=f"region {lost + 1} has no coordinates: mend or delete it"
            )
        made.append(header)
    return made


def _keep_known(source: Source, headers: list[Header], known: Index | None) -> tuple[list[Header], dict[str, Any]]:
    """Headers in which a file that was good in an earlier index, and is not now, is what it was then.

    A run that starts again after a file went bad under it must find the same pages: its epoch has an order. Reading
    the file then fails, and another page takes its place.

    Returns:
        headers; path -> [mtime_ns, bytes] of those files as they are now, None where there is none.
    """
    if known is None:
        return headers, {}
    rows = {known.relative_path(i): i for i in range(len(known))}
    made, kept = [], {}
    for page, header in zip(source.pages, headers, strict=True):
        row = rows.get(page.path)
        if header.problem and row is not None:
            logger.warning("%s: %s (%s), kept as it was", source.root / page.path, header.problem, header.detail)
            kept[page.path] = [header.mtime_ns, header.num_bytes] if header.mtime_ns else None
            (width, height), (mtime_ns, num_bytes) = known.size_wh[row].tolist(), known.file_stat[row].tolist()
            header = header._replace(
                width=width, height=height, orientation=int(known.orientation[row]),
                mtime_ns=mtime_ns, num_bytes=num_bytes, problem="", detail="",
            )  # fmt: skip
        made.append(header)
    return made, kept


def _drop_bad(source: Source, headers: list[Header], skip_bad: bool, counts: dict[str, int]) -> list[int]:
    """Rows with a good header.

    Raises:
        UserError: naming the first bad image and how many there are, unless `skip_bad`.
    """
    good = [i for i, header in enumerate(headers) if not header.problem]
    bad = [i for i, header in enumerate(headers) if header.problem]
    if bad and (not skip_bad or not good):
        first = headers[bad[0]]
        raise UserError(
            f"{source.root / source.pages[bad[0]].path}: {first.problem} ({first.detail}); "
            f"{len(bad)} of {len(headers)} pages are unusable: `pipelines.dataset check` names them all, "
            "`pipelines.dataset build --skip-bad` makes an index without them"
        )
    for i in bad:
        words = f"{source.pages[i].path}: {headers[i].problem} ({headers[i].detail}), left out"
        logger.warning("%s", printable(words))
    counts["skipped_images"] = len(bad)
    return good


def _write(out: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any], replace: bool) -> None:
    with new_folder(out, replace) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _clean_pages(pages: list[Page], headers: list[Header], counts: dict[str, int], limits: Limits) -> list[Page]:
    """Cleaned pages with the images' own sizes, in place of the stated ones; fills in the rest of the counts."""
    for row, (page, header) in enumerate(zip(pages, headers, strict=True)):
        size = (header.width, header.height)
        counts["several_pages"] += header.several
        counts["wrong_size"] += bool(page.width) and (page.width, page.height) != size
        cleaned = clean(page, *size, limits.points)
        for kind, regions in cleaned.problems.items():
            counts[kind.replace("-", "_")] += len(regions)
        pages[row] = pack(cleaned.page)
        page.polygons = []  # held by the source as well: both at once took twice the memory
    counts |= {"pages": len(pages), "polygons": sum(len(p.polygons) for p in pages)}
    counts["ignored"] = sum(sum(p.ignore) for p in pages)
    return pages


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
    headers = read_headers([made.root / page.path for page in made.pages], workers, limits, progress)
    headers, kept = _keep_known(made, headers, known)
    for page, header in zip(made.pages, headers, strict=True):
        in_pixels(page, header.width, header.height)
    headers = _refuse_nowhere(made.pages, _refuse_crowded(made.pages, headers, limits.polygons))
    odd = other_convention(made.pages, [(header.width, header.height) for header in headers])
    if odd:
        raise UserError(f"{source}: {odd}; read as {made.format}, another data.format (--format) may read it")
    counts = dict.fromkeys(COUNTS, 0)
    rows = _drop_bad(made, headers, skip_bad, counts)
    headers = [headers[i] for i in rows]
    pages = _clean_pages([made.pages[i] for i in rows], headers, counts, limits)
    for finding in made.findings:
        kind = finding.kind.replace("-", "_")
        counts[kind] = counts.get(kind, 0) + 1
    meta = {"kind": KIND, "version": VERSION, "source": str(Path(source).resolve()), "root": str(made.root)}
    meta |= {"format": made.format, "counts": counts, "kept": kept}
    _write(out, _arrays(pages, headers), meta, replace)
    return load(out)


def subset(index: Index, rows: np.ndarray, out: Path) -> Index:
    """Builds an index of some pages of another one, of the same image files, in folder `out`.

    Args:
        index: a built index.
        rows: pages to keep, in their new order, at least one.
        out: replaced where it is an index.
    """
    polygons = np.concatenate([np.arange(*index.page_offsets[i : i + 2]) for i in rows])
    points = [np.arange(*index.point_offsets[p : p + 2]) for p in polygons]
    names, name_offsets = _blob([index.relative_path(i) for i in rows])
    arrays = {
        "size_wh": index.size_wh[rows], "orientation": index.orientation[rows], "file_stat": index.file_stat[rows],
        "points": index.points[np.concatenate([np.zeros(0, np.int64), *points])],
        "point_offsets": _offsets([len(p) for p in points]),
        "page_offsets": _offsets([len(index.ignore(i)) for i in rows]),
        "ignore": index.ignore_flags[polygons], "names": names, "name_offsets": name_offsets,
    }  # fmt: skip
    if index.has_texts:
        arrays["texts"], arrays["text_offsets"] = _blob([text for i in rows for text in index.texts(i) or []])
    counts = {"pages": len(rows), "polygons": len(polygons), "ignored": int(arrays["ignore"].sum())}
    meta = {"kind": KIND, "version": VERSION, "source": str(index.folder.resolve()), "root": str(index.root)}
    _write(out, arrays, meta | {"format": index.format, "counts": counts, "kept": {}}, replace=True)
    return load(out)


def _signature(path: Path) -> list[tuple[str, int, int]]:
    """Name, time and size of the files a source's content depends on."""
    return [(str(p), s.st_mtime_ns, s.st_size) for p, s in ((p, p.stat()) for p in annotation_files(path))]


def _images_unchanged(index: Index) -> bool:
    """Whether every image is as it was when the index was built; bad ones that were kept, still as bad."""
    kept = json.loads((index.folder / "meta.json").read_bytes()).get("kept", {})
    for i in range(len(index)):
        try:
            stat = os.stat(index.path(i))
            now = [stat.st_mtime_ns, stat.st_size]
        except OSError:
            now = None
        if now != kept.get(index.relative_path(i), index.file_stat[i].tolist()):
            return False
    return True


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
    stated = json.dumps([VERSION, format, where, str(path.resolve()), _signature(path.resolve()), bounds])
    key = hashlib.sha256(stated.encode()).hexdigest()
    place = hashlib.sha256(f"{format}\n{where}\n{path.resolve()}".encode()).hexdigest()[:12]
    folder = Path(cache_dir) / f"{path.stem}-{place}-{key[:12]}"
    known = load(folder) if is_index(folder) else None
    if known is not None and _images_unchanged(known):
        return known
    logger.info("building the index of %s in %s", printable(path), printable(folder))
    index = build(path, folder, format, root, limits=limits, replace=known is not None, known=known)
    logger.info("%s: %s, %d pages, %d polygons", printable(path), index.format, len(index), len(index.ignore_flags))
    return index
