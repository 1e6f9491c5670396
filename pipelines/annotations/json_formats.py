"""Readers of one JSON for all pages: the contest's, COCO and COCO-Text."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations.json_source import Pages, finish
from pipelines.annotations.json_stream import walk
from pipelines.annotations.json_values import box, expect, open_line, points, size, text
from pipelines.annotations.marks import flagged, ignored_name, ignored_text, named_classes
from pipelines.annotations.packed import Shelf, pack
from pipelines.annotations.page import Finding, Findings, Page, Source, has_area, safe_relative
from pipelines.errors import UserError


def read_contest(path: Path, root: str | Path | None) -> Source:
    """The contest's JSON: images -> file name -> {words: id -> {points, ...} or null, img_w, img_h}.

    `transcription` and `illegibility` are read where they are; `orientation` and `language` carry nothing a
    detector learns from. A transcription `###`, and the flags of `marks`, make the word ignored.
    """
    pages: dict[str, Page] = {}  # of a key twice, the last wins
    listed = Pages(path, "image")
    repeated: list[str] = []
    for place, name, entry in walk(path, repeated):
        if place != "images":
            continue
        where = f"{path}: {name}"
        expect(entry, dict, where, "an object")
        page = Page(safe_relative(name, where), size(entry.get("img_w"), where), size(entry.get("img_h"), where))
        words = entry.get("words") or {}
        for key, word in expect(words, dict, where, "words as an object").items():
            expect(word, dict, f"{where}: word {key}", "an object")
            said = text(word.get("transcription"))
            outline = points(word.get("points") or [], f"{where}: word {key}")
            page.add(outline, flagged(word) or ignored_text(said), said)
        pages[name] = pack(page, listed.shelf) if page.polygons else page
    for name, page in pages.items():
        listed.add(page, name)
    return finish("contest", path, root, listed.pages, [], repeated)


def _convex_hull(array: np.ndarray) -> np.ndarray:
    """Hull of (n, 2) points; input with NaN comes back unchanged, for the index to mask."""
    import cv2

    if not np.isfinite(array).all() or len(array) < 3:
        return array
    return cv2.convexHull(array.astype(np.float32))[:, 0, :]


def _coco_parts(shape: list, where: str) -> np.ndarray:
    """Points of a segmentation: numbers, or lists of numbers.

    A region in several parts is one text, so it becomes the convex hull of the parts.
    """
    if not isinstance(shape[0], (list, int, float)):
        raise UserError(f"{where}: segmentation must be numbers or lists of numbers")
    if isinstance(shape[0], list) and not (len(shape) > 2 and all(isinstance(s, list) and len(s) == 2 for s in shape)):
        parts = [points(part, where) for part in shape]
        return parts[0] if len(parts) == 1 else _convex_hull(np.concatenate(parts))
    return points(shape, where)


def coco_outline(item: dict, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A region as stated, and the box beside it: `bbox` [x, y, w, h].

    The outline is `segmentation`, `polygon`, `mask` or `points`. A run-length mask has none and is read as its box.
    """
    shape = item.get("segmentation") or item.get("polygon") or item.get("mask") or item.get("points")
    bounds = box(item.get("bbox"), where)
    if not isinstance(shape, list) or not shape:
        return bounds, None
    outline = _coco_parts(shape, where)
    if len(bounds) == 4 or not len(bounds) or has_area(outline):
        return outline, bounds if len(bounds) == 4 else None
    return open_line(np.concatenate([outline, bounds])), None  # neither is one: both say where it lies


def _coco_ignored(item: dict, said: str | None) -> bool:
    legible = item.get("legibility", "legible") in ("legible", None)
    return not legible or flagged(item) or flagged(item.get("attributes")) or ignored_text(said)


def coco_text(item: dict) -> str | None:
    """The transcription of a region, where any of the usual keys has one."""
    for holder in (item, item.get("attributes")):
        for key in ("utf8_string", "transcription", "text", "caption"):
            if isinstance(holder, dict) and isinstance(holder.get(key), str):
                return holder[key]
    return None


