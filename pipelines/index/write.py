"""Writes an index page by page, so that a million pages never lie in memory: their arrays grow in their files.

    with new_folder(out, replace=True) as folder:
        with Pages(folder, texts=True) as pages:
            pages.add("images/a.jpg", [4, 5], points, ignore, ["TOTAL", "12,000"])
        save_rows(folder, size_wh=..., orientation=..., file_stat=...)

The files are those of `np.save`, byte for byte. The layout: `pipelines.index.store`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np

BUFFER = 1 << 20  # bytes, of each of eight files


class Growing:
    """A .npy file to which rows are appended; its header, as long for any shape, is written again at the end."""

    def __init__(self, path: Path, dtype: type, width: int = 0) -> None:
        self._dtype, self._width, self._rows = np.dtype(dtype), width, 0
        self._file = path.open("wb", buffering=BUFFER)
        self._header()

    def _header(self) -> None:
        shape = (self._rows, self._width) if self._width else (self._rows,)
        about = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, about)

    def append(self, rows: np.ndarray) -> None:
        """Appends (k,) or (k, width) rows of the file's dtype."""
        assert rows.dtype == self._dtype and rows.shape[1:] == ((self._width,) if self._width else ())
        self._rows += len(rows)
        self._file.write(rows.tobytes())

    def __enter__(self) -> "Growing":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                self._header()


class _Ragged:
    """Rows of items end to end, and the offsets of the items: `NAMEs.npy` and `NAME_offsets.npy`."""

    def __init__(self, offsets: Growing) -> None:
        self._offsets, self._end = offsets, 0
        offsets.append(np.zeros(1, np.int64))

    def add(self, lengths: Sequence[int] | np.ndarray) -> None:
        """The next items have these lengths."""
        if len(lengths):
            ends = self._end + np.cumsum(lengths, dtype=np.int64)
            self._end = int(ends[-1])
            self._offsets.append(ends)


class Pages:
    """What an index has of its pages' regions, their names and their texts."""

    def __init__(self, folder: Path, texts: bool) -> None:
        self._stack = ExitStack()

        def grows(name: str, dtype: type, width: int = 0) -> Growing:
            return self._stack.enter_context(Growing(folder / f"{name}.npy", dtype, width))

        self._points, self._ignore, self._names = (
            grows("points", np.float32, 2), grows("ignore", np.bool_), grows("names", np.uint8),
        )  # fmt: skip
        self._point_ends = _Ragged(grows("point_offsets", np.int64))
        self._page_ends = _Ragged(grows("page_offsets", np.int64))
        self._name_ends = _Ragged(grows("name_offsets", np.int64))
        self._texts = grows("texts", np.uint8) if texts else None
        self._text_ends = _Ragged(grows("text_offsets", np.int64)) if texts else None
        self.pages = self.polygons = self.ignored = 0

    def add(
        self,
        name: str,
        lengths: Sequence[int] | np.ndarray,
        points: np.ndarray,
        ignore: np.ndarray,
        texts: Sequence[str] | None,
    ) -> None:
        """The next page.

        Args:
            name: of its image, relative to the root.
            lengths: numbers of points of its k regions.
            points: (V, 2) float32, of all of them, end to end.
            ignore: (k,) bool.
            texts: k; None = all are "".
        """
        self._points.append(points)
        self._ignore.append(ignore)
        self._point_ends.add(lengths)
        self._page_ends.add([len(lengths)])
        self._name_ends.add([self._put(self._names, name)])
        if self._texts is not None and self._text_ends is not None:
            encoded = [_encoded(text) for text in texts or [""] * len(lengths)]
            self._texts.append(np.frombuffer(b"".join(encoded), np.uint8))
            self._text_ends.add([len(text) for text in encoded])
        self.pages += 1
        self.polygons += len(lengths)
        self.ignored += int(np.count_nonzero(ignore))

    def _put(self, file: Growing, text: str) -> int:
        data = np.frombuffer(_encoded(text), np.uint8)
        file.append(data)
        return len(data)

    def __enter__(self) -> "Pages":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def save_rows(folder: Path, **arrays: np.ndarray) -> None:
    """Writes the arrays that have a row a page."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))
