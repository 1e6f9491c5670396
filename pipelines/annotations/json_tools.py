"""Readers of what annotation tools and other training engines write: VIA, Label Studio, docTR, MMOCR 1.x."""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from pipelines.annotations.json_source import Pages, finish, present
from pipelines.annotations.json_stream import walk
from pipelines.annotations.json_values import (
    ellipse,
    expect,
    number,
    open_line,
    points,
    sides_box,
    size,
    sized_box,
    text,
)
from pipelines.annotations.marks import are_classes, flagged, ignored_name, ignored_text, named_classes
from pipelines.annotations.packed import pack
from pipelines.annotations.page import IMAGE_SUFFIXES, Finding, Findings, Page, Source, safe_relative
from pipelines.errors import UserError

# Attributes of a VIA region that hold its transcription, in this order; else the first that is a text.
VIA_TEXTS = ("transcription", "text", "utf8_string", "caption", "label")
# Keys of a Label Studio task's data that hold the image, in this order; else the first that looks like one.
STUDIO_IMAGES = ("ocr", "image", "img", "image_url", "url")
UPLOAD_HASH = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it in front of an uploaded file's name


# ---- VIA


def _via_outline(shape: dict, where: str) -> np.ndarray:
    """(n, 2) of shape_attributes; a point and a polyline have no outline, the index masks them."""
    kind = shape.get("name")
    x, y = number(shape.get("cx")), number(shape.get("cy"))
    if kind == "rect":
        return sized_box(*(number(shape.get(key)) for key in ("x", "y", "width", "height")))
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x") or [], shape.get("all_points_y") or []
        if len(expect(xs, list, where, "a list of x")) != len(expect(ys, list, where, "a list of y")):
            raise UserError(f"{where}: {len(xs)} x and {len(ys)} y; every point has both")
        outline = points([[number(a), number(b)] for a, b in zip(xs, ys, strict=True)], where)
        return open_line(outline) if kind == "polyline" else outline
    if kind == "circle":
        return ellipse(x, y, number(shape.get("r")), number(shape.get("r")))
    if kind == "ellipse":
        theta = number(shape.get("theta", 0.0))
        return ellipse(x, y, number(shape.get("rx")), number(shape.get("ry")), theta)
    return points([[x, y]], where)


def _via_regions(entry: dict, where: str) -> list:
    regions = entry.get("regions") or []  # VIA 1 has an object
    return list(regions.values()) if isinstance(regions, dict) else expect(regions, list, where, "regions as a list")


def read_via(path: Path, root: str | Path | None) -> Source:
    """VGG Image Annotator 1 and 2: a project (`_via_img_metadata`) or its JSON export, key -> {filename, regions}.

    The text is an attribute `transcription` or `text`, else the first that is a string; values that are classes are
    no texts. A class named `ignore`, and the flags of `marks` among the attributes, make a region ignored.
    """
    listed = Pages(path, "entry")
    repeated: list[str] = []
    labels: Counter[str] = Counter()
    for place, key, entry in walk(path, repeated):
        if place != "_via_img_metadata" and str(key).startswith("_via_"):  # settings of a project
            continue
        where = f"{path}: {key}"
        if not isinstance(expect(entry, dict, where, "an object").get("filename"), str):
            raise UserError(f"{where}: no filename; not an entry of VIA")
        page = Page(safe_relative(entry["filename"], where))
        for region in _via_regions(entry, where):
            expect(region, dict, where, "a region as an object")
            shape = expect(region.get("shape_attributes") or {}, dict, where, "shape_attributes as an object")
            about = expect(region.get("region_attributes") or {}, dict, where, "region_attributes as an object")
            words = [value for value in about.values() if isinstance(value, str)]
            texts = [about[key] for key in VIA_TEXTS if isinstance(about.get(key), str)] + words
            said = texts[0] if texts else None
            flags = [about, *(value for value in about.values() if isinstance(value, dict))]
            ignore = any(map(flagged, flags)) or any(map(ignored_name, words)) or ignored_text(said)
            page.add(_via_outline(shape, where), ignore, said)
            labels[said or ""] += bool(said) and not ignored_text(said)
        listed.add(page, key)
    return finish("via", path, root, listed.pages, _drop_classes(path, listed.pages, +labels), repeated)