def _coco_names(value: Any) -> dict[str, str]:
    """Category id -> name."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return {str(entry.get("id")): str(entry.get("name")) for entry in entries if isinstance(entry, dict)}


def _coco_pages(path: Path, repeated: list[str], findings: Findings) -> tuple[dict[str, Page], dict[str, str]]:
    """Pages by image id, names of categories.

    COCO-Text's `test` images have no published annotations and are left out (an unlabelled page would teach that its
    text is background).
    """
    listed = Pages(path, "image")
    pages: dict[str, Page] = {}
    names: dict[str, str] = {}
    seen: set[str] = set()
    for place, key, entry in walk(path, repeated):
        if not place:
            seen.add(key)
            if key in ("images", "annotations", "imgs", "anns") and not isinstance(entry, (list, dict)):
                raise UserError(f"{path}: {key} must be a list or an object, not {type(entry).__name__}")
            names |= _coco_names(entry) if key in ("categories", "cats") else {}
        if place not in ("images", "imgs"):
            continue
        expect(entry, dict, f"{path}: {place}", "an object")
        if not isinstance(entry.get("id"), (int, str)) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{path}: an image lacks id or file_name")
        number = str(entry["id"])
        where = f"{path}: image {number}"
        if entry.get("set") == "test":
            findings.append(Finding(entry["file_name"], "no-labels", "COCO-Text test image, left out"))
            continue
        name = safe_relative(entry["file_name"], where)
        if number in pages:
            raise UserError(f"{where}: two images of this id, {pages[number].path} and {name}; give each its own")
        page = Page(name, size(entry.get("width"), where), size(entry.get("height"), where))
        pages[number] = listed.add(page, number)
    if not seen & {"annotations", "anns"}:
        raise UserError(f"{path}: lists images and no `annotations`: there are no labels in it")
    return pages, names


def read_coco(path: Path, root: str | Path | None) -> Source:
    """COCO (`images` and `annotations` lists) and COCO-Text (`imgs` and `anns` objects); MMOCR 0.x, TextOCR.

    Ignored: the flags of `marks` (`iscrowd`, `ignore`), a legibility other than `legible`, the text `###`, a category
    named `ignore` or so. All other categories are read as text, and named when there are several.
    """
    # Two passes: a million annotations must not be held because the images or the categories stand behind them.
    repeated: list[str] = []
    findings = Findings()
    pages, names = _coco_pages(path, repeated, findings)
    ignored = {number for number, name in names.items() if ignored_name(name)}
    classes: Counter[str] = Counter()
    total, orphans = 0, Findings()
    for place, _, item in walk(path):
        if place not in ("annotations", "anns"):
            continue
        expect(item, dict, f"{path}: annotations", "an object")
        where = f"{path}: annotation {item.get('id')}"
        number = str(expect(item.get("image_id"), (int, str), where, "image_id"))
        total += 1
        page = pages.get(number)
        if page is None:
            orphans.append(Finding(str(path), "orphan", f"annotation {item.get('id')}: no image {number}"))
            continue
        said, category = coco_text(item), str(item.get("category_id"))
        classes[names.get(category, f"category {category}")] += 1
        outline, bounds = coco_outline(item, where)
        page.add(outline, category in ignored or _coco_ignored(item, said), said, bounds)
    lost = orphans.counts["orphan"]
    if pages and lost * 2 > total:
        raise UserError(
            f"{path}: {lost} of {total} annotations are of images that it does not list ({orphans[0].detail}); "
            "the annotations of another file?"
        )
    shelf = Shelf()
    for page in pages.values():
        pack(page, shelf)
    findings += orphans
    findings += named_classes(str(path), classes) if names else []
    return finish("coco", path, root, list(pages.values()), findings, repeated)
