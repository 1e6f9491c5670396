"""Reads any supported annotation source; the format is named, or detected from the content.

Formats:
    contest   one JSON: images -> file -> words -> id -> points, with img_w, img_h
    coco      one JSON: COCO (`images`, `annotations`; MMOCR 0.x) or COCO-Text and TextOCR (`imgs`, `anns`)
    mmocr     one JSON of MMOCR 1.x: data_list of img_path, instances (polygon, bbox, ignore, text)
    doctr     one JSON of docTR: file name -> polygons
    via       one JSON of VGG Image Annotator: a project, or its export
    label-studio  one JSON: Label Studio's export
    labelme   a folder of labelme JSON files (or one of them)
    cord      a folder of CORD's JSON files, json/ beside image/
    funsd     a folder of FUNSD's JSON files, annotations/ beside images/
    paddle    PaddleOCR label lines: path <TAB> JSON list of words; or PPOCRLabel's folder
    wildreceipt   JSON lines: file_name, annotations with box, text, label
    mmocr-lines   JSON lines of MMOCR 0.x: file_name, annotations with bbox, segmentation, iscrowd
    icdar     text lines, 4 points: x1,y1,...,x4,y4[,text]; SROIE is this one
    polygon   text lines, n >= 3 points: x1,y1,...,xn,yn[,text]
    ltrb      text lines, boxes: left,top,right,bottom[,text]
    xywh      text lines, boxes: left,top,width,height[,text]
    td500     text lines of MSRA-TD500: index difficulty x y w h theta
    ctw1500   text lines of CTW1500: xmin,ymin,xmax,ymax and 14 offsets
    yolo      text lines, shares of the page: class cx cy w h, or class x1 y1 x2 y2 ... (OBB, segments)
    totaltext text files of Total-Text: x: [[...]], y: [[...]], ornt: [u'c'], transcriptions: [u'...']
    voc       one XML an image: PASCAL VOC, roLabelImg (ctw1500 has such files too)
    cvat      one XML: CVAT for images

Text lines come as a folder with image (img/, images/) and label (box/, gt/, labels/, annotations/) subfolders, a
folder with gt_IMG.txt beside the images, or an id list (one id a line) next to such subfolders; other people's folders
are in `text_folders`, marks such as `###` in `text_marks`.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.annotations.json_lines import is_paddle, stream_lines
from pipelines.annotations.json_read import JSON_FORMATS, LINE_READERS, PAGE_READERS, WHOLE_READERS, json_format
from pipelines.annotations.links import ANNOTATION_SUFFIXES, refuse_image_links, refuse_label_links
from pipelines.annotations.names import Spelling, files_in, is_clutter, names_in
from pipelines.annotations.page import Source
from pipelines.annotations.text_folders import (
    LABEL_FOLDERS,
    NO_LABELS,
    TEXT_FORMATS,
    find_places,
    label_folder,
    read_folder,
    read_list,
)
from pipelines.annotations.text_formats import is_text_line, read_lines
from pipelines.annotations.total_text import is_record
from pipelines.annotations.xml_formats import read_cvat
from pipelines.errors import UserError
from pipelines.limits import DEFAULT

FORMATS = (*JSON_FORMATS, *TEXT_FORMATS, "cvat")


def _unknown(path: Path, seen: str) -> UserError:
    return UserError(f"{path}: {seen}; known formats: {', '.join(FORMATS)} (see `pipelines.dataset build --help`)")


def _read_json(path: Path, format: str, root: str | Path | None) -> Source:
    found = json_format(path)
    if found is None:
        raise _unknown(path, "JSON of no known annotation format")
    if format not in ("auto", found):
        raise UserError(f"{path}: asked to read as {format}, but the content is {found}")
    if found in PAGE_READERS:
        return PAGE_READERS[found](path.parent, [path], root)
    return (WHOLE_READERS | LINE_READERS)[found](path, root)


def _read_text(path: Path, format: str, root: str | Path | None) -> Source:
    first = next((line for _, line in stream_lines(path)), None)
    if first is None:
        raise UserError(f"{path}: no pages: the file is empty")
    if is_paddle(first):
        if format not in ("auto", "paddle"):
            raise UserError(f"{path}: asked to read as {format}, but the content is paddle")
        return LINE_READERS["paddle"](path, root)
    if is_text_line(first) or is_record(first):
        raise UserError(f"{path}: holds the boxes of one page; name the folder that has its images and label files")
    if "," in first or "\t" in first or "\0" in first or format not in ("auto", *TEXT_FORMATS):
        raise _unknown(path, "text of no known annotation format")
    return read_list(path, root, format, read_lines(path))


def _page_files(folder: Path, format: str) -> tuple[str, list[Path]]:
    """The JSON files of a folder, or of its label subfolder, when the first of them holds one page; and its format."""
    wanted = PAGE_READERS if format == "auto" else [format]
    for place in [folder] + [folder / name for name in (*LABEL_FOLDERS, "json", "jsons")]:
        files = files_in(place, (".json",)) if place.is_dir() else []
        found = json_format(files[0]) if files else None
        if found in wanted:
            return str(found), files
    return "", []


def _one_file(folder: Path) -> list[Path]:
    """The annotation files among which a folder's reader must choose: PPOCRLabel's own, else all that are no lists."""
    label = folder / "Label.txt"
    if label.is_file() and is_paddle(next((line for _, line in stream_lines(label)), "")):
        return [label]  # beside it lie fileState.txt, rec_gt.txt
    found = files_in(folder, (".json", ".jsonl", ".txt", ".xml"))
    inside = [path for path in found if path.name.lower() not in NO_LABELS or _has_pages(path)]
    for name in LABEL_FOLDERS:
        inside = inside or (files_in(folder / name, (".json", ".jsonl")) if (folder / name).is_dir() else [])
    return inside


def _has_pages(path: Path) -> bool:
    """Whether a text file has a page a line: WildReceipt's train.txt is no list of ids."""
    first = next((line for _, line in stream_lines(path)), "")
    return is_paddle(first) or first.startswith("{")


