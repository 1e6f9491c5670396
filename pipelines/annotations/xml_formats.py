"""Readers of XML annotations: CVAT's one file for many images, PASCAL VOC's and CTW1500's one file an image.

    read_cvat(Path("annotations.xml"), root=None)
    build_pages([("images/a.jpg", "a.xml")], "auto", "folder", findings)   # voc or ctw1500

A file is read as a stream, and one with a DTD is refused: entities are how a small file becomes a large one, or names
another file.
"""

import math
import xml.parsers.expat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from pipelines.annotations.packed import Shelf, pack
from pipelines.annotations.page import (
    Finding,
    Findings,
    Page,
    Source,
    box_corners,
    find_root,
    rotated_box,
    safe_relative,
)
from pipelines.annotations.text_marks import is_mark
from pipelines.errors import UserError

CHUNK = 1 << 16  # bytes
DEEPEST = 32  # elements in each other; annotations have 5
LARGEST = 32_000_000  # characters and elements of one wanted element: a page of 100,000 regions has less
TEXT_NAMES = ("transcription", "text", "utf8_string", "caption", "ocr", "value", "word")
IGNORE_NAMES = ("ignore", "ignored", "difficult", "illegible", "illegibility", "dontcare", "iscrowd")
PAGE_ROOTS = ("annotation", "annotations", "image")  # in small letters
IGNORE_LABELS = ("ignore", "ignored", "dontcare", "don't care", "illegible")


