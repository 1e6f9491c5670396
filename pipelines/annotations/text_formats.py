"""Readers of text-line annotations: ICDAR and SROIE quadrilaterals, 2n-point polygons, left-top-right-bottom boxes."""

import codecs
import itertools
import logging
import math
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.annotations.page import IGNORE_TEXT, IMAGE_SUFFIXES, Finding, Page, Source, safe_relative
from pipelines.errors import UserError, printable

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("img", "images", "imgs", "image")
LABEL_FOLDERS = ("box", "gt", "labels", "annotations", "label", "gts")
LABEL_SUFFIXES = (".txt", ".csv")
# ICDAR-MLT writes the script before the text: `x1,...,y4,Latin,text`.
MLT_SCRIPTS = frozenset(
    ("Latin", "Arabic", "Bangla", "Chinese", "Hindi", "Japanese", "Korean", "Mixed", "None", "Symbols", "Devanagari")
)


# One field, and what separates it from the next.
_FIELDS = {",": re.compile(r"([^,]*)(?:,|\Z)"), " ": re.compile(r"(\S+)")}


class Line(NamedTuple):
    """One annotation line: its leading numbers (n,) float32, its text, what separates the fields, its number.

    No lists of fields or of Python's numbers: with them a file took 57 times its bytes.
    """

    numbers: np.ndarray
    text: str
    separator: str
    number: int


def read_lines(path: Path, *, warn: bool = True) -> list[str]:
    """The lines of a text file: UTF-8, or UTF-16 by its mark; else one byte one letter (coordinates are ASCII)."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace").splitlines()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if warn:
            logger.warning("%s: not UTF-8 (byte %d), transcriptions read as Latin-1", printable(path), error.start)
        text = data.decode("latin-1")
    # Not splitlines(): a transcription may hold a form feed or U+2028.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _float32(numbers: array) -> np.ndarray:
    """(n,) float32; what it cannot hold becomes infinity, for the index to drop."""
    with np.errstate(over="ignore"):
        return np.array(numbers, np.float64).astype(np.float32)


def parse_line(text: str, number: int) -> Line:
    """Splits a line at commas (or, without four comma-separated numbers, at blanks, as ICDAR 2013 does)."""
    fields = text.split(",", 4)
    separator = " " if len(fields) < 4 or any(_number(f) is None for f in fields[:4]) else ","
    numbers = array("d")
    for field in _FIELDS[separator].finditer(text):
        value = _number(field[1])
        if value is None:
            break
        numbers.append(value)
    return Line(_float32(numbers), text, separator, number)


def _text_behind(line: Line, count: int) -> str | None:
    """What follows the first `count` fields of a line; None for nothing."""
    field = next(itertools.islice(_FIELDS[line.separator].finditer(line.text), count - 1, None))
    if line.separator == ",":
        return line.text[field.end() :].strip() if field.end(1) < len(line.text) else None
    return " ".join(line.text[field.end() :].split()) or None


def _looks_like_polygon(numbers: np.ndarray) -> bool:
    """Whether 10 or more numbers go round one outline, instead of being a box and a text such as `12,000`.

    In an outline no step from the fourth point on, back to the start included, is far longer than what the first
    four points span; a number of the text lands anywhere on the page.
    """
    count = len(numbers) // 2 * 2
    outline = numbers[:count].astype(np.float64).reshape(-1, 2)
    if not np.isfinite(outline).all():
        return False
    span = float(np.hypot(*np.ptp(outline[:4], axis=0)))
    steps = np.roll(outline, -1, axis=0)[3:] - outline[3:]
    return bool(np.hypot(steps[:, 0], steps[:, 1]).max() <= 1.5 * max(span, 1.0))


def choose_layout(lines: Iterable[Line], where: str) -> str:
    """The layout of a whole data set: `ltrb`, `icdar` (4 points and a text) or `polygon` (2n points and a text).

    One line cannot tell (`...,12,000` may be a point or a price), so every line votes.

    Raises:
        UserError: when most lines start with fewer than 4 numbers.
    """
    total = short = usable = long = outlines = 0
    for line in lines:
        count = len(line.numbers)
        total, usable, short, long = total + 1, usable + (count >= 4), short + (4 <= count < 8), long + (count >= 10)
        outlines += count >= 10 and _looks_like_polygon(line.numbers)
    if not total:
        return "icdar"
    if usable * 2 <= total:
        raise UserError(f"{where}: most lines do not start with 4, 8 or 2n numbers; not a text-line annotation")
    if short * 2 > usable:
        return "ltrb"
    layout = "polygon" if outlines * 2 > long else "icdar"
    if long:
        reading = "further points" if layout == "polygon" else "a numeric text behind 4 points"
        logger.warning(
            "%s: %d of %d lines have 10 or more leading numbers, read as %s; --format icdar or polygon decides",
            printable(where), long, total, reading,
        )  # fmt: skip
    return layout


def interpret(line: Line, layout: str) -> tuple[np.ndarray, str | None] | None:
    """((n, 2) float32 points, text or None) of a line under a layout; None when the line does not fit it."""
    numbers = line.numbers
    if layout == "ltrb":
        count = 4
    elif layout == "icdar":
        count = 8
    else:
        count = len(numbers) // 2 * 2
    if len(numbers) < max(count, 4 if layout == "ltrb" else 6):
        return None
    text = _text_behind(line, count)
    if layout == "ltrb":
        left, top, right, bottom = numbers[:4]
        if text is not None and len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32), text
    return numbers[:count].reshape(-1, 2).copy(), text  # a view would keep the line's array as well


def _strip_scripts(pages: list[Page]) -> None:
    """Removes ICDAR-MLT's script field when every text of the data set starts with one."""
    texts = [text for page in pages for text in page.texts or []]
    if not texts or not all(t.partition(",")[0] in MLT_SCRIPTS and "," in t for t in texts):
        return
    for page in pages:
        page.texts = [t.partition(",")[2] for t in page.texts or []]
        page.ignore = [t == IGNORE_TEXT for t in page.texts]