def _drop_classes(path: Path, pages: list[Page], labels: "Counter[str]") -> list[Finding]:
    """Takes the texts away where they are classes; the line that names these."""
    if not labels or not are_classes(labels):
        return []
    for page in pages:
        page.texts = None
    return named_classes(str(path), labels)


# ---- Label Studio


def _studio_outline(value: dict, width: float, height: float, where: str) -> np.ndarray:
    """(n, 2) pixels of a result's value, which has per cent of the image."""
    scale = np.array([width, height], np.float32) / 100
    if "points" in value:
        with np.errstate(over="ignore", invalid="ignore"):
            return points(value["points"] or [], where) * scale
    x, y = number(value.get("x")), number(value.get("y"))
    if "radiusX" in value:
        outline = ellipse(0, 0, number(value["radiusX"]) * width / 100, number(value.get("radiusY")) * height / 100)
    elif "height" in value:
        sides = number(value.get("width")) * width / 100, number(value["height"]) * height / 100
        outline = sized_box(0, 0, *sides)
    else:  # a key point, or a brush, which has nothing
        outline = points([[0, 0]] if "x" in value else [], where)
    turn = np.deg2rad(number(value.get("rotation") or 0))  # clockwise, about x, y
    with np.errstate(invalid="ignore", over="ignore"):
        turned = outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], np.float32)
        return turned.astype(np.float32) + np.array([x, y], np.float32) * scale


def _studio_results(results: list, where: str) -> Iterator[tuple[dict, dict]]:
    """(a result that has a place, all values of its id joined): box, label and text of a region are three results."""
    joined: dict[Any, dict] = {}
    placed: dict[Any, dict] = {}
    for order, result in enumerate(results):
        value = expect(result, dict, where, "a result as an object").get("value")
        if not isinstance(value, dict):
            continue
        key = result.get("id") if isinstance(result.get("id"), str) else order
        joined[key] = joined.get(key, {}) | value
        if value.keys() & {"x", "points", "rle", "brushlabels"}:
            placed.setdefault(key, result)
    for key, result in placed.items():
        yield result, joined[key]


def _studio_labels(value: dict) -> list[str]:
    lists = [names for key, names in value.items() if key.endswith("labels") and isinstance(names, list)]
    return [name for names in lists for name in names if isinstance(name, str)]


def _studio_text(value: dict) -> str | None:
    said = value.get("text")
    if isinstance(said, list):
        said = " ".join(word for word in said if isinstance(word, str)) if said else None
    return text(said)


def _studio_page(page: Page, results: list, where: str, classes: "Counter[str]") -> None:
    for result, value in _studio_results(results, where):
        if yes_number(result.get("image_rotation")):
            raise UserError(f"{where}: an image turned in Label Studio (image_rotation); turn the file itself instead")
        width, height = (size(result.get(f"original_{side}"), where) for side in ("width", "height"))
        if not width or not height:
            raise UserError(f"{where}: no original_width and original_height; boxes are per cent of them")
        page.width, page.height = width, height
        names, said = _studio_labels(value), _studio_text(value)
        classes.update(names[:1])
        ignore = any(map(ignored_name, names)) or ignored_text(said) or flagged(result.get("meta"))
        page.add(_studio_outline(value, width, height, where), ignore, said)


def yes_number(value: Any) -> bool:
    """Whether a value is a number other than 0."""
    return isinstance(value, (int, float)) and value != 0


def _studio_names(task: dict, where: str) -> list[str]:
    """What a task's image may be called here: path, file name, file name without the hash of the upload."""
    data = expect(task.get("data"), dict, where, "data as an object")
    values = [data[key] for key in STUDIO_IMAGES if isinstance(data.get(key), str)]
    values += [v for v in data.values() if isinstance(v, str) and v.casefold().endswith(IMAGE_SUFFIXES)]
    if not values:
        raise UserError(f"{where}: no image in its data (looked for {', '.join(STUDIO_IMAGES)})")
    try:
        parts = urlsplit(values[0])
    except ValueError as error:
        raise UserError(f"{where}: image address {values[0][:60]!r} cannot be read") from error
    local = parts.query.partition("d=")[2] if parts.query.startswith("d=") else ""
    full = unquote(local or parts.path).replace("\\", "/").lstrip("/").removeprefix("data/upload/")
    base = posixpath.basename(full)
    return [safe_relative(name, where) for name in (full, base, UPLOAD_HASH.sub("", base))]


