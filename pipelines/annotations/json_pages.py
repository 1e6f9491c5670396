"""Readers of JSON files of one page each: labelme, CORD, FUNSD."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.annotations.json_source import ANNOTATION_FOLDERS, IMAGE_FOLDERS, Pages
from pipelines.annotations.json_stream import load_json
from pipelines.annotations.json_values import (
    ellipse,
    expect,
    number,
    open_line,
    points,
    sides_box,
    size,
    spanned,
    text,
)
from pipelines.annotations.marks import are_classes, flagged, ignored_name, ignored_text, named_classes, settle
from pipelines.annotations.names import files_in, nfc
from pipelines.annotations.packed import Texts
from pipelines.annotations.page import IMAGE_SUFFIXES, ROOT_ADVICE, Finding, Findings, Page, Source, safe_relative
from pipelines.errors import UserError


def _labelme_outline(shape: dict, where: str) -> np.ndarray:
    """A labelme shape's outline. Lines and single points have none and stay what they are, for the index to mask."""
    array = points(shape.get("points") or [], where)
    kind = shape.get("shape_type")
    if kind in ("rectangle", "mask"):  # two opposite corners
        return spanned(array)
    if kind == "circle" and array.shape == (2, 2):  # its middle, and a point of it
        (x, y), (to_x, to_y) = array.tolist()
        radius = float(np.hypot(to_x - x, to_y - y))
        return ellipse(x, y, radius, radius)
    return open_line(array) if kind in ("line", "linestrip", "points") else array


def _labelme_shapes(page: Page, shapes: list, path: Path) -> tuple[list[str], list[str]]:
    """Adds shapes to a page; their labels and descriptions."""
    labels, descriptions = [], []
    for shape in shapes:
        expect(shape, dict, f"{path}: shapes", "an object")
        label, description = text(shape.get("label")), text(shape.get("description"))
        said = description or label
        marked = any(ignored_text(word) or ignored_name(label) for word in (said, label))
        flags = flagged(shape) or flagged(shape.get("flags")) or flagged(shape.get("attributes"))
        page.add(_labelme_outline(shape, str(path)), marked or flags, said)
        labels.append(label or "")
        descriptions.append(description or "")
    return labels, descriptions


def read_labelme(folder: Path, files: list[Path], root: str | Path | None) -> Source:
    """labelme: one JSON a page, imagePath relative to it; label, description or flags ignore = `###` are ignored.

    The text is `description` where the shape has any, else `label`: annotators put transcriptions in either. Labels
    that are classes (`text` for nearly all shapes) are no transcriptions.
    """
    root = Path(root).resolve() if root is not None else folder.resolve()
    listed, findings = Pages(folder, "file"), Findings()
    said: list[Texts] = []
    described = False
    labels: Counter[str] = Counter()
    for path in files:
        data, repeated = load_json(path)
        findings += [Finding(str(path), "duplicate-key", key) for key in repeated]
        expect(data, dict, str(path), "an object")
        if not isinstance(data.get("imagePath"), str):
            raise UserError(f"{path}: no imagePath; not a labelme file")
        base = path.resolve().parent
        if not base.is_relative_to(root):
            raise UserError(f"{path}: lies outside the image root {root}; name a root above it")
        name = safe_relative(data["imagePath"], str(path), base.relative_to(root).as_posix())
        page = Page(name, size(data.get("imageWidth"), str(path)), size(data.get("imageHeight"), str(path)))
        made = _labelme_shapes(page, expect(data.get("shapes"), list, str(path), "shapes as a list"), path)
        labels.update(label for label in made[0] if label and not ignored_text(label))
        said.append(Texts(made[1], listed.shelf))
        described = described or any(made[1])
        listed.add(page, path.name)
    settle(listed.pages)
    if labels and are_classes(labels):
        for page, descriptions in zip(listed.pages, said, strict=True):
            page.texts = descriptions if described else None
        findings += named_classes(str(folder), labels)
    return Source("labelme", root, listed.pages, findings)


def _image_folder(folder: Path, root: str | Path | None) -> Path:
    """Where the images of label files lie that do not name them: the root, or an image folder beside or above."""
    if root is not None:
        if not Path(root).is_dir():
            raise UserError(f"{root}: no such folder (given as the image root)")
        return Path(root).resolve()
    folder = folder.resolve()
    places = [folder, folder.parent] if folder.name.casefold() in ANNOTATION_FOLDERS else [folder]
    tried = [place / name for place in reversed(places) for name in IMAGE_FOLDERS]
    return next((place for place in tried if place.is_dir()), folder)


