"""Checks a whole data set before it costs GPU hours: every image decoded, every polygon looked at."""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipelines.annotations.packed import in_pixels
from pipelines.annotations.page import Finding, Findings, Page
from pipelines.annotations.read import read_source
from pipelines.images.jpeg import decodes, is_jpeg, libjpeg_complaint, libjpeg_talks, scan_markers
from pipelines.images.plain import readable
from pipelines.images.read import PILLOW_FORMATS, SEVERAL_PAGES, Header, pixel_limit, read_header
from pipelines.index.clean import clean
from pipelines.index.conventions import other_convention
from pipelines.index.headers import LARGEST
from pipelines.limits import DEFAULT, Limits

# The decoder of the training pipeline stops at these, so training would. It repairs `corrupt` JPEGs as libjpeg does.
FATAL_KINDS = ("missing", "unreadable", "too-large", "too-many-scans", "too-many-polygons", "truncated", "nowhere")
KINDS = {
    "missing": "image file is not there",
    "unreadable": "cannot be decoded",
    "too-large": "more pixels than --max-pixels",
    "too-many-scans": "a JPEG of more than --max-scans scans",
    "too-many-polygons": "more regions than --max-polygons",
    "truncated": "file ends too early",
    "corrupt": "damaged inside; decodes with garbage",
    "several-pages": "several pages or frames; the first is read",
    "wrong-size": "annotation states another size",
    "exif-size": "annotation states the size before EXIF rotation",
    "out-of-page": "points outside the page (training clamps them)",
    "boxed": "no outline; the box beside it is used",
    "masked": "no outline; ignored where it lies",
    "nowhere": "no coordinates, so that nobody knows where it lies",
    "many-points": "more points than --max-points (drawn with fewer)",
    "too-many-points": "more points than --max-points, and fewer move the outline (ignored)",
    "zero-area": "no area (ignored)",
    "self-intersection": "outline crosses itself (ignored)",
    "duplicate": "listed or drawn twice",
    "duplicate-image": "same bytes as another image",
    "duplicate-key": "key twice in one JSON object; the last wins",
    "no-labels": "image without annotation, left out",
    "orphan": "annotation without an image",
    "categories": "several classes; which are read as text",
    "annotators": "several annotations of one image; one is read",
    "bad-line": "line does not fit the layout; what it states is masked",
}
# Starting a process costs about 1.5 s (it loads DALI for its libjpeg), a page about 30 ms.
PAGES_PER_PROCESS = 200


class ImageReport(NamedTuple):
    """Header, content hash and problems of one file."""

    header: Header
    digest: str
    problems: list[tuple[str, str]]


@dataclass
class Report:
    """Outcome of a check. `fatal` says what makes training impossible; empty = it can start."""

    source: str
    format: str
    root: str
    pages: int
    polygons: int = 0
    usable: int = 0
    findings: Findings = field(default_factory=Findings)
    fatal: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Findings per kind, in the order of KINDS."""
        return {kind: self.findings.counts[kind] for kind in KINDS if self.findings.counts[kind]}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "source": self.source, "format": self.format, "root": self.root, "pages": self.pages,
            "polygons": self.polygons, "usable": self.usable, "counts": self.counts, "fatal": self.fatal,
            "findings": [finding._asdict() for finding in self.findings],
        }  # fmt: skip


def _decode_problem(path: Path) -> str:
    """Pillow's complaint about the whole picture; "" for none."""
    try:
        with Image.open(path, formats=PILLOW_FORMATS) as image:
            image.load()
    # As for headers: what Pillow's plugins raise for broken data.
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def _trainable(data: bytes, header: Header) -> bool:
    """Whether training can decode a file that is no JPEG."""
    ready = readable(np.frombuffer(data, np.uint8), header.orientation, header.width * header.height)
    return len(ready) > 0 and decodes(ready.tobytes())


def inspect_image(path: Path, limits: Limits = DEFAULT) -> ImageReport:
    """Reads, hashes and fully decodes one image; never raises for a bad file."""
    header = read_header(path, limits)
    if header.problem:
        return ImageReport(header, "", [(header.problem, header.detail)])
    try:
        data = path.read_bytes()
    except OSError as error:
        return ImageReport(header, "", [("missing", error.strerror or "cannot be read")])
    digest = hashlib.sha256(data).hexdigest()
    complaint = _decode_problem(path)
    if not is_jpeg(data):
        if not complaint and not _trainable(data, header):
            complaint = "not by the decoder of training (DALI); save it as PNG or JPEG"
        kind = "truncated" if "truncated" in complaint else "unreadable"
        several = [("several-pages", SEVERAL_PAGES)] if header.several else []
        return ImageReport(header, digest, [(kind, complaint)] if complaint else several)
    kind, detail = scan_markers(data)
    if not kind and "truncated" in complaint:
        kind, detail = "truncated", complaint
    if not kind:
        detail = complaint or (libjpeg_complaint(data) if libjpeg_talks() else "")
        kind = "corrupt" if detail else ""
    return ImageReport(header, digest, [(kind, detail)] if kind else [])


def _inspect_limited(path: Path, limits: Limits) -> ImageReport:
    with pixel_limit(limits.pixels):
        return inspect_image(path, limits)