def _parsed(path: Path, *, warn: bool = True) -> Iterator[Line]:
    """The lines of a file that are not blank."""
    return (parse_line(text, n) for n, text in enumerate(read_lines(path, warn=warn), 1) if text.strip())


def build_pages(
    items: list[tuple[str, Path]], layout: str, where: str, findings: list[Finding]
) -> tuple[str, list[Page]]:
    """Pages from (image path relative to the root, label file) pairs.

    Args:
        layout: `auto`, `icdar`, `polygon` or `ltrb`.
        findings: gets one `bad-line` for every line that does not fit; such lines are left out.

    Returns:
        The layout and the pages.
    """
    # Read twice, so that only the lines of one file are held at a time.
    auto = layout == "auto"
    if auto:
        layout = choose_layout((line for _, path in items for line in _parsed(path)), where)
    pages, total = [], 0
    for name, path in items:
        page = Page(name)
        for line in _parsed(path, warn=not auto):
            total += 1
            made = interpret(line, layout)
            if made is None:
                detail = f"{path.name}:{line.number}: {len(line.numbers)} leading numbers do not fit {layout}"
                findings.append(Finding(name, "bad-line", detail))
                continue
            page.add(made[0], made[1] == IGNORE_TEXT, made[1])
        pages.append(page)
    bad = sum(f.kind == "bad-line" for f in findings)
    if bad * 2 > total:
        raise UserError(f"{where}: {bad} of {total} lines do not fit the {layout} layout; name another --format")
    _strip_scripts(pages)
    return layout, pages


def subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the named subfolders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder by suffix, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def label_of(image: str, labels: dict[str, Path]) -> Path | None:
    """The label file of an image file name: stem.txt, gt_stem.txt, stem.jpg.txt, and the same with .csv."""
    stem = Path(image).stem
    for name in (stem, f"gt_{stem}", image, f"gt_{image}"):
        for suffix in LABEL_SUFFIXES:
            if name + suffix in labels:
                return labels[name + suffix]
    return None