def _read_folder(folder: Path, format: str, root: str | Path | None) -> Source:
    if format in TEXT_FORMATS or (format == "auto" and find_places(folder, root, deep=False)):
        return read_folder(folder, root, format)
    found, files = _page_files(folder, format) if format in ("auto", *PAGE_READERS) else ("", [])
    if files:
        return PAGE_READERS[found](folder, files, root)
    inside = _one_file(folder)
    if len(inside) == 1:
        return _read_file(inside[0], format, root)
    if len(inside) > 1 and not (format == "auto" and label_folder(folder)):
        names = ", ".join(p.name for p in inside[:5])
        raise UserError(f"{folder}: several annotation files ({names}); name one of them")
    if format == "auto" and (find_places(folder, root) or any((folder / name).is_dir() for name in LABEL_FOLDERS)):
        return read_folder(folder, root, format)
    raise _unknown(folder, "no pages: no annotation file and no label folder in it")


def _read_file(path: Path, format: str, root: str | Path | None) -> Source:
    if path.suffix.lower() == ".json":
        return _read_json(path, format, root)
    with path.open("rb") as file:
        head = file.read(4096)
    if path.suffix.lower() in (".yaml", ".yml"):
        raise UserError(f"{path}: settings of a data set, not its labels; name the folder of its images and labels")
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unknown(path, "a binary file")
    if path.suffix.lower() == ".xml":
        if format not in ("auto", "cvat"):
            raise UserError(f"{path}: asked to read as {format}, but the content is XML of one file: cvat")
        return read_cvat(path, root)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[{")):
        return _read_json(path, format, root)
    return _read_text(path, format, root)


def annotation_files(path: Path) -> Iterator[str]:
    """The files that a source's content depends on: itself, and the label files for a folder or an id list."""
    if path.is_file():
        yield str(path)
    # An id list depends on the label files next to it; a JSON or PaddleOCR file on itself only.
    if path.is_dir() or path.suffix.lower() == ".txt":
        folder = path if path.is_dir() else path.parent
        with os.scandir(folder) as entries:
            inside = sorted(folder / entry.name for entry in entries if entry.is_dir() and not is_clutter(entry.name))
        nested = label_folder(path)
        for place in dict.fromkeys([folder, *inside, *([nested] if nested else [])]):
            files = (os.path.join(place, name) for name in names_in(place, ANNOTATION_SUFFIXES))
            yield from (file for file in files if file != str(path))


def _refuse_large(path: Path, limit_mb: float) -> None:
    """Refuses before anything is read what would take an hour, or (one JSON document) more memory than there is.

    Text files count together, since all their lines become polygons; JSON files each, for labelme's hold their images
    and are parsed one at a time.
    """
    limit, texts, total = limit_mb * 1e6, 0, 0
    for place in annotation_files(path):
        with contextlib.suppress(OSError):  # gone meanwhile
            size = os.stat(place).st_size
            if size > limit:
                raise UserError(f"{place}: an annotation file of {_above(size, limit_mb, 'it')}")
            if not place.lower().endswith(".json"):
                texts, total = texts + 1, total + size
    if total > limit:
        raise UserError(f"{path}: {texts} text files of {_above(total, limit_mb, 'the data')}")


def _above(size: int, limit_mb: float, what: str) -> str:
    in_all, least = " in all" if what == "the data" else "", math.ceil(size / 1e6)
    return (
        f"{size / 1e6:.4g} MB{in_all}, above the {limit_mb:g} MB allowed; data.max_annotation_mb={least} "
        f"(--max-annotation-mb {least}) reads it, about 5 minutes a GB; or split {what}"
    )


def read_source(
    source: str | Path,
    format: str = "auto",
    root: str | Path | None = None,
    max_annotation_mb: float = DEFAULT.annotation_mb,
    *,
    follow_links: bool = False,
) -> Source:
    """Reads an annotation source without opening its images.

    Args:
        source: annotation file or folder.
        format: `auto` or one of FORMATS.
        root: folder the image paths are relative to; None = found beside the annotations.
        max_annotation_mb: a larger JSON file, or more text files together (10^6 bytes), are refused.
        follow_links: take files by symbolic links that lead out of the source's folder.

    Raises:
        UserError: unknown format, too large, malformed content, no pages, or a path or link that leaves the root.
    """
    if format not in ("auto", *FORMATS):
        raise UserError(f"format {format!r}: allowed is auto, {', '.join(FORMATS)}")
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path}: neither a file nor a folder")
    if not follow_links:
        refuse_label_links(path, label_folder(path))
    _refuse_large(path, max_annotation_mb)
    made = _read_folder(path, format, root) if path.is_dir() else _read_file(path, format, root)
    names = Spelling(made.root).settle([page.path for page in made.pages], str(path))
    for page, name in zip(made.pages, names, strict=True):
        page.path = name
    if not follow_links:
        refuse_image_links(made.root, (page.path for page in made.pages))
    return made