def _by_stem(files: list[Path], root: str | Path | None) -> tuple[Path, list[tuple[Path, str]], list[Finding]]:
    """The image folder, each label file with its image's name, and the images without one."""
    folder = _image_folder(files[0].parent, root)
    images: dict[str, list[str]] = {}
    for image in files_in(folder, IMAGE_SUFFIXES):
        images.setdefault(nfc(image.stem), []).append(image.name)
    for stem, names in images.items():
        if len(names) > 1:
            raise UserError(f"{folder}: {names[0]} and {names[1]} have one label file, {stem}.json; rename one of them")
    if not any(nfc(path.stem) in images for path in files):
        raise UserError(f"{files[0]}: no image {files[0].stem}.png or .jpg in {folder}; {ROOT_ADVICE}")
    items = [(path, images.get(nfc(path.stem), [f"{path.stem}.png"])[0]) for path in files]
    known = {nfc(path.stem) for path in files}
    alone = [names[0] for stem, names in images.items() if stem not in known]
    left = [Finding(name, "no-labels", "no label file for this image; left out") for name in alone]
    return folder, items, left if len(files) > 1 else []


def _unread(said: str | None) -> bool:
    """Whether nobody could read what is there: a box without a text, or a mark instead of one."""
    return not said or not said.strip() or ignored_text(said)


def _quad(value: Any, where: str) -> np.ndarray:
    """(4, 2) from {"x1": .., "y1": .., ..., "y4": ..}; a missing coordinate is NaN."""
    expect(value or {}, dict, where, "quad as an object")
    corners = [(number((value or {}).get(f"x{k}")), number((value or {}).get(f"y{k}"))) for k in range(1, 5)]
    return points(corners, where)


def _cord_words(value: Any, where: str) -> Iterable[dict]:
    """Words of `valid_line` ([{words: [...]}]), `repeating_symbol` ([[word, ...]]) and `dontcare` ([[quad, ...]])."""
    for line in expect(value or [], list, where, "a list of lines"):
        words = line.get("words") if isinstance(line, dict) else line
        if isinstance(line, dict) and "quad" in line:
            words = [line]
        for word in expect(words or [], list, where, "words as a list"):
            yield expect(word, dict, where, "an object")


def _cord_page(page: Page, data: dict, where: str) -> None:
    shape = data["meta"].get("image_size") if isinstance(data.get("meta"), dict) else None
    if isinstance(shape, dict):
        page.width, page.height = size(shape.get("width"), where), size(shape.get("height"), where)
    for key in ("valid_line", "dontcare", "repeating_symbol"):
        for word in _cord_words(data.get(key), f"{where}: {key}"):
            said = text(word.get("text"))
            corners = _quad(word if "x1" in word else word.get("quad"), where)
            page.add(corners, key != "valid_line" or _unread(said), said)


def _funsd_page(page: Page, data: dict, where: str) -> None:
    for entry in expect(data.get("form"), list, where, "form as a list"):
        expect(entry, dict, f"{where}: form", "an object")
        words = entry.get("words") or [entry]  # an entry without words is its own
        for word in expect(words, list, where, "words as a list"):
            expect(word, dict, f"{where}: words", "an object")
            said = text(word.get("text"))
            page.add(sides_box(word.get("box"), where), _unread(said), said)


def _read_named(name: str, files: list[Path], root: str | Path | None) -> Source:
    folder, items, left = _by_stem(files, root)
    findings = Findings(left)
    listed = Pages(files[0].parent, "file")
    fill, key = (_cord_page, "valid_line") if name == "cord" else (_funsd_page, "form")
    for path, image in items:
        data, repeated = load_json(path)
        findings += [Finding(str(path), "duplicate-key", key) for key in repeated]
        if not isinstance(data, dict) or key not in data:
            raise UserError(f"{path}: no {key}; not a {name.upper()} file as the others of its folder")
        page = Page(safe_relative(image, str(path)))
        fill(page, data, str(path))
        listed.add(page, path.name)
    settle(listed.pages)
    return Source(name, folder, listed.pages, findings)


def read_cord(folder: Path, files: list[Path], root: str | Path | None) -> Source:
    """CORD: json/NAME.json beside image/NAME.png; words are the quads of `valid_line`.

    `dontcare`, `repeating_symbol` and words without a text are ignored. https://github.com/clovaai/cord
    """
    return _read_named("cord", files, root)


def read_funsd(folder: Path, files: list[Path], root: str | Path | None) -> Source:
    """FUNSD: annotations/NAME.json beside images/NAME.png; words have `box` [left, top, right, bottom].

    Words without a text are ignored. https://guillaumejaume.github.io/FUNSD
    """
    return _read_named("funsd", files, root)