def inspect_images(paths: list[Path], workers: int, limits: Limits) -> Iterator[ImageReport]:
    """Reports in order. Processes, not threads: libjpeg's warnings come by file descriptor 2, one a process."""
    work = partial(_inspect_limited, limits=limits)
    count = min(workers, len(paths) // PAGES_PER_PROCESS + 1)
    if count <= 1:
        yield from map(work, paths)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, paths, chunksize=8)


def _regions(rows: list[int], detail: str) -> str:
    """`3 regions, the first is number 7 (detail)`; regions are counted from 1."""
    text = "region" if len(rows) == 1 else f"{len(rows)} regions, the first is"
    return f"{text} number {rows[0] + 1}" + (f" ({detail})" if detail else "")


def check_polygons(page: Page, width: int, height: int, limits: Limits = DEFAULT) -> tuple[list[Finding], int]:
    """Findings of a page's polygons, one a kind, and how many regions training can use, both by `index.clean`.

    Args:
        width, height: of the image, oriented pixels; 0 when it could not be read (nothing is outside then).
        limits: a page of more polygons is not looked at, a polygon of more points only as training draws it.
    """
    if len(page.polygons) > limits.polygons:
        detail = f"{len(page.polygons)} are more than the {limits.polygons} allowed"
        return [Finding(page.path, "too-many-polygons", detail)], 0
    cleaned = clean(page, width, height, limits.points)
    bad = cleaned.problems | {"duplicate": _repeated(page.polygons)}
    outside = [_outside(page.polygons[k], width, height) for k in bad.get("out-of-page", [])]
    details = {"out-of-page": f"up to {max(outside, default=0):.1f} px"}
    found = [Finding(page.path, kind, _regions(rows, details.get(kind, ""))) for kind, rows in bad.items() if rows]
    return found, len(cleaned.page.ignore) - sum(cleaned.page.ignore)


def _repeated(polygons: Sequence[np.ndarray]) -> list[int]:
    """Regions with the very points of an earlier one."""
    seen: dict[bytes, int] = {}
    return [k for k, polygon in enumerate(polygons) if seen.setdefault(polygon.tobytes(), k) != k]


def _outside(polygon: np.ndarray, width: int, height: int) -> float:
    """How far the furthest point lies outside the page, pixels."""
    return float(np.maximum(-polygon, polygon - np.array([width, height], np.float32)).max())


def _size_finding(page: Page, header: Header) -> Finding | None:
    """Compares the size an annotation states with the image's."""
    stated = (page.width, page.height)
    if not all(stated) or header.problem or stated == (header.width, header.height):
        return None
    real = f"{header.width}x{header.height}"
    if header.orientation >= 5 and stated == (header.height, header.width):
        turned = f"EXIF orientation {header.orientation} turns the image to {real}"
        detail = f"annotation {stated[0]}x{stated[1]}, but {turned}"
        return Finding(page.path, "exif-size", detail)
    return Finding(page.path, "wrong-size", f"annotation {stated[0]}x{stated[1]}, image {real}")


def _fatal(report: Report, unusable: list[str]) -> list[str]:
    """What makes training impossible, in words."""
    reasons = []
    if len(unusable) == report.pages:
        reasons.append("no readable page")
    elif unusable:
        more = f" and {len(unusable) - 3} more" if len(unusable) > 3 else ""
        reasons.append(f"{len(unusable)} unusable pages: {', '.join(unusable[:3])}{more}")
    if not report.usable:
        reasons.append("no usable text: every region is ignored")
    return reasons


def check(
    source: str | Path,
    format: str = "auto",
    root: str | Path | None = None,
    *,
    workers: int = 1,
    limits: Limits = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
    follow_links: bool = False,
) -> Report:
    """Decodes every image of a source and looks at every polygon.

    Args:
        source, format, root, follow_links: as `formats.read_source`.
        workers: processes (a small data set uses fewer).
        limits: what is beyond them is not decoded, and is fatal (not polygons of too many points).
        progress: called with (done, total).

    Raises:
        UserError: when the source itself cannot be read.
    """
    made = read_source(source, format, root, limits.annotation_mb, follow_links=follow_links)
    report = Report(str(source), made.format, str(made.root), len(made.pages), findings=Findings(made.findings))
    first_with: dict[str, str] = {}
    unusable, sizes = [], np.zeros((len(made.pages), 2), np.int32)
    paths = [made.root / page.path for page in made.pages]
    reports = inspect_images(paths, workers, limits)
    for done, (page, image) in enumerate(zip(made.pages, reports, strict=True), 1):
        report.findings += [Finding(page.path, kind, detail) for kind, detail in image.problems]
        twin = first_with.setdefault(image.digest, page.path) if image.digest else page.path
        if twin != page.path:
            report.findings.append(Finding(page.path, "duplicate-image", f"same bytes as {twin}"))
        sizes[done - 1] = min(image.header.width, LARGEST), min(image.header.height, LARGEST)
        size = _size_finding(page, image.header)
        report.findings += [size] if size else []
        in_pixels(page, image.header.width, image.header.height)
        found, usable = check_polygons(page, image.header.width, image.header.height, limits)
        report.findings += found
        if any(kind in FATAL_KINDS for kind in [kind for kind, _ in image.problems] + [f.kind for f in found]):
            unusable.append(page.path)
        report.polygons += len(page.polygons)
        report.usable += usable
        if progress is not None:
            progress(done, len(made.pages))
    odd = other_convention(made.pages, sizes)
    report.fatal = _fatal(report, unusable) + ([f"{odd}; another --format may read it"] if odd else [])
    return report
