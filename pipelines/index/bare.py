"""Image files without annotations, in the shape of an index: what prediction loads."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.geometry import Labels, pack
from pipelines.limits import DEFAULT, Limits

FIRST_LOOK = 256  # files whose sizes tell how much memory decoding will take


class BareIndex:
    """Image files without annotations as `pipelines.index.pages.Pages`.

    With `tolerate` headers are read as pages come up (`look`), so 100,000 files take no time before the first result;
    what is kept of each are 14 bytes.

    Args:
        paths: image files.
        limits: largest page, most JPEG scans.
        tolerate: bad files go into `bad` (row -> what is wrong) and count as pages of one pixel.
        refused: row -> why a file is not even opened.

    Attributes:
        several: rows looked at that have more pages than the one that is read.
        size_wh, orientation: (N, 2) int32 upright pixels and (N,) uint8, of the rows looked at; 0 and 1 before.

    Raises:
        UserError: naming the first bad file, unless `tolerate`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        limits: Limits = DEFAULT,
        *,
        tolerate: bool = False,
        refused: dict[int, str] | None = None,
    ) -> None:
        self._paths, self._limits = paths, limits
        self.size_wh = np.zeros((len(paths), 2), np.int32)
        self.orientation = np.ones(len(paths), np.uint8)
        self._num_bytes = np.zeros(len(paths), np.int64)
        self.bad: dict[int, str] = dict(refused or {})
        self.several: set[int] = set()
        self.size_wh[list(self.bad)] = 1
        self.look(range(min(len(paths), FIRST_LOOK) if tolerate else len(paths)))
        if self.bad and not tolerate:
            row, reason = next(iter(self.bad.items()))
            raise UserError(f"{paths[row]}: {reason}")

    def look(self, rows: Iterable[int]) -> None:
        """Reads the headers of rows not looked at yet; bad ones go into `bad`."""
        new = [row for row in rows if not self.size_wh[row, 0]]
        if not new:
            return
        from pipelines.images.read import pixel_limit, read_header  # here: loaders of annotated pages do without Pillow

        with pixel_limit(self._limits.pixels):
            for row in new:
                header = read_header(Path(self._paths[row]), self._limits)
                if header.problem:
                    self.bad[row] = f"{header.problem} ({header.detail})"
                if header.several:
                    self.several.add(row)
                self.size_wh[row] = (1, 1) if header.problem else (header.width, header.height)
                self.orientation[row], self._num_bytes[row] = header.orientation, header.num_bytes

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, i: int) -> Path:
        """Path of page i."""
        return Path(self._paths[int(i)])

    def name(self, i: int) -> str:
        """File name of page i."""
        return self.path(i).name

    def num_bytes(self, i: int) -> int:
        """Bytes of the file of page i when its header was read."""
        return int(self._num_bytes[int(i)])

    def labels(self, i: int) -> Labels:
        """None: there are no annotations."""
        return pack([], np.zeros(0, bool))
