"""What all readers of JSON share: each page listed once, and the folder of the images found."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.annotations.marks import settle
from pipelines.annotations.names import Spelling, is_clutter
from pipelines.annotations.packed import Shelf, pack
from pipelines.annotations.page import ROOT_ADVICE, ROOT_PROBES, Finding, Findings, Page, Source, find_root
from pipelines.errors import UserError

ANNOTATION_FOLDERS = ("annotations", "annotation", "jsons", "json", "labels", "label", "gt")
IMAGE_FOLDERS = ("images", "img", "imgs", "image")
FOLDERS_TRIED = 200


class Pages:
    """Pages in their order, each image once; their regions lie on `shelf`."""

    def __init__(self, path: Path, by: str) -> None:
        """`by` is what lists a page in this format: `image`, `line`."""
        self.pages: list[Page] = []
        self.shelf = Shelf()
        self._path, self._by = path, by
        self._listed: dict[str, Any] = {}

    def add(self, page: Page, key: Any) -> Page:
        """Appends a page.

        Raises:
            UserError: its image was listed before: whose labels are right, nobody knows.
        """
        if page.path in self._listed:
            twice = f"by {self._by} {self._listed[page.path]} and by {self._by} {key}"
            raise UserError(f"{self._path}: {page.path} is listed twice, {twice}; delete one, or join their regions")
        self._listed[page.path] = key
        # COCO's regions come later; all others are complete
        self.pages.append(pack(page, self.shelf) if page.polygons and isinstance(page.polygons, list) else page)
        return page


def _places(path: Path) -> list[Path]:
    """The folder of an annotation file, and the one above when it is one for annotations."""
    folder = path.resolve().parent
    return [folder, folder.parent] if folder.name.casefold() in ANNOTATION_FOLDERS else [folder]


def _near(path: Path, first: str) -> list[Path]:
    """Where images usually lie: images/, images/SPLIT, SPLIT/, the folder itself; one up for annotations/."""
    folder, found = path.resolve().parent, []
    for place in _places(path):
        found += [place / "images", place / "images" / path.stem, place / "img", place / path.stem, place]
        found += [place / name for name in IMAGE_FOLDERS[2:]]
        found += [inside for inside in _below(place) if _named_alike(inside.name, path.stem)]
    if first.partition("/")[0] == folder.name:  # PPOCRLabel writes FOLDER/name.jpg into FOLDER/Label.txt
        found.append(folder.parent)
    return found


def _below(place: Path) -> list[Path]:
    """Folders in a place and in its image folder."""
    found = []
    for folder in (place, *(place / name for name in IMAGE_FOLDERS)):
        if folder.is_dir():
            with os.scandir(folder) as entries:  # which knows folders from a million images without a look at each
                names = sorted(entry.name for entry in entries if entry.is_dir() and not is_clutter(entry.name))
            found += [folder / name for name in names[:FOLDERS_TRIED]]
    return found


def _named_alike(folder: str, stem: str) -> bool:
    """`train2017` and `instances_train2017`."""
    return min(len(folder), len(stem)) >= 3 and (
        folder.casefold() in stem.casefold() or stem.casefold() in folder.casefold()
    )


def locate(root: str | Path | None, path: Path, names: list[str]) -> Path:
    """The folder that images are relative to: the named one, else where they are found.

    Raises:
        UserError: none of some probed images lies in any likely folder, or all of them lie in several.
    """
    near = _near(path, names[0])
    if root is not None:
        return find_root(root, near, names, str(path))
    most, best = _found(path, near, names)
    if len(best) > 1 and not set(best) & set(near):
        raise UserError(f"{path}: its images lie in {best[0]} and in {best[1]}; {ROOT_ADVICE}")
    return find_root(None, near + best if most else near, names, str(path))


def _found(path: Path, near: list[Path], names: list[str]) -> tuple[int, list[Path]]:
    """Most of the probed names in any folder, and the folders that have so many; the likely ones first."""
    hits = {folder: _hits(folder, names) for folder in near}
    most = max(hits.values(), default=0)
    if most < min(len(names), ROOT_PROBES):
        for folder in (inside for place in _places(path) for inside in _below(place)):
            hits.setdefault(folder, _hits(folder, names))
    most = max(hits.values(), default=0)
    return most, [folder for folder, count in hits.items() if count == most and most]


def present(root: str | Path | None, path: Path, names: list[str]) -> int:
    """How many of some probed names are files, in the root or in the best of the likely folders."""
    if root is None:
        return _found(path, _near(path, names[0]), names)[0]
    return _hits(Path(root), names)


def _hits(folder: Path, names: list[str]) -> int:
    """How many of some probed names are files of a folder, however they are spelled."""
    spelling = Spelling(folder)
    probes = names[:: max(1, len(names) // ROOT_PROBES)][:ROOT_PROBES]
    return sum((folder / spelling.find(name)).is_file() for name in probes)


def finish(
    name: str, path: Path, root: str | Path | None, pages: list[Page], findings: Iterable[Finding], repeated: list[str]
) -> Source:
    """The source of a file's pages.

    Raises:
        UserError: no pages, or no images.
    """
    if not pages:
        raise UserError(f"{path}: no pages")
    settle(pages)
    found = Findings(Finding(str(path), "duplicate-key", key) for key in repeated)
    found += findings
    return Source(name, locate(root, path, [page.path for page in pages]), pages, found)
