"""Image files without annotations, in the shape of an index: what prediction loads."""

from pathlib import Path

import numpy as np

from pipelines.errors import UserError
from pipelines.images import pixel_limit, read_header
from pipelines.limits import DEFAULT, Limits


class BareIndex:
    """Image files without annotations, with the part of the index's interface that loading needs.

    Args:
        paths: image files.
        limits: largest page, most JPEG scans.
        tolerate: bad files go into `bad` (row -> what is wrong) and count as pages of one pixel.

    Raises:
        UserError: naming the first bad file, unless `tolerate`; no file is good.
    """

    def __init__(self, paths: list[Path], limits: Limits = DEFAULT, *, tolerate: bool = False) -> None:
        with pixel_limit(limits.pixels):
            headers = [read_header(Path(path), limits) for path in paths]
        self.bad = {row: f"{h.problem} ({h.detail})" for row, h in enumerate(headers) if h.problem}
        if self.bad and (not tolerate or len(self.bad) == len(paths)):
            row, reason = next(iter(self.bad.items()))
            raise UserError(f"{paths[row]}: {reason}")
        self._paths = [Path(path) for path in paths]
        sizes = [(1, 1) if h.problem else (h.width, h.height) for h in headers]
        self.size_wh = np.array(sizes, np.int32).reshape(-1, 2)
        self.orientation = np.array([h.orientation for h in headers], np.uint8)
        self._num_bytes = [h.num_bytes for h in headers]

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, i: int) -> Path:
        """Path of page i."""
        return self._paths[int(i)]

    def name(self, i: int) -> str:
        """File name of page i."""
        return self._paths[int(i)].name

    def num_bytes(self, i: int) -> int:
        """Bytes of the file of page i when its header was read."""
        return self._num_bytes[int(i)]

    def polygons(self, i: int) -> list[np.ndarray]:
        """None: there are no annotations."""
        return []

    def ignore(self, i: int) -> np.ndarray:
        """(0,) bool."""
        return np.zeros(0, bool)
