"""The index: everything training needs to know of a data set, memory-mapped, built once.

A folder of .npy files and meta.json, written under a temporary name and renamed, so it is complete or absent:

    size_wh (N, 2) int32 oriented pixels    orientation (N,) uint8 EXIF 1..8     file_stat (N, 2) int64 mtime_ns, bytes
    points (V, 2) float32 oriented pixels   point_offsets (P+1,) int64           page_offsets (N+1,) int64
    ignore (P,) bool                        names, name_offsets (N+1)            texts, text_offsets (P+1), if any

Page i has polygons page_offsets[i] : page_offsets[i+1]; polygon p has points point_offsets[p] : point_offsets[p+1].
All ranks map the same files, so the pages are in memory once a machine and workers start without a copy.
"""

import json
import os
import tokenize
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.geometry import Labels

VERSION = 2  # 1 left regions out that it could not read
KIND = "dbnet-index"
BLOCK = 1 << 17  # offsets that are looked at in one go: of a million pages a copy of all of them has 0.5 GB
EXPECTED = ("pages", "polygons", "ignored")  # counts of what every data set has
ARRAYS = (
    "size_wh", "orientation", "file_stat", "points", "point_offsets", "page_offsets", "ignore", "names", "name_offsets",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Index:
    """A built data set, read-only. Polygons are oriented source pixels (pixel centres at i + 0.5)."""

    folder: Path
    root: Path
    format: str
    counts: dict[str, int]
    size_wh: np.ndarray = field(repr=False)
    orientation: np.ndarray = field(repr=False)
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

    def __reduce__(self) -> tuple:
        """Pickled as its folder: a worker process maps the same files instead of getting a copy of them."""
        return load, (self.folder.resolve(),)

    @property
    def has_texts(self) -> bool:
        """Whether the source has transcriptions."""
        return self._texts is not None

    @property
    def oddities(self) -> str:
        """What was odd in the source, `3 masked, 1 no labels`; "" for nothing."""
        odd = {kind: count for kind, count in self.counts.items() if count and kind not in EXPECTED}
        return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in odd.items())

    @property
    def num_usable(self) -> int:
        """Polygons that are not ignored; 0 means there is nothing to train on."""
        return int(len(self.ignore_flags) - np.count_nonzero(self.ignore_flags))

    @property
    def paths(self) -> list[str]:
        """Absolute path of every page's image."""
        base = os.path.join(self.root, "")  # once: joined one by one a million take 4 s
        return [base + name for name in self.relative_paths()]

    @property
    def longest_polygon(self) -> int:
        """The most points of a polygon."""
        parts = (self.point_offsets[at : at + BLOCK + 1] for at in range(0, len(self.point_offsets), BLOCK))
        return max((int(np.diff(part).max(initial=0)) for part in parts), default=0)

    @property
    def untold(self) -> int | None:
        """The first page with a text that has no transcription and is not ignored; None where there is none."""
        assert self._text_offsets is not None
        for at in range(0, len(self.ignore_flags), BLOCK):
            flags, ends = self.ignore_flags[at : at + BLOCK], self._text_offsets[at : at + BLOCK + 1]
            lost = (ends[1:] == ends[:-1]) & ~flags
            if lost.any():
                return int(np.searchsorted(self.page_offsets, at + int(lost.argmax()), side="right")) - 1
        return None

    def relative_paths(self) -> list[str]:
        """Image paths of all pages relative to the root; a million of them take 0.4 s, and one by one 2 s."""
        blob, ends = self._names.tobytes(), self._name_offsets.tolist()
        return [str(blob[a:b], "utf-8", "surrogatepass") for a, b in pairwise(ends)]

    def relative_path(self, i: int) -> str:
        """Image path of page i relative to the root."""
        return _string(self._names, self._name_offsets, self._row(i))

    def path(self, i: int) -> Path:
        """Absolute image path of page i."""
        return self.root / self.relative_path(i)

    def name(self, i: int) -> str:
        """Image file name of page i."""
        return self.relative_path(i).rpartition("/")[2]

    def num_bytes(self, i: int) -> int:
        """Bytes that the image file of page i had when the index was built."""
        return int(self.file_stat[self._row(i), 1])

    def labels(self, i: int) -> Labels:
        """Polygons and flags of page i, oriented pixels; points and flags are views."""
        first, last = self._range(i)
        bounds = self.point_offsets[first : last + 1]
        return Labels(self.points[bounds[0] : bounds[-1]], bounds - bounds[0], self.ignore_flags[first:last])

    def polygons(self, i: int) -> list[np.ndarray]:
        """Polygons of page i: (n, 2) float32 views, oriented pixels."""
        return self.labels(i).polygons()

    def ignore(self, i: int) -> np.ndarray:
        """(k,) bool, one flag a polygon of page i."""
        return self.labels(i).ignore

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
    """Several indexes end to end, with the interface of one. `dataset_of` (N,) int64 tells which a page is from.

    `bad` holds what a run has found out: rows that cannot be read, and why; `unread` those of them that are not even
    tried, because they were known when the epoch began.
    """

    parts: list[Index]
    bad: dict[int, str] = field(init=False, repr=False, default_factory=dict)
    unread: set[int] = field(init=False, repr=False, default_factory=set)
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

    def num_bytes(self, i: int) -> int:
        """Bytes that the image file of page i had when its index was built."""
        part, row = self._at(i)
        return part.num_bytes(row)

    def labels(self, i: int) -> Labels:
        """As `Index.labels`."""
        part, row = self._at(i)
        return part.labels(row)

    def polygons(self, i: int) -> list[np.ndarray]:
        """Polygons of page i: (n, 2) float32 views, oriented pixels."""
        return self.labels(i).polygons()

    def ignore(self, i: int) -> np.ndarray:
        """(k,) bool, one flag a polygon of page i."""
        return self.labels(i).ignore

    def texts(self, i: int) -> list[str] | None:
        """Transcriptions of page i; None unless every part has them."""
        part, row = self._at(i)
        return part.texts(row) if self.has_texts else None


