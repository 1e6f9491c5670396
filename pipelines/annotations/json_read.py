"""Which reader a JSON file has: told by its first keys, without reading on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.annotations.json_formats import read_coco, read_contest
from pipelines.annotations.json_lines import line_format, read_mmocr_lines, read_paddle, read_wildreceipt
from pipelines.annotations.json_pages import read_cord, read_funsd, read_labelme
from pipelines.annotations.json_stream import walk
from pipelines.annotations.json_tools import read_doctr, read_label_studio, read_mmocr, read_via
from pipelines.annotations.page import Source
from pipelines.errors import UserError

Reader = Callable[[Path, str | Path | None], Source]
PageReader = Callable[[Path, list[Path], str | Path | None], Source]

WHOLE_READERS: dict[str, Reader] = {
    "contest": read_contest,
    "coco": read_coco,
    "mmocr": read_mmocr,
    "doctr": read_doctr,
    "via": read_via,
    "label-studio": read_label_studio,
}
PAGE_READERS: dict[str, PageReader] = {"labelme": read_labelme, "cord": read_cord, "funsd": read_funsd}
LINE_READERS: dict[str, Reader] = {
    "paddle": read_paddle,
    "wildreceipt": read_wildreceipt,
    "mmocr-lines": read_mmocr_lines,
}
JSON_FORMATS = (*WHOLE_READERS, *PAGE_READERS, *LINE_READERS)
MOST_KEYS = 64  # of a document that is none of ours


def json_format(path: Path) -> str | None:
    """The format of a JSON file or of JSON lines; None = none of ours.

    Raises:
        UserError: no JSON as far as it was looked at, or a format that is known and not read.
    """
    top: dict[Any, Any] = {}
    first: dict[str, Any] = {}  # of what is opened: its first member
    for place, key, value in walk(path, alone=False):
        if place:
            first.setdefault(place, value)
        elif isinstance(key, str):
            top[key] = value
        else:
            return _list_format(path, value)
        found = _by_keys(top, first)
        if found or len(top) > MOST_KEYS:
            return found
    if isinstance(top.get("file_name"), str) and isinstance(top.get("annotations"), list):
        return line_format(path)
    return "coco" if isinstance(top.get("images"), list) else None


def _by_keys(top: dict[Any, Any], first: dict[str, Any]) -> str | None:
    """What is certain from the keys so far."""
    images = top.get("images")
    if isinstance(images, dict):
        return "contest"
    one = first.get("annotations") or first.get("anns")
    if (isinstance(one, dict) and "image_id" in one and "file_name" not in top) or (
        isinstance(images, list) and "annotations" in top
    ):
        return "coco"
    if isinstance(top.get("imgs"), dict) and "anns" in top:
        return "coco"
    if "shapes" in top and "imagePath" in top:
        return "labelme"
    if isinstance(top.get("data_list"), list):
        return "mmocr"
    if isinstance(top.get("valid_line"), list):
        return "cord"
    if isinstance(top.get("form"), list):
        return "funsd"
    return "via" if isinstance(top.get("_via_img_metadata"), dict) else _by_entry(top)


def _by_entry(top: dict[Any, Any]) -> str | None:
    """Formats that are one object with an entry a page."""
    entry = next(iter(top.values()), None)
    if not isinstance(entry, dict):
        return None
    if "filename" in entry and "regions" in entry:
        return "via"
    return "doctr" if "polygons" in entry else None


def _list_format(path: Path, item: Any) -> str | None:
    """The format of a document that is a list, by its first member."""
    if not isinstance(item, dict):
        return None
    if "data" in item and ("annotations" in item or "completions" in item):
        return "label-studio"
    shapes = [v[0] for v in item.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if any("original_width" in shape for shape in shapes):
        raise UserError(
            f"{path}: Label Studio's JSON-MIN, which tells texts and boxes apart by no id; export it as JSON"
        )
    return None
