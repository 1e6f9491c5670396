"""Readers of the JSON annotation formats: the contest's, COCO and COCO-Text, labelme, PaddleOCR label lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations.page import IGNORE_TEXT, Finding, Page, Source, find_root, safe_relative
from pipelines.errors import UserError


def load_json(path: Path) -> tuple[Any, list[str]]:
    """Parsed file and the keys that occur twice in one object (Python keeps the last; the user should know).

    Raises:
        UserError: naming line and column where the JSON breaks.
    """
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict:
        made = dict(items)
        if len(made) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    repeated.append(key)
                seen.add(key)
        return made

    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=pairs), repeated
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{path}: JSON nested too deeply to be an annotation file") from error
    except ValueError as error:  # Python's limit of 4,300 digits
        raise UserError(f"{path}: not valid JSON: a number of more digits than any coordinate has") from error


def points(value: Any, where: str) -> np.ndarray:
    """(n, 2) float32 from [[x, y], ...] or [x, y, x, y, ...]; NaN and infinity pass, the index drops them.

    Raises:
        UserError: when it is neither.
    """
    try:
        with np.errstate(over="ignore"):  # 1e300 becomes infinity
            array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: points must be numbers [[x, y], ...]") from error
    if array.size == 0:
        return np.zeros((0, 2), np.float32)
    if array.ndim == 1 and len(array) % 2 == 0:
        return array.reshape(-1, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise UserError(f"{where}: points must be [[x, y], ...], not of shape {array.shape}")
    return array


def _expect(value: Any, kind: type | tuple, where: str, what: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{where}: {what} expected, got {type(value).__name__}")
    return value


def _size(value: Any, where: str) -> int:
    """A side in pixels; a missing one is 0 (not stated)."""
    if value is None:
        return 0
    _expect(value, (int, float), where, "image size in pixels")
    if not 0 <= value < 2**31:
        raise UserError(f"{where}: image size {value} is not a number of pixels")
    return int(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _named_roots(path: Path) -> list[Path]:
    """Where images usually lie beside an annotation file: images/, images/<split>, the folder itself, one up."""
    folder = path.resolve().parent
    stem = path.stem
    places = [folder, folder.parent] if folder.name in ("annotations", "jsons", "json", "labels", "gt") else [folder]
    found = []
    for place in places:
        found += [place / "images", place / "images" / stem, place / "img", place / stem, place]
    return found


def read_contest(path: Path, root: str | Path | None, data: Any, repeated: list[str]) -> Source:
    """The contest's JSON: images -> file name -> {words: id -> {points, ...} or null, img_w, img_h}.

    `transcription` and `illegibility` are read where they are; `orientation` and `language` carry nothing a
    detector learns from. A transcription `###`, illegibility true or `ignore` true makes the word ignored.
    """
    pages = []
    for name, entry in _expect(data["images"], dict, str(path), "images as an object").items():
        where = f"{path}: {name}"
        _expect(entry, dict, where, "an object")
        page = Page(safe_relative(name, where), _size(entry.get("img_w"), where), _size(entry.get("img_h"), where))
        words = entry.get("words") or {}
        for key, word in _expect(words, dict, where, "words as an object").items():
            _expect(word, dict, f"{where}: word {key}", "an object")
            text = _text(word.get("transcription"))
            ignore = bool(word.get("illegibility")) or bool(word.get("ignore")) or text == IGNORE_TEXT
            page.add(points(word.get("points") or [], f"{where}: word {key}"), ignore, text)
        pages.append(page)
    findings = [Finding(str(path), "duplicate-key", key) for key in repeated]
    return _finish("contest", path, root, pages, findings)


def _finish(name: str, path: Path, root: str | Path | None, pages: list[Page], findings: list[Finding]) -> Source:
    if not pages:
        raise UserError(f"{path}: no pages")
    return Source(name, find_root(root, _named_roots(path), [p.path for p in pages], str(path)), pages, findings)


def _convex_hull(array: np.ndarray) -> np.ndarray:
    """Hull of (n, 2) points; input with NaN comes back unchanged, for the index to drop."""
    import cv2

    if not np.isfinite(array).all() or len(array) < 3:
        return array
    return cv2.convexHull(array.astype(np.float32))[:, 0, :]


def _coco_polygon(item: dict, where: str) -> np.ndarray:
    """A region's polygon: `segmentation`/`polygon`/`mask`, else the corners of `bbox` [x, y, w, h].

    A region in several parts is one text, so it becomes the convex hull of the parts; a run-length mask has no
    outline and is read as its box.
    """
    shape = item.get("segmentation") or item.get("polygon") or item.get("mask")
    if isinstance(shape, list) and shape and not isinstance(shape[0], (list, int, float)):
        raise UserError(f"{where}: segmentation must be numbers or lists of numbers")
    if isinstance(shape, list) and shape:
        if isinstance(shape[0], list) and not (
            len(shape) > 2 and all(isinstance(s, list) and len(s) == 2 for s in shape)
        ):
            parts = [points(part, where) for part in shape]
            return parts[0] if len(parts) == 1 else _convex_hull(np.concatenate(parts))
        return points(shape, where)
    box = points(item.get("bbox") or [], where)
    if box.shape != (2, 2):
        raise UserError(f"{where}: neither a polygon nor a bbox [x, y, w, h]")
    (x, y), (w, h) = box
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], np.float32)


def _coco_ignored(item: dict, text: str | None) -> bool:
    legible = item.get("legibility", "legible")
    return bool(item.get("iscrowd")) or bool(item.get("ignore")) or legible != "legible" or text == IGNORE_TEXT


def _coco_text(item: dict) -> str | None:
    for holder in (item, item.get("attributes")):
        for key in ("utf8_string", "transcription", "text", "caption"):
            if isinstance(holder, dict) and isinstance(holder.get(key), str):
                return holder[key]
    return None


def read_coco(path: Path, root: str | Path | None, data: Any, repeated: list[str]) -> Source:
    """COCO (`images` and `annotations` lists) and COCO-Text (`imgs` and `anns` objects).

    Ignored: `iscrowd`, `ignore`, a legibility other than `legible`, the text `###`. COCO-Text's `test` images
    have no published annotations and are left out (an unlabelled page would teach that its text is background).
    """
    images, items = (data["images"], data["annotations"]) if "annotations" in data else (data["imgs"], data["anns"])
    images = list(images.values()) if isinstance(images, dict) else _expect(images, list, str(path), "images")
    items = list(items.values()) if isinstance(items, dict) else _expect(items, list, str(path), "annotations")
    findings = [Finding(str(path), "duplicate-key", key) for key in repeated]
    pages: dict[Any, Page] = {}
    for entry in images:
        _expect(entry, dict, f"{path}: images", "an object")
        if not isinstance(entry.get("id"), (int, str)) or not isinstance(entry.get("file_name"), str):
            raise UserError(f"{path}: an image lacks id or file_name")
        where = f"{path}: image {entry['id']}"
        if entry.get("set") == "test":
            findings.append(Finding(entry["file_name"], "no-labels", "COCO-Text test image, left out"))
            continue
        name = safe_relative(entry["file_name"], where)
        pages[entry["id"]] = Page(name, _size(entry.get("width"), where), _size(entry.get("height"), where))
    for item in items:
        _expect(item, dict, f"{path}: annotations", "an object")
        where = f"{path}: annotation {item.get('id')}"
        page = pages.get(_expect(item.get("image_id"), (int, str), where, "image_id"))
        if page is None:
            findings.append(
                Finding(str(path), "orphan", f"annotation {item.get('id')}: no image {item.get('image_id')}")
            )
            continue
        text = _coco_text(item)
        page.add(_coco_polygon(item, where), _coco_ignored(item, text), text)
    return _finish("coco", path, root, list(pages.values()), findings)


def _labelme_polygon(shape: dict, where: str) -> np.ndarray:
    """A labelme shape's outline; a rectangle is two opposite corners. Lines and single points have no area."""
    array = points(shape.get("points") or [], where)
    if shape.get("shape_type") == "rectangle" and array.shape == (2, 2):
        (x0, y0), (x1, y1) = np.minimum(*array), np.maximum(*array)
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)
    return array