def _string(data: np.ndarray, offsets: np.ndarray, i: int) -> str:
    return data[offsets[i] : offsets[i + 1]].tobytes().decode("utf-8", errors="surrogatepass")


def is_index(folder: str | Path) -> bool:
    """Whether a folder is an index (of any version)."""
    meta = Path(folder) / "meta.json"
    if not meta.is_file():
        return False
    try:
        data = json.loads(meta.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("kind") == KIND


def _map(path: Path) -> np.ndarray:
    """A memory map of a .npy file; an empty array is simply read (nothing can be mapped of it)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote, or somebody by hand
            array = np.lib.format.open_memmap(path, mode="r")  # np.load would open an archive or a pickle too
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the index is incomplete, build it again") from error
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, tokenize.TokenError) as error:
        raise UserError(f"{path}: damaged ({error}); build the index again") from error
    # A plain view of the map: slicing np.memmap itself costs 15 % of the host time of a sample.
    return np.asarray(array) if array.size else np.zeros(array.shape, array.dtype)


def _fault(arrays: dict[str, np.ndarray]) -> str:
    """Name of the first array that does not fit the others, "" when all do; an index may come from somebody else."""
    pages, regions = len(arrays["size_wh"]), len(arrays["ignore"])
    want = {
        "size_wh": (np.int32, (pages, 2)), "orientation": (np.uint8, (pages,)), "file_stat": (np.int64, (pages, 2)),
        "points": (np.float32, (None, 2)), "point_offsets": (np.int64, (regions + 1,)),
        "page_offsets": (np.int64, (pages + 1,)), "ignore": (np.bool_, (regions,)), "names": (np.uint8, (None,)),
        "name_offsets": (np.int64, (pages + 1,)), "texts": (np.uint8, (None,)),
        "text_offsets": (np.int64, (regions + 1,)),
    }  # fmt: skip
    for name, array in arrays.items():
        kind, shape = want[name]
        known = len(array.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape))
        if array.dtype != kind or not known:
            return name
    for name, end in (("point", len(arrays["points"])), ("page", regions), ("name", len(arrays["names"]))):
        if not _ascends(arrays[f"{name}_offsets"], end):
            return f"{name}_offsets"
    if "texts" in arrays and not _ascends(arrays["text_offsets"], len(arrays["texts"])):
        return "text_offsets"
    return next((n for n in ("name", "text") if f"{n}s" in arrays and not _is_text(arrays, n)), "")


def _ascends(offsets: np.ndarray, end: int) -> bool:
    parts = (offsets[at : at + BLOCK + 1] for at in range(0, len(offsets), BLOCK))
    return offsets[0] == 0 and offsets[-1] == end and all(bool((part[1:] >= part[:-1]).all()) for part in parts)


def _is_text(arrays: dict[str, np.ndarray], name: str) -> bool:
    """Whether strings are UTF-8, each by itself: no offset points into the middle of a letter."""
    data, ends = arrays[f"{name}s"], arrays[f"{name}_offsets"]
    for at in range(0, len(ends), BLOCK):
        part = ends[at : at + BLOCK + 1]
        try:
            str(data[part[0] : part[-1]].data, "utf-8", errors="surrogatepass")
        except UnicodeDecodeError:
            return False
        inner = part[part < len(data)]
        if ((data[inner] & 0xC0) == 0x80).any():
            return False
    return True


def _leaves_root(names: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether an image path of an index is absolute, or could go up; `formats` lets none of these in."""
    blob = names.tobytes()
    if b"\0" in blob or b".." in blob:
        paths = [_string(names, offsets, i) for i in range(len(offsets) - 1)]
        if any("\0" in path or ".." in path.split("/") for path in paths):
            return True
    first = offsets[:-1][offsets[:-1] < offsets[1:]]
    return len(first) < len(offsets) - 1 or bool((names[first] == ord("/")).any())


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
    if not (isinstance(meta.get("root"), str) and isinstance(meta.get("format"), str) and "counts" in meta):
        raise UserError(f"{folder}: meta.json is damaged; build the index again")
    root = Path(meta["root"])
    if not os.path.isdir(root):  # false for a name that is too long, where Path.is_dir raises
        raise UserError(f"{folder}: its image folder {root} is gone; build the index again")
    texts = ("texts", "text_offsets") if (folder / "texts.npy").is_file() else ()
    arrays = {name: _map(folder / f"{name}.npy") for name in (*ARRAYS, *texts)}
    if arrays["size_wh"].shape[:1] == (0,):
        raise UserError(f"{folder}: no pages")
    fault = _fault(arrays) if all(array.ndim for array in arrays.values()) else "an array"
    if fault or _leaves_root(arrays["names"], arrays["name_offsets"]):
        raise UserError(f"{folder}: {fault or 'an image path in it'} is damaged; build the index again")
    return Index(folder, root, meta["format"], meta["counts"], *arrays.values())