def _studio_annotation(task: dict, where: str, name: str, findings: Findings) -> list | None:
    """The results that count for a task; None where nobody has annotated it."""
    made = task.get("annotations", task.get("completions")) or []
    made = [expect(one, dict, where, "an annotation as an object") for one in expect(made, list, where, "a list")]
    made = [one for one in made if not one.get("was_cancelled")]
    if not made:
        findings.append(Finding(name, "no-labels", f"{where.partition(': ')[2]} has no annotation; left out"))
        return None
    if len(made) > 1:
        findings.append(Finding(name, "annotators", f"{len(made)} annotations of one image; one is read"))
    best = next((one for one in made if one.get("ground_truth")), made[0])
    return expect(best.get("result") or [], list, where, "result as a list")


def read_label_studio(path: Path, root: str | Path | None) -> Source:
    """Label Studio's JSON export: a list of tasks; boxes, polygons and ellipses in per cent, texts by the region's id.

    A label named `ignore` or so makes a region ignored. Of several annotations the one of the ground truth is read,
    else the first; both are said.
    """
    listed = Pages(path, "task")
    pages: list[tuple[Page, list[str]]] = []
    findings = Findings()
    repeated: list[str] = []
    classes: Counter[str] = Counter()
    for _, order, task in walk(path, repeated):
        where = f"{path}: task {task.get('id', order) if isinstance(task, dict) else order}"
        names = _studio_names(expect(task, dict, where, "an object"), where)
        results = _studio_annotation(task, where, names[0], findings)
        if results is not None:
            page = Page(names[0])
            _studio_page(page, results, where, classes)
            pages.append((pack(page, listed.shelf) if page.polygons else page, names))
    if not pages:
        raise UserError(f"{path}: no pages: none of its tasks has an annotation")
    options = [[names[k] for _, names in pages] for k in range(3)]
    chosen = max(options, key=lambda names: present(root, path, names))
    for order, ((page, _), name) in enumerate(zip(pages, chosen, strict=True)):
        page.path = name
        listed.add(page, order)
    findings += named_classes(str(path), classes)
    return finish("label-studio", path, root, listed.pages, findings, repeated)


# ---- docTR, MMOCR 1.x


def read_doctr(path: Path, root: str | Path | None) -> Source:
    """docTR's labels.json: name -> {img_dimensions, polygons: [[[x, y] * 4], ...] or class -> such a list}."""
    listed = Pages(path, "entry")
    repeated: list[str] = []
    classes: Counter[str] = Counter()
    for _, name, entry in walk(path, repeated):
        where = f"{path}: {name}"
        polygons = expect(entry, dict, where, "an object").get("polygons")
        groups = polygons if isinstance(polygons, dict) else {"": polygons}
        page = Page(safe_relative(str(name), where))  # img_dimensions has no stated order, so no size
        for kind, outlines in groups.items():
            for outline in expect(outlines, list, where, "polygons as a list"):
                page.add(points(outline or [], where), ignored_name(kind), None)
                classes[kind] += 1
        listed.add(page, name)
    return finish("doctr", path, root, listed.pages, named_classes(str(path), classes), repeated)


def read_mmocr(path: Path, root: str | Path | None) -> Source:
    """MMOCR 1.x: data_list of {img_path, height, width, instances: [{polygon, bbox: [l, t, r, b], ignore, text}]}."""
    listed = Pages(path, "entry")
    repeated: list[str] = []
    for place, order, entry in walk(path, repeated):
        if place != "data_list":
            continue
        where = f"{path}: data_list {order}"
        if not isinstance(expect(entry, dict, where, "an object").get("img_path"), str):
            raise UserError(f"{where}: no img_path")
        page = Page(safe_relative(entry["img_path"], where))
        page.width, page.height = size(entry.get("width"), where), size(entry.get("height"), where)
        for item in expect(entry.get("instances") or [], list, where, "instances as a list"):
            expect(item, dict, where, "an instance as an object")
            said, bounds = text(item.get("text")), sides_box(item.get("bbox"), where)
            shape = item.get("polygon") or item.get("mask") or []
            outline = points(shape[0] if isinstance(shape, list) and len(shape) == 1 else shape, where)
            ignore = flagged(item) or ignored_text(said)
            page.add(outline if len(outline) else bounds, ignore, said, bounds if len(bounds) == 4 else None)
        listed.add(page, order)
    return finish("mmocr", path, root, listed.pages, [], repeated)
