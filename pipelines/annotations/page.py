"""What every annotation reader produces: pages, findings, and paths that cannot leave their folder."""

import ntpath
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, MutableSequence, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.annotations.names import Spelling
from pipelines.errors import UserError

IGNORE_TEXT = "###"  # instead of a transcription: neither to be found nor wrong to find
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm"
)  # fmt: skip
ROOT_ADVICE = "name it: data.root=FOLDER, or --root FOLDER of pipelines.dataset"
# Enough to tell the right folder from a wrong one without a stat of every file on a network disk.
ROOT_PROBES = 32
LONGEST_NAME, LONGEST_PATH = 255, 3000  # bytes; Linux takes 255 and, with the root, 4096
MOST_FINDINGS = 100_000  # of a kind: 30 MB, more than anybody reads


class Finding(NamedTuple):
    """One thing `check` reports, printed as `path: kind: detail`."""

    path: str
    kind: str
    detail: str


class Findings(list[Finding]):
    """The first MOST_FINDINGS of each kind, in their order; `counts` (kind -> how many) counts all of them."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.extend(findings)

    def append(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= MOST_FINDINGS:
            super().append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        known = self.counts + findings.counts if isinstance(findings, Findings) else None
        for finding in findings:
            self.append(finding)
        self.counts = self.counts if known is None else known

    def __iadd__(self, findings: Iterable[Finding]) -> "Findings":  # type: ignore[misc,override]  # a list's takes lists
        self.extend(findings)
        return self


@dataclass(slots=True)
class Page:
    """One image and its text polygons.

    Attributes:
        path: image file relative to the source's root, with forward slashes.
        width, height: size the annotation claims, oriented pixels; 0 = not stated.
        polygons: one (n, 2) float32 array of x, y a region, in oriented (EXIF applied) pixels; as stated, so not all
            of them are outlines: `pipelines.index.clean` decides what becomes of the others.
        ignore: one flag a region; true = not to be learnt and not to be scored.
        texts: one transcription a region ("" = none for this region); None where the source has none at all.
        boxed: regions whose outline could not be read, so that the box stated beside it is the polygon.
        normalized: coordinates are shares of the image, 0 to 1, until `packed.in_pixels`.
    """

    path: str
    width: int = 0
    height: int = 0
    polygons: Sequence[np.ndarray] = field(default_factory=list)
    ignore: MutableSequence[int] = field(default_factory=list)
    texts: Sequence[str] | None = None
    boxed: Sequence[int] = ()
    normalized: bool = False

    def add(self, polygon: np.ndarray, ignore: bool, text: str | None, box: np.ndarray | None = None) -> None:
        """Appends a region; keeps the lists in step.

        Args:
            polygon: (n, 2) float32, also one that is no outline: too few points, NaN, none at all. Leave none out.
            ignore: whether it is marked as not to be learnt.
            text: its transcription, None for none.
            box: (4, 2) float32, for where the polygon is no outline.
        """
        if box is not None and not has_area(polygon) and has_area(box):
            self.boxed = self.boxed or []
            assert isinstance(self.boxed, list)
            self.boxed.append(len(self.polygons))
            polygon = box
        if text is not None and self.texts is None:
            self.texts = [""] * len(self.polygons)
        assert isinstance(self.polygons, list)  # not packed yet
        self.polygons.append(polygon)
        self.ignore.append(ignore)
        if self.texts is not None:
            assert isinstance(self.texts, list)
            self.texts.append(text or "")


def has_area(polygon: np.ndarray) -> bool:
    """Whether (n, 2) points are an outline: at least three, finite, not all on one axis-parallel line."""
    return len(polygon) >= 3 and bool(np.isfinite(polygon).all()) and bool((np.ptp(polygon, axis=0) > 0).all())


def box_corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """(4, 2) float32 corners of a box, clockwise from the top left."""
    with np.errstate(over="ignore"):
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def rotated_box(cx: float, cy: float, width: float, height: float, angle: float) -> np.ndarray:
    """(4, 2) float32 corners of a box around (cx, cy), turned by an angle in radians, clockwise as a page is seen."""
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2)
        cos, sin = np.cos(angle), np.sin(angle)
        return (corners @ np.array([[cos, sin], [-sin, cos]]) + (cx, cy)).astype(np.float32)


@dataclass
class Source:
    """A whole annotation source: its format, the folder of its images, pages, and what was odd while reading."""

    format: str
    root: Path
    pages: list[Page]
    findings: Findings = field(default_factory=Findings)


def safe_relative(path: str, where: str, base: str = "") -> str:
    """`path` normalised, with forward slashes, relative to the image root.

    Args:
        path: as the annotation writes it.
        where: what to name in the error.
        base: folder relative to the root that `path` is relative to.

    Raises:
        UserError: for an absolute path, one that leaves the root, an empty one, or one with a NUL.
    """
    text = path.replace("\\", "/")
    if not text or "\0" in text:
        raise UserError(f"{where}: image path {path!r} is empty or holds a NUL; mend the annotation")
    if text.startswith("/") or ntpath.splitdrive(path)[0]:
        raise UserError(f"{where}: absolute image path {path!r} is refused; make it relative to the image folder")
    normal = posixpath.normpath(posixpath.join(base, text))
    if normal == ".." or normal.startswith(("../", "/")):
        raise UserError(f"{where}: image path {path!r} leaves the image folder; {ROOT_ADVICE}")
    try:
        names = [os.fsencode(part) for part in normal.split("/")]
    except UnicodeEncodeError:
        raise UserError(f"{where}: image path {path!r} holds half a character, no file has such a name") from None
    if max(map(len, names)) > LONGEST_NAME or sum(map(len, names)) > LONGEST_PATH:
        raise UserError(f"{where}: image path {path[:60]!r}... is longer than a file's name can be")
    return normal


def find_root(root: str | Path | None, candidates: Iterable[Path], names: list[str], where: str) -> Path:
    """The folder that holds the images: the named one, else the candidate with most of the probed names.

    Raises:
        UserError: when none of the probed images lies in any candidate.
    """
    if root is not None:
        if not Path(root).is_dir():
            raise UserError(f"{root}: no such folder (given as the image root)")
        return Path(root).resolve()
    step = max(1, len(names) // ROOT_PROBES)
    probes = names[::step][:ROOT_PROBES]
    folders = [c for c in dict.fromkeys(candidates) if c.is_dir()]
    best, hits = None, 0
    for folder in folders:
        spelling = Spelling(folder)
        found = sum((folder / spelling.find(name)).is_file() for name in probes)
        if found > hits:
            best, hits = folder, found
    if best is None:
        looked = ", ".join(str(c) for c in folders)
        raise UserError(f"{where}: none of its images (e.g. {probes[0]}) found in {looked}; {ROOT_ADVICE}")
    return best.resolve()