def label_files(folder: Path) -> dict[str, Path]:
    """Text-line files of a folder by name."""
    return {p.name: p for p in sorted(folder.iterdir()) if p.suffix.lower() in LABEL_SUFFIXES and p.is_file()}


def _pair(images: list[Path], labels: dict[str, Path], root: Path, findings: list[Finding]) -> list[tuple[str, Path]]:
    """Images with their label files; an image without one is left out (unlabelled is not the same as empty)."""
    items, used = [], set()
    for image in images:
        label = label_of(image.name, labels)
        name = image.relative_to(root).as_posix()
        if label is None:
            findings.append(Finding(name, "no-labels", "no label file for this image; left out"))
            continue
        used.add(label)
        items.append((name, label))
    for label in labels.values():
        if label not in used and items:
            findings.append(Finding(label.relative_to(root).as_posix(), "orphan", "label file without an image"))
    return items


def read_folder(folder: Path, root: str | Path | None, layout: str) -> Source:
    """A folder with image and label subfolders, or with gt_IMG.txt (or IMG.txt, IMG.csv) beside each image."""
    folder = folder.resolve()
    image_dir = Path(root).resolve() if root is not None else subfolder(folder, IMAGE_FOLDERS) or folder
    label_dir = subfolder(folder, LABEL_FOLDERS) or folder
    top = folder if image_dir.is_relative_to(folder) else image_dir
    findings: list[Finding] = []
    if not image_dir.is_dir():
        raise UserError(f"{image_dir}: no such folder (given as the image root)")
    if label_dir.is_relative_to(top):
        items = _pair(images_in(image_dir), label_files(label_dir), top, findings)
    else:
        labels = label_files(label_dir)
        found = ((image.name, label_of(image.name, labels)) for image in images_in(image_dir))
        items = [(name, label) for name, label in found if label is not None]
    if not items:
        raise UserError(f"{folder}: no pages: no image in {image_dir} has a label file in {label_dir}")
    layout, pages = build_pages(items, layout, str(folder), findings)
    return Source(layout, top, pages, findings)


def _listed_image(name: str, image_dir: Path, images: dict[str, Path]) -> Path:
    """The image of a listed id (with or without suffix); a missing one keeps the name that was looked for."""
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        return image_dir / name
    return images.get(name, image_dir / f"{name}.jpg")


def read_list(path: Path, root: str | Path | None, layout: str, lines: list[str]) -> Source:
    """An id list: one id (or image file name) a line, lying next to the image and the label folder."""
    folder = path.resolve().parent
    image_dir = Path(root).resolve() if root is not None else subfolder(folder, IMAGE_FOLDERS)
    label_dir = subfolder(folder, LABEL_FOLDERS)
    if image_dir is None or label_dir is None or not image_dir.is_dir():
        raise UserError(f"{path}: an id list must lie next to an image folder (img/) and a label folder (box/)")
    images = {p.stem: p for p in images_in(image_dir)}
    labels = label_files(label_dir)
    top = folder if image_dir.is_relative_to(folder) else image_dir
    findings: list[Finding] = []
    items: dict[str, Path] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        image = _listed_image(safe_relative(line.strip(), where), image_dir, images)
        name = image.relative_to(top).as_posix()
        label = label_of(image.name, labels)
        if label is None:
            raise UserError(f"{where}: {line.strip()}: no label file in {label_dir}")
        if name in items:
            findings.append(Finding(name, "duplicate", f"listed again in {where}; left out"))
        items[name] = label
    if not items:
        raise UserError(f"{path}: no pages")
    layout, pages = build_pages(list(items.items()), layout, str(path), findings)
    return Source(layout, top, pages, findings)


def is_text_line(text: str) -> bool:
    """Whether a line could be one: at least four finite leading numbers."""
    numbers = parse_line(text, 0).numbers
    return len(numbers) >= 4 and all(math.isfinite(n) for n in numbers[:4])
