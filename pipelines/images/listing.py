"""Image files below folders that a user names, listed in a stable order and in little memory: what prediction reads.

Symbolic links: what the user names may be one. Below a folder, a link that stays in it is followed; one that leads out
of it is listed as a page that is left out (as `annotations.links` refuses it for training), unless links are followed.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipelines.annotations.names import is_clutter
from pipelines.annotations.page import IMAGE_SUFFIXES
from pipelines.errors import UserError
from pipelines.images import foreign

_LISTED = (*IMAGE_SUFFIXES, *foreign.SUFFIXES)  # what is not read is named, with its mend
LEADS_OUT = "a symbolic link that leads out of the folder; --follow-links takes it"


class Images(Sequence[Path]):
    """Files as a sequence of paths, 130 bytes an image: a path object takes 500.

    Attributes:
        refused: row -> why the file must not be read.
    """

    def __init__(self) -> None:
        self._roots: list[str] = []
        self._names: list[str] = []
        self._root_of = array("I")
        self.refused: dict[int, str] = {}

    def add(self, root: str, names: list[str]) -> None:
        """Appends files: a folder and paths relative to it."""
        self._root_of.extend([len(self._roots)] * len(names))
        self._roots.append(root)
        self._names += names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Path:  # type: ignore[override]  # no slices: see `since`
        """The file."""
        return Path(self._roots[self._root_of[row]], self._names[row])

    def name(self, row: int) -> str:
        """Path relative to the folder that was named; a file's own name where the file was named."""
        return self._names[row]

    def names(self) -> Iterator[str]:
        """All names, in order."""
        return iter(self._names)

    def since(self, row: int) -> "Images":
        """The images from a row on."""
        rest = Images()
        rest._roots, rest._names, rest._root_of = self._roots, self._names[row:], self._root_of[row:]
        rest.refused = {k - row: reason for k, reason in self.refused.items() if k >= row}
        return rest


class _Found(NamedTuple):
    name: str
    out: bool  # a link out of the folder


def find_images(paths: list[str], follow_links: bool = False) -> Images:
    """Images of the paths in their order, those of a folder sorted by the parts of their names.

    Args:
        paths: image files (whatever they are called) and folders, which are searched with all folders in them.
        follow_links: take files and folders by links out of the folder too, a folder once.

    Raises:
        UserError: a path does not exist, there is no image at all, or two images of one name.
    """
    images = Images()
    for given in paths:
        if os.path.isdir(given):
            found = sorted(_walk(given, follow_links), key=lambda file: file.name.split("/"))
            images.refused |= {len(images) + k: LEADS_OUT for k, file in enumerate(found) if file.out}
            images.add(given, [file.name for file in found])
        elif os.path.exists(given):
            folder, name = os.path.split(given)
            images.add(folder or ".", [name])
        else:
            raise UserError(f"{given}: no such file or folder")
    if not len(images):
        raise UserError(f"{', '.join(paths)}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
    _refuse_twice(images)
    return images


def _refuse_twice(images: Images) -> None:
    seen: set[str] = set()
    for name in images.names():
        if name in seen:
            raise UserError(f"{name}: two of the given paths hold an image of this name; predict them into two folders")
        seen.add(name)


def _walk(root: str, follow_links: bool) -> Iterator[_Found]:
    """Images below a folder in no order. Folders are gone through one at a time, so depth takes no stack.

    Folders by links come last, in the order of their names, and each folder once: what is found under which name does
    not hang on the order in which the file system lists it.
    """
    real = Path(root).resolve()
    waiting = [""]
    linked: list[str] = []
    seen: set[Path] = set()
    while waiting or linked:
        below = waiting.pop() if waiting else linked.pop(linked.index(min(linked)))
        folder = Path(root, below).resolve()
        if folder in seen:
            continue
        seen.add(folder)
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    continue
                name, link = f"{below}{entry.name}", entry.is_symlink()
                if os.path.isdir(entry.path) if link else entry.is_dir():  # entry's own raises for a link to itself
                    if not link:
                        waiting.append(f"{name}/")
                    elif follow_links:
                        linked.append(f"{name}/")
                elif name.lower().endswith(_LISTED) and (link or entry.is_file()):
                    out = link and not follow_links and not Path(os.path.realpath(entry.path)).is_relative_to(real)
                    yield _Found(name, out)