class _Stream:
    """Elements of some names as they end; of the others nothing is kept."""

    def __init__(self, path: Path, roots: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        self.path, self._roots, self._wanted = path, roots, wanted
        self.done: list[Element] = []
        self._open: list[Element] = []
        self._depth = self._size = 0
        parser = xml.parsers.expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.EntityDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        self.parser = parser

    def _refuse(self, *_: object) -> None:
        raise UserError(f"{self.path}: XML with a DTD (<!DOCTYPE or <!ENTITY) is refused; take that part out")

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > LARGEST:
            raise UserError(f"{self.path}: one element of more than {LARGEST:,} characters is no page of annotations")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._depth and name.lower() not in self._roots:
            raise UserError(
                f"{self.path}: XML of <{name}> is no annotation of ours (CVAT for images, PASCAL VOC, CTW1500)"
            )
        self._depth += 1
        if self._depth > DEEPEST:
            raise UserError(f"{self.path}: XML nested more than {DEEPEST} deep is no annotation file")
        if not self._open and name not in self._wanted:
            return
        self._grow(100 + sum(map(len, attributes.values())))
        element = Element(name, attributes)
        if self._open:
            self._open[-1].append(element)
        self._open.append(element)

    def _text(self, data: str) -> None:
        if self._open:
            self._grow(len(data))
            self._open[-1].text = (self._open[-1].text or "") + data  # texts behind children too: none has any

    def _end(self, _: str) -> None:
        self._depth -= 1
        if self._open:
            element = self._open.pop()
            if not self._open:
                self.done.append(element)
                self._size = 0


def elements(path: Path, roots: tuple[str, ...], wanted: tuple[str, ...]) -> Iterator[Element]:
    """Every outermost element of the wanted names below one of the roots, one at a time.

    Raises:
        UserError: no XML, another root, a DTD, too deep, or too large.
    """
    stream = _Stream(path, roots, wanted)
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(CHUNK)
                stream.parser.Parse(data, not data)
                yield from stream.done
                stream.done.clear()
                if not data:
                    return
    except xml.parsers.expat.ExpatError as error:
        raise UserError(f"{path}: not valid XML: {error}") from error
    except (ValueError, LookupError) as error:  # an encoding that Python does not know
        raise UserError(f"{path}: not valid XML: {error}") from error


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def _child(element: Element, *names: str) -> str | None:
    """The text of the first child of one of the names, in any letters."""
    for child in element:
        if child.tag.lower() in names:
            return (child.text or "").strip()
    return None


def _pairs(values: Iterable[float]) -> np.ndarray:
    numbers = list(values)
    with np.errstate(over="ignore"):
        return np.array(numbers[: len(numbers) // 2 * 2], np.float64).reshape(-1, 2).astype(np.float32)


def _true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes")


def _is_ignored(label: str) -> bool:
    return label.lower() in IGNORE_LABELS or is_mark(label)


def _classes(labels: Counter, where: str) -> list[Finding]:
    """What is read as text, where there is more than one class."""
    if len(labels) < 2:
        return []
    read = [f"{label} ({count})" for label, count in labels.most_common() if not _is_ignored(label)]
    left = [f"{label} ({count})" for label, count in labels.most_common() if _is_ignored(label)]
    detail = f"read as text: {', '.join(read[:8]) or 'nothing'}" + (f"; ignored: {', '.join(left)}" if left else "")
    return [Finding(where, "categories", detail)]


# ---- CVAT


def _cvat_points(shape: Element) -> np.ndarray:
    """The outline of a CVAT shape, oriented pixels; NaN where a number is none."""
    get = {name: _number(value) for name, value in shape.attrib.items()}
    if "points" in shape.attrib:
        return _pairs(_number(v) for pair in shape.attrib["points"].split(";") for v in (pair.split(",") + [""])[:2])
    if "xtl" in get:
        left, top, right, bottom = (get.get(name, math.nan) for name in ("xtl", "ytl", "xbr", "ybr"))
        angle = math.radians(get.get("rotation", 0.0))
        return rotated_box((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, angle)
    if "cx" in get:  # an ellipse: the box around it
        cx, cy, rx, ry = (get.get(name, math.nan) for name in ("cx", "cy", "rx", "ry"))
        return rotated_box(cx, cy, 2 * rx, 2 * ry, math.radians(get.get("rotation", 0.0)))
    if "left" in get:  # a mask: its box
        left, top, width, height = (get.get(name, math.nan) for name in ("left", "top", "width", "height"))
        return box_corners(left, top, left + width, top + height)
    if "xtl1" in get:
        names = ("xtl1", "ytl1", "xtr1", "ytr1", "xbr1", "ybr1", "xbl1", "ybl1")
        return _pairs(get.get(name, math.nan) for name in names)
    parts = [_cvat_points(child) for child in shape if child.tag != "attribute"]  # a skeleton
    return np.concatenate([np.zeros((0, 2), np.float32), *parts])


def _cvat_region(page: Page, shape: Element) -> None:
    text, ignore = None, _is_ignored(shape.get("label", ""))
    for attribute in shape.iter("attribute"):
        name, value = attribute.get("name", "").lower(), (attribute.text or "").strip()
        if name in TEXT_NAMES:
            text = value
        ignore |= name in IGNORE_NAMES and _true(value)
        ignore |= name == "legibility" and value.lower() not in ("", "legible")
    page.add(_cvat_points(shape), ignore or is_mark(text or ""), text)


def _size(text: str | None) -> int:
    number = _number(text)
    return int(number) if 0 < number < 2**31 else 0


def read_cvat(path: Path, root: str | Path | None) -> Source:
    """CVAT for images 1.1: `<image name= width= height=>` with boxes (turned ones too), polygons, polylines, masks.

    A transcription is an attribute called transcription, text or the like; all labels are read as text, but for those
    called ignore.

    Raises:
        UserError: a video's tracks, an image twice, no images.
    """
    pages: dict[str, Page] = {}
    shelf = Shelf()
    labels: Counter = Counter()
    for element in elements(path, ("annotations", "annotation"), ("image", "track", "object")):
        if element.tag == "track":
            raise UserError(f"{path}: CVAT for video is not read; export the task as `CVAT for images 1.1`")
        if element.tag == "object" or "name" not in element.attrib:
            raise UserError(f"{path}: holds the regions of one page; name the folder that has its images and XML files")
        where = f"{path}: image {element.get('id', '?')}"
        page = Page(
            safe_relative(element.get("name", ""), where), _size(element.get("width")), _size(element.get("height"))
        )
        if page.path in pages:
            raise UserError(f"{where}: {page.path} is there a second time; take one of the two out")
        for shape in element:
            if shape.tag != "tag":  # of the whole image
                _cvat_region(page, shape)
                labels[shape.get("label", "")] += 1
        pages[page.path] = pack(page, shelf)
    if not pages:
        raise UserError(f"{path}: no pages")
    folder = path.resolve().parent
    places = [folder / "images", folder / "images" / path.stem, folder, folder.parent / "images", folder.parent]
    findings = Findings(_classes(labels, str(path)))
    return Source("cvat", find_root(root, places, list(pages), str(path)), list(pages.values()), findings)


# ---- one file a page


def _voc_region(page: Page, item: Element) -> str:
    """Appends the region of a PASCAL VOC object (box, roLabelImg's turned box, polygon); returns its class."""
    name = _child(item, "name") or ""
    box = next((child for child in item if child.tag.lower() in ("bndbox", "robndbox", "polygon")), None)
    points = np.zeros((0, 2), np.float32)
    if box is not None and box.tag.lower() == "bndbox":
        points = box_corners(*(_number(_child(box, side)) for side in ("xmin", "ymin", "xmax", "ymax")))
    elif box is not None and box.tag.lower() == "robndbox":
        points = rotated_box(*(_number(_child(box, part)) for part in ("cx", "cy", "w", "h", "angle")))
    elif box is not None:
        points = _pairs(_number(child.text) for child in box)
    text = _child(item, *TEXT_NAMES)
    ignored = any(_true(_child(item, word)) for word in IGNORE_NAMES)
    page.add(points, ignored or _is_ignored(name) or is_mark(text or ""), text)
    return name


def _ctw_region(page: Page, box: Element) -> None:
    """Appends a box of CTW1500: 14 points in `segs`, else the box itself (`pts` are the middles of its letters)."""
    points = _pairs(_number(value) for value in (_child(box, "segs") or "").split(",") if value.strip())
    left, top, width, height = (_number(box.get(name)) for name in ("left", "top", "width", "height"))
    text = _child(box, "label")
    page.add(points, is_mark(text or ""), text, box_corners(left, top, left + width, top + height))


def build_pages(items: list[tuple[str, str]], format: str, where: str, findings: Findings) -> tuple[str, list[Page]]:
    """Pages from (image path relative to the root, XML file) pairs.

    Args:
        format: `auto`, `voc` or `ctw1500`.
        findings: gets a line of what is read as text, where there are several classes.

    Returns:
        The format and the pages.

    Raises:
        UserError: a file is none of these, or the files are of both kinds.
    """
    pages: list[Page] = []
    shelf = Shelf()
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for name, path in items:
        page = Page(name)
        kind = ""
        for element in elements(Path(path), PAGE_ROOTS, ("object", "box", "size")):
            if element.tag == "size":
                page.width, page.height = _size(_child(element, "width")), _size(_child(element, "height"))
            elif element.tag == "object":
                kind = "voc"
                names[_voc_region(page, element)] += 1
            else:
                kind = "ctw1500"
                _ctw_region(page, element)
            kinds[kind] += bool(kind)
        pages.append(pack(page, shelf))
    found = [kind for kind in kinds if kind]
    if len(found) > 1 or (found and format not in ("auto", found[0])):
        asked = "" if format == "auto" else f"asked to read as {format}, but "
        raise UserError(f"{where}: {asked}the XML files are {' and '.join(found)}")
    findings += _classes(names, where)
    return (found[0] if found else "voc"), pages
