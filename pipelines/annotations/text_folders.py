"""Where text lines (and an XML a page) lie: folders of images and of labels in anyone's layout, and lists of ids.

    img/ box/                   also images, imgs; gt, labels, annotations (SROIE and most others); or side by side
    images/train labels/train   YOLO; the split is named: SET/images/train, when there are several
    train_images train_gts      MhLiao/DB, with NAME.jpg.txt; train_list.txt names the split
    ch4_training_images ch4_training_localization_transcription_gt       ICDAR 2015, with gt_NAME.txt

What is paired are folders: one with images, one with label files of their names, of one split where names tell it.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipelines.annotations import total_text, xml_formats
from pipelines.annotations.names import Spelling, is_clutter, key, names_in, nfc
from pipelines.annotations.page import IMAGE_SUFFIXES, Finding, Findings, Page, Source, safe_relative
from pipelines.annotations.text_formats import LAYOUTS, build_pages
from pipelines.errors import UserError

IMAGE_FOLDERS = ("img", "images", "imgs", "image")
LABEL_FOLDERS = ("box", "gt", "labels", "annotations", "label", "gts")
LABEL_SUFFIXES = (".txt", ".csv", ".gt", ".xml")
# What is written before an image's stem: ICDAR, Total-Text.
LABEL_PREFIXES = ("", "gt_", "poly_gt_", "rect_gt_")
TEXT_FORMATS = (*LAYOUTS, "totaltext", "voc")
# Unless an image is so called.
NO_LABELS = frozenset(("classes.txt", "class_list.txt", "readme.txt", "train.txt", "val.txt", "test.txt"))
PROBES = 32  # images that tell whether a folder has their labels
DEEPEST, MOST_FOLDERS = 3, 500  # Total-Text: Groundtruth/Polygon/Train
_SPLITS = (("train", re.compile("train")), ("test", re.compile("test")), ("val", re.compile(r"val|(?<![a-z])dev")))
_PART_OF_A_SET = re.compile(r"im(g|age)s?(?![a-z])|label|gts?(?![a-z])|annot|ground.?truth|(?<![a-z])box")


class Places(NamedTuple):
    """Folders of one source."""

    images: Path
    labels: Path
    top: Path  # what the names of images are relative to

    @property
    def prefix(self) -> str:
        """What comes before the name of a file of the image folder, to name it from the top."""
        base = self.images.relative_to(self.top).as_posix()
        return "" if base == "." else f"{base}/"


def subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the named subfolders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def label_files(folder: Path) -> dict[str, str]:
    """Names of a folder's text-line files by their key."""
    return {key(name): name for name in names_in(folder, LABEL_SUFFIXES)}


def label_of(image: str, labels: Mapping[str, str]) -> str | None:
    """The label file of an image file name: stem.txt, gt_stem.txt, stem.jpg.txt, and so on with the other suffixes.

    CTW1500's test labels have three zeros before the image's four digits.
    """
    name = key(image)
    stem = name.rpartition(".")[0]
    whole = name.removesuffix(image.rpartition(".")[2].lower()) + image.rpartition(".")[2]  # a.JPG.txt
    stems = [prefix + each for each in (stem, name, whole) for prefix in LABEL_PREFIXES]
    if len(stem) == 4 and stem.isdecimal():
        stems.append("000" + stem)
    return next((labels[s + suffix] for s in stems for suffix in LABEL_SUFFIXES if s + suffix in labels), None)


# ---- which folders


def _split_of(text: str) -> str:
    return next((name for name, found in _SPLITS if found.search(text.lower())), "")


def _survey(top: Path) -> tuple[list[Path], list[Path]]:
    """Folders below one (itself too) that hold images, and that hold label files. Links are not followed."""
    images, labels, waiting = [], [], [(top, 0)]
    for folder, depth in waiting:
        suffixes = set()
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name) or entry.name.startswith("."):
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    suffixes.add(os.path.splitext(entry.name)[1].lower())
                elif depth < DEEPEST and len(waiting) < MOST_FOLDERS:
                    waiting.append((folder / entry.name, depth + 1))
        images += [folder] if suffixes & set(IMAGE_SUFFIXES) else []
        labels += [folder] if suffixes & set(LABEL_SUFFIXES) else []
    return sorted(images), sorted(labels)