def read_labelme(folder: Path, files: list[Path], root: str | Path | None) -> Source:
    """labelme: one JSON a page, imagePath relative to it; label, description or flags ignore = `###` are ignored.

    The text is `description` where the page has any, else `label`: annotators put transcriptions in either.
    """
    root = Path(root).resolve() if root is not None else folder.resolve()
    pages, findings = [], []
    for path in files:
        data, repeated = load_json(path)
        findings += [Finding(str(path), "duplicate-key", key) for key in repeated]
        _expect(data, dict, str(path), "an object")
        if not isinstance(data.get("imagePath"), str):
            raise UserError(f"{path}: no imagePath; not a labelme file")
        base = path.resolve().parent
        if not base.is_relative_to(root):
            raise UserError(f"{path}: lies outside the image root {root}; name a root above it")
        name = safe_relative(data["imagePath"], str(path), base.relative_to(root).as_posix())
        page = Page(name, _size(data.get("imageWidth"), str(path)), _size(data.get("imageHeight"), str(path)))
        for shape in _expect(data.get("shapes"), list, str(path), "shapes as a list"):
            _expect(shape, dict, f"{path}: shapes", "an object")
            text = _text(shape.get("description")) or _text(shape.get("label"))
            flags = shape.get("flags") if isinstance(shape.get("flags"), dict) else {}
            ignore = bool(flags.get("ignore")) or IGNORE_TEXT in (text, shape.get("label"))
            page.add(_labelme_polygon(shape, str(path)), ignore, text)
        pages.append(page)
    return Source("labelme", root, pages, findings)


def read_paddle(path: Path, root: str | Path | None, lines: list[str]) -> Source:
    """PaddleOCR label lines: `path<TAB>[{"transcription": ..., "points": [[x, y], ...]}, ...]`.

    `###` and `*` are ignored, as PaddleOCR's own loader does. Two tabs in a row or a bad JSON part are errors.
    """
    pages: dict[str, Page] = {}
    findings = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        name, tab, rest = line.partition("\t")
        if not tab:
            raise UserError(f"{where}: no tab between image path and labels; not a PaddleOCR label line")
        try:
            words = json.loads(rest)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: labels are not valid JSON: {str(error)[:80]}") from error
        page = Page(safe_relative(name.strip(), where))
        for word in _expect(words, list, where, "a list of words"):
            _expect(word, dict, where, "an object")
            text = _text(word.get("transcription"))
            ignore = bool(word.get("difficult")) or text in (IGNORE_TEXT, "*")
            page.add(points(word.get("points") or [], where), ignore, text)
        if page.path in pages:
            findings.append(Finding(page.path, "duplicate", f"listed again in {where}; the later line is left out"))
            continue
        pages[page.path] = page
    return _finish("paddle", path, root, list(pages.values()), findings)


JSON_READERS: dict[str, Callable[[Path, str | Path | None, Any, list[str]], Source]] = {
    "contest": read_contest,
    "coco": read_coco,
}
