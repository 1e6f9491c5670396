"""The index: everything training needs to know of a data set, memory-mapped, built once.

A folder of .npy files and meta.json, written under a temporary name and renamed, so it is complete or absent:

    size_wh (N, 2) int32 oriented pixels    orientation (N,) uint8 EXIF 1..8     file_stat (N, 2) int64 mtime_ns, bytes
    points (V, 2) float32 oriented pixels   point_offsets (P+1,) int64           page_offsets (N+1,) int64
    ignore (P,) bool                        names, name_offsets (N+1)            texts, text_offsets (P+1), if any

Page i has polygons page_offsets[i] : page_offsets[i+1]; polygon p has points point_offsets[p] : point_offsets[p+1].
All ranks map the same files, so the pages are in memory once a machine and workers start without a copy.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import UserError
from pipelines.formats import read_source
from pipelines.images import DEFAULT_MAX_PIXELS, Header, pixel_limit, read_header
from pipelines.page import Page, Source

logger = logging.getLogger(__name__)

VERSION = 1
KIND = "dbnet-index"
ARRAYS = (
    "size_wh", "orientation", "file_stat", "points", "point_offsets", "page_offsets", "ignore", "names", "name_offsets",
)  # fmt: skip
# More threads than this only queue at the disk; a header costs about 0.2 ms.
MAX_WORKERS = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Index:
    """A built data set, read-only. Polygons are oriented source pixels (pixel centres at i + 0.5)."""

    folder: Path
    root: Path
    format: str
    counts: dict[str, int]
    size_wh: np.ndarray
    orientation: np.ndarray
    file_stat: np.ndarray = field(repr=False)
    points: np.ndarray = field(repr=False)
    point_offsets: np.ndarray = field(repr=False)
    page_offsets: np.ndarray = field(repr=False)
    ignore_flags: np.ndarray = field(repr=False)
    _names: np.ndarray = field(repr=False)
    _name_offsets: np.ndarray = field(repr=False)
    _texts: np.ndarray | None = field(repr=False, default=None)
    _text_offsets: np.ndarray | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.size_wh)

    @property
    def has_texts(self) -> bool:
        """Whether the source has transcriptions."""
        return self._texts is not None

    @property
    def num_usable(self) -> int:
        """Polygons that are not ignored; 0 means there is nothing to train on."""
        return int(len(self.ignore_flags) - np.count_nonzero(self.ignore_flags))

    @property
    def paths(self) -> list[str]:
        """Absolute path of every page's image."""
        return [str(self.path(i)) for i in range(len(self))]

    def relative_path(self, i: int) -> str:
        """Image path of page i relative to the root."""
        return _string(self._names, self._name_offsets, self._row(i))

    def path(self, i: int) -> Path:
        """Absolute image path of page i."""
        return self.root / self.relative_path(i)

    def name(self, i: int) -> str:
        """Image file name of page i."""
        return self.relative_path(i).rpartition("/")[2]

    def polygons(self, i: int) -> list[np.ndarray]:
        """Polygons of page i: (n, 2) float32 views, oriented pixels."""
        first, last = self._range(i)
        bounds = self.point_offsets[first : last + 1]
        return [np.asarray(self.points[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]

    def ignore(self, i: int) -> np.ndarray:
        """(k,) bool, one flag a polygon of page i."""
        first, last = self._range(i)
        return np.asarray(self.ignore_flags[first:last])

    def texts(self, i: int) -> list[str] | None:
        """Transcriptions of page i ("" where a polygon has none); None when the source has none at all."""
        if self._texts is None or self._text_offsets is None:
            return None
        first, last = self._range(i)
        return [_string(self._texts, self._text_offsets, p) for p in range(first, last)]

    def _row(self, i: int) -> int:
        row = int(i)
        if not 0 <= row < len(self):
            raise IndexError(f"page {row} of {len(self)}")
        return row

    def _range(self, i: int) -> tuple[int, int]:
        row = self._row(i)
        return int(self.page_offsets[row]), int(self.page_offsets[row + 1])


@dataclass(frozen=True, eq=False)
class ConcatIndex:
    """Several indexes end to end, with the interface of one. `dataset_of` (N,) int64 tells which a page is from."""

    parts: list[Index]
    lengths: list[int] = field(init=False)
    dataset_of: np.ndarray = field(init=False, repr=False)
    size_wh: np.ndarray = field(init=False, repr=False)
    orientation: np.ndarray = field(init=False, repr=False)
    _starts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.parts, "at least one index"
        set_field = object.__setattr__
        set_field(self, "lengths", [len(part) for part in self.parts])
        set_field(self, "dataset_of", np.repeat(np.arange(len(self.parts)), self.lengths))
        set_field(self, "size_wh", np.concatenate([part.size_wh for part in self.parts]))
        set_field(self, "orientation", np.concatenate([part.orientation for part in self.parts]))
        set_field(self, "_starts", np.concatenate([[0], np.cumsum(self.lengths)]))

    def __len__(self) -> int:
        return len(self.dataset_of)

    @property
    def has_texts(self) -> bool:
        """Whether every part has transcriptions."""
        return all(part.has_texts for part in self.parts)

    @property
    def num_usable(self) -> int:
        """Polygons that are not ignored."""
        return sum(part.num_usable for part in self.parts)

    @property
    def paths(self) -> list[str]:
        """Absolute path of every page's image."""
        return [path for part in self.parts for path in part.paths]

    def _at(self, i: int) -> tuple[Index, int]:
        row = int(i)
        if not 0 <= row < len(self):
            raise IndexError(f"page {row} of {len(self)}")
        part = int(self.dataset_of[row])
        return self.parts[part], row - int(self._starts[part])

    def relative_path(self, i: int) -> str:
        """Image path of page i relative to its own root."""
        part, row = self._at(i)
        return part.relative_path(row)

    def path(self, i: int) -> Path:
        """Absolute image path of page i."""
        part, row = self._at(i)
        return part.path(row)

    def name(self, i: int) -> str:
        """Image file name of page i."""
        part, row = self._at(i)
        return part.name(row)

    def polygons(self, i: int) -> list[np.ndarray]:
        """Polygons of page i: (n, 2) float32 views, oriented pixels."""
        part, row = self._at(i)
        return part.polygons(row)

    def ignore(self, i: int) -> np.ndarray:
        """(k,) bool, one flag a polygon of page i."""
        part, row = self._at(i)
        return part.ignore(row)

    def texts(self, i: int) -> list[str] | None:
        """Transcriptions of page i; None unless every part has them."""
        part, row = self._at(i)
        return part.texts(row) if self.has_texts else None


def _string(data: np.ndarray, offsets: np.ndarray, i: int) -> str:
    return data[offsets[i] : offsets[i + 1]].tobytes().decode("utf-8", errors="surrogatepass")


def clean(page: Page, width: int, height: int, counts: dict[str, int]) -> Page:
    """A page fit for the index: only finite polygons of 3 points or more, clamped to the page.

    Args:
        width, height: of the image, oriented pixels; coordinates may span 0..width and 0..height.
        counts: `dropped_not_finite`, `dropped_few_points`, `clamped` are added up here.
    """
    made = Page(page.path, width, height, texts=None if page.texts is None else [])
    limit = np.array([width, height], np.float32)
    for k, polygon in enumerate(page.polygons):
        if not np.isfinite(polygon).all():
            counts["dropped_not_finite"] += 1
            continue
        if len(polygon) < 3:
            counts["dropped_few_points"] += 1
            continue
        inside = np.clip(polygon, 0, limit)
        counts["clamped"] += int((inside != polygon).any())
        made.add(inside, bool(page.ignore[k]), page.texts[k] if page.texts is not None else None)
    return made


def _blob(strings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Strings as UTF-8 bytes end to end, and their offsets."""
    encoded = [s.encode("utf-8", errors="surrogatepass") for s in strings]
    return np.frombuffer(b"".join(encoded), np.uint8), _offsets([len(e) for e in encoded])


def _offsets(lengths: list[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _arrays(pages: list[Page], headers: list[Header]) -> dict[str, np.ndarray]:
    polygons = [polygon for page in pages for polygon in page.polygons]
    names, name_offsets = _blob([page.path for page in pages])
    made = {
        "size_wh": np.array([(h.width, h.height) for h in headers], np.int32).reshape(-1, 2),
        "orientation": np.array([h.orientation for h in headers], np.uint8),
        "file_stat": np.array([(h.mtime_ns, h.num_bytes) for h in headers], np.int64).reshape(-1, 2),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *polygons]).astype(np.float32),
        "point_offsets": _offsets([len(polygon) for polygon in polygons]),
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
    paths: list[Path], workers: int, max_pixels: int = DEFAULT_MAX_PIXELS, progress: Progress | None = None
) -> list[Header]:
    """Headers of many files, in order, on a thread pool (0 workers = one a core, at most 32)."""
    count = min(workers or (os.cpu_count() or 1), MAX_WORKERS)
    headers = []
    with pixel_limit(max_pixels), ThreadPoolExecutor(count) as pool:
        for header in pool.map(lambda path: read_header(path, max_pixels), paths):
            headers.append(header)
            if progress is not None:
                progress(len(headers), len(paths))
    return headers


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
            f"{source.root / source.pages[bad[0]].path}: {first.problem} ({first.detail}); {len(bad)} of {len(headers)} "
            "images are unusable: `pipelines.dataset check` names them all, `build --skip-bad` leaves them out"
        )
    for i in bad:
        logger.warning("%s: %s (%s), left out", source.pages[i].path, headers[i].problem, headers[i].detail)
    counts["skipped_images"] = len(bad)
    return good


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` that becomes `out` when the block ends well; a finished one wins a race."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(out)
        except OSError:
            if not (out / "meta.json").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(out: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    if out.exists() and any(out.iterdir()) and not is_index(out):
        raise UserError(f"{out}: exists and is not an index; name another --out")
    if is_index(out):
        shutil.rmtree(out)
    with _new_folder(out) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def build(
    source: str | Path,
    out: str | Path,
    format: str = "auto",
    root: str | Path | None = None,
    *,
    workers: int = 0,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    skip_bad: bool = False,
    progress: Progress | None = None,
    key: str = "",
) -> Index:
    """Builds the index of an annotation source in folder `out`; an index already there is replaced.

    Args:
        source, format, root: as `formats.read_source`.
        workers: threads that read image headers; 0 = one a core.
        max_pixels: larger images are refused.
        skip_bad: leave missing and unreadable images out (with a warning each) instead of refusing.
        progress: called with (done, total).
        key: what `open_index` compares to know the index is still true.

    Raises:
        UserError: bad source, no pages, missing, unreadable or too large images.
    """
    made = read_source(source, format, root)
    paths = [made.root / page.path for page in made.pages]
    headers = read_headers(paths, workers, max_pixels, progress)
    counts = {"dropped_not_finite": 0, "dropped_few_points": 0, "clamped": 0, "wrong_size": 0}
    rows = _drop_bad(made, headers, skip_bad, counts)
    headers = [headers[i] for i in rows]
    pages = []
    for i, header in zip(rows, headers, strict=True):
        page = made.pages[i]
        counts["wrong_size"] += bool(page.width) and (page.width, page.height) != (header.width, header.height)
        pages.append(clean(page, header.width, header.height, counts))
    for finding in made.findings:
        counts[finding.kind.replace("-", "_")] = counts.get(finding.kind.replace("-", "_"), 0) + 1
    counts |= {"pages": len(pages), "polygons": sum(len(p.polygons) for p in pages)}
    counts["ignored"] = sum(sum(p.ignore) for p in pages)
    meta = {
        "kind": KIND, "version": VERSION, "source": str(Path(source).resolve()), "root": str(made.root),
        "format": made.format, "key": key, "counts": counts,
    }  # fmt: skip
    _write(Path(out), _arrays(pages, headers), meta)
    return load(out)


def is_index(folder: str | Path) -> bool:
    """Whether a folder is an index (of any version)."""
    meta = Path(folder) / "meta.json"
    if not meta.is_file():
        return False
    try:
        data = json.loads(meta.read_bytes())
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("kind") == KIND


def _map(path: Path) -> np.ndarray:
    """A memory map of a .npy file; an empty array is simply read (nothing can be mapped of it)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the index is incomplete, build it again") from error
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); build the index again") from error
    return array if array.size else np.zeros(array.shape, array.dtype)


def load(folder: str | Path) -> Index:
    """Opens a built index.

    Raises:
        UserError: not an index, of another version, incomplete, or with its image folder gone.
    """
    folder = Path(folder)
    if not is_index(folder):
        raise UserError(f"{folder}: not an index folder; build it with `python -m pipelines.dataset build`")
    meta = json.loads((folder / "meta.json").read_bytes())
    if meta.get("version") != VERSION:
        raise UserError(f"{folder}: index version {meta.get('version')}, this program reads {VERSION}; build it again")
    root = Path(meta["root"])
    if not root.is_dir():
        raise UserError(f"{folder}: its image folder {root} is gone; build the index again")
    arrays = [_map(folder / f"{name}.npy") for name in ARRAYS]
    if len(arrays[0]) == 0:
        raise UserError(f"{folder}: no pages")
    texts = [_map(folder / f"{name}.npy") for name in ("texts", "text_offsets") if (folder / "texts.npy").is_file()]
    return Index(folder, root, meta["format"], meta["counts"], *arrays, *texts)


def _signature(path: Path) -> list[tuple[str, int, int]]:
    """Name, time and size of the files a source's content depends on: itself, and label files for a folder."""
    places = [path] if path.is_file() else []
    folder = path if path.is_dir() else path.parent
    # An id list depends on the label files next to it; a JSON or PaddleOCR file on itself only.
    if path.is_dir() or path.suffix.lower() == ".txt":
        folders = [folder] + [p for p in sorted(folder.iterdir()) if p.is_dir()]
        places += [p for f in folders for p in sorted(f.iterdir()) if p.suffix.lower() in (".txt", ".csv", ".json")]
    stats = [(p, p.stat()) for p in dict.fromkeys(places)]
    return [(str(p), s.st_mtime_ns, s.st_size) for p, s in stats]


def _images_unchanged(index: Index) -> bool:
    for i in range(len(index)):
        try:
            stat = os.stat(index.path(i))
        except OSError:
            return False
        if (stat.st_mtime_ns, stat.st_size) != tuple(index.file_stat[i].tolist()):
            return False
    return True


def open_index(spec: str | Path, format: str = "auto", cache_dir: str | Path = "runs/.index") -> Index:
    """Opens a built index, or builds one for an annotation source in the cache.

    The cache entry is used only while the annotation files and every image have the time and size they had when it
    was built, so an edit of either is seen.

    Raises:
        UserError: as `load` and `build`.
    """
    path = Path(spec)
    if is_index(path):
        return load(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    stated = json.dumps([VERSION, format, str(path.resolve()), _signature(path.resolve())])
    key = hashlib.sha256(stated.encode()).hexdigest()
    place = hashlib.sha256(f"{format}\n{path.resolve()}".encode()).hexdigest()[:12]
    folder = Path(cache_dir) / f"{path.stem}-{place}-{key[:12]}"
    if is_index(folder):
        index = load(folder)
        if _images_unchanged(index):
            return index
    logger.info("building the index of %s in %s", path, folder)
    index = build(path, folder, format, key=key)
    logger.info("%s: %s, %d pages, %d polygons", path, index.format, len(index), len(index.ignore_flags))
    return index