def _hits(images: Path, labels: Path) -> int:
    """How many of some images have a label file there."""
    listed = names_in(images, IMAGE_SUFFIXES)
    probes = listed[:: max(1, len(listed) // PROBES)]
    files = {name: name for name in names_in(labels, LABEL_SUFFIXES)} if probes else {}
    if all(label_of(name, files) for name in probes):  # as they are spelled: keys of a million names take 1 s
        return len(probes)
    files = {key(name): name for name in files}
    return sum(label_of(name, files) is not None for name in probes)


def _best(images: Path, labels: list[Path], top: Path) -> list[Path]:
    """The label folders of an image folder that nothing tells apart; [] for none."""
    split = _split_of(images.relative_to(top).as_posix())
    ranked: dict[tuple, list[Path]] = {}
    for folder in labels:
        other = _split_of(folder.relative_to(top).as_posix())
        hits = _hits(images, folder) if not split or not other or split == other else 0
        if hits:
            alike = (folder.name == images.name) + 2 * (folder.parent == images.parent) + 4 * (folder == images)
            ranked.setdefault((split == other, hits, alike), []).append(folder)
    return ranked[max(ranked)] if ranked else []


def _search(top: Path, inside: Path, split: str) -> Places | None:
    """The one pair of folders below `top` of which one lies in `inside`.

    Raises:
        UserError: there are several.
    """
    images, labels = _survey(top)
    found: list[tuple[Path, list[Path]]] = []
    for folder in images:
        if split and _split_of(folder.relative_to(top).as_posix()) not in ("", split):
            continue
        near = labels if folder.is_relative_to(inside) else [p for p in labels if p.is_relative_to(inside)]
        best = _best(folder, near, top)
        found += [(folder, best)] if best else []
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(str(folder) for folder, _ in found[:6])
        raise UserError(f"{inside}: holds several sets of pages; name one of {names}")
    folder, best = found[0]
    if len(best) > 1:
        names = ", ".join(str(each) for each in best[:6])
        raise UserError(
            f"{inside}: the images of {folder} have labels in {names}; name one of these and the image root"
        )
    return Places(folder, best[0], top if folder.is_relative_to(top) else folder)


def _tops(folder: Path) -> Iterator[Path]:
    """A folder, and those above it while it is called as a part of a set is (images/train, train_gts)."""
    yield folder
    if _PART_OF_A_SET.search(folder.name.lower()):
        yield folder.parent
    elif _PART_OF_A_SET.search(folder.parent.name.lower()):
        yield folder.parent.parent


def find_places(folder: Path, root: str | Path | None, split: str = "", *, deep: bool = True) -> Places | None:
    """The image and the label folder of a folder that a user names; None where nothing is paired.

    Args:
        root: the folder of the images, where it is named.
        split: `train`, `val` or `test`: folders of another one are not looked at.
        deep: look further than img/ box/ and the like, and the folder itself.

    Raises:
        UserError: more than one pair, or the root is no folder.
    """
    folder = folder.resolve()
    image_dir = Path(root).resolve() if root is not None else subfolder(folder, IMAGE_FOLDERS) or folder
    label_dir = subfolder(folder, LABEL_FOLDERS) or folder
    if not image_dir.is_dir():
        raise UserError(f"{image_dir}: no such folder (given as the image root)")
    if not split and _hits(image_dir, label_dir):
        return Places(image_dir, label_dir, folder if image_dir.is_relative_to(folder) else image_dir)
    if root is not None or not deep:
        return None
    for top in _tops(folder):
        found = _search(top, folder, split)
        if found:
            inner = folder if found.images.is_relative_to(folder) else found.images
            return found._replace(top=inner)
    return None


def label_folder(source: Path) -> Path | None:
    """The folder that a source's label files lie in; None where it is read in another way, or refused."""
    try:
        if source.is_dir():
            found = find_places(source, None)
        else:
            found = _places_of_list(source, None) if source.suffix.lower() == ".txt" else None
    except UserError:
        return None
    return found.labels if found else None


# ---- pages


def _pair(places: Places, findings: Findings) -> list[tuple[str, str]]:
    """Images with their label files; an image without one is left out (unlabelled is not the same as empty)."""
    labels, prefix = label_files(places.labels), places.prefix
    items, used = [], set()
    for image in names_in(places.images, IMAGE_SUFFIXES):
        label = label_of(image, labels)
        name = prefix + image
        if label is None:
            findings.append(Finding(name, "no-labels", "no label file for this image; left out"))
            continue
        used.add(label)
        items.append((name, os.path.join(places.labels, label)))
    for name, label in labels.items():
        if label not in used and items and name.lower() not in NO_LABELS:
            path = places.labels / label
            shown = path.relative_to(places.top) if path.is_relative_to(places.top) else path
            findings.append(Finding(shown.as_posix(), "orphan", "label file without an image"))
    return items


def _pages(items: list[tuple[str, str]], format: str, where: str, findings: Findings) -> tuple[str, list[Page]]:
    """Format and pages of pairs of image and label file, whatever the label files are."""
    xml = [path for _, path in items if path.lower().endswith(".xml")]
    if xml and len(xml) < len(items):
        raise UserError(
            f"{where}: {len(xml)} of {len(items)} pages have an XML file, the others a text file; part them"
        )
    if xml:
        return xml_formats.build_pages(items, format, where, findings)
    if format == "totaltext" or (format == "auto" and total_text.is_total_text(path for _, path in items)):
        return "totaltext", total_text.build_pages(items, where, findings)
    if format == "voc":
        raise UserError(f"{where}: asked to read as voc, but the label files are no XML")
    return build_pages(items, format, where, findings)


def read_folder(folder: Path, root: str | Path | None, format: str) -> Source:
    """A folder with image and label subfolders, or with gt_IMG.txt (or IMG.txt, IMG.csv) beside each image."""
    places = find_places(folder, root)
    if places is None:
        images = root if root is not None else subfolder(folder, IMAGE_FOLDERS) or folder
        labels = subfolder(folder, LABEL_FOLDERS) or folder
        raise UserError(f"{folder}: no pages: no image in {images} has a label file of its name in {labels}")
    findings = Findings()
    items = _pair(places, findings)
    format, pages = _pages(items, format, str(folder), findings)
    return Source(format, places.top, pages, findings)


# ---- lists of ids


def _places_of_list(path: Path, root: str | Path | None) -> Places | None:
    """The folders beside a list: img/ and box/ and the like, else those of the split that the list is called after."""
    folder = path.resolve().parent
    image_dir = Path(root).resolve() if root is not None else subfolder(folder, IMAGE_FOLDERS)
    label_dir = subfolder(folder, LABEL_FOLDERS)
    split = _split_of(path.stem)
    beside = None
    if image_dir is not None and label_dir is not None and image_dir.is_dir():
        beside = Places(image_dir, label_dir, folder if image_dir.is_relative_to(folder) else image_dir)
    if root is None and split and not (beside and names_in(beside.images, IMAGE_SUFFIXES)):
        return find_places(folder, None, split) or beside  # images/train, train_images
    return beside


class _Listed:
    """Images of a list's folder by name or stem."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._spelling = Spelling(places.images)
        self._stems: dict[str, list[str]] = {}
        for image in names_in(places.images, IMAGE_SUFFIXES):
            self._stems.setdefault(key(image).rpartition(".")[0], []).append(image)

    def find(self, name: str, where: str) -> str:
        """The image of an id, with or without suffix, or with the folders before it; a missing one keeps its name."""
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            whole = self._places.top / name  # images/train/a.jpg, as YOLO's lists have it
            if "/" in name and whole.parent == self._places.images:
                name = whole.name
            return self._spelling.find(name)
        same = self._stems.get(nfc(name), [])
        if len(same) > 1:
            raise UserError(f"{where}: {name}: {same[0]} and {same[1]} are of this id; name one with its suffix")
        return same[0] if same else f"{name}.jpg"


def read_list(path: Path, root: str | Path | None, format: str, lines: Iterable[str]) -> Source:
    """A list of ids: one id (or image file name) a line, lying next to the image and the label folder.

    Raises:
        UserError: no such folders, an id without a label file, an id twice.
    """
    places = _places_of_list(path, root)
    if places is None:
        raise UserError(f"{path}: an id list must lie next to an image folder (img/) and a label folder (box/)")
    listed, labels, prefix = _Listed(places), label_files(places.labels), places.prefix
    items: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        image = listed.find(safe_relative(line.strip(), where), where)
        name = prefix + image
        label = label_of(image.rpartition("/")[2], labels)
        if label is None:
            raise UserError(f"{where}: {line.strip()}: no label file in {places.labels}")
        if name in items:
            raise UserError(f"{where}: {line.strip()} is listed a second time; take one of the lines out")
        items[name] = os.path.join(places.labels, label)
    if not items:
        raise UserError(f"{path}: no pages")
    findings = Findings()
    format, pages = _pages(list(items.items()), format, str(path), findings)
    return Source(format, places.top, pages, findings)
