"""Symbolic links that lead out of a data set's folder: refused, so that data from elsewhere cannot name files of here.

A folder that the user names (--root too) may be a link itself, and so may the image folder beside a JSON or PaddleOCR
file: what counts is what lies below them. An img/ that is a link, beside the label folder of text lines, lies below the
source and is refused: name it with --root. Who keeps links to a store on purpose says so:
`pipelines.dataset build --follow-links`.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import UserError

ANNOTATION_SUFFIXES = (".txt", ".csv", ".json", ".gt", ".xml")


def _refuse(path: Path, root: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(root):
        raise UserError(
            f"{path}: a symbolic link that leads out of {root}, to {target}; copy the file, or allow such links with "
            "`python -m pipelines.dataset build --follow-links` and train on the index"
        )


def _refuse_links_in(folder: Path, root: Path) -> None:
    for link in [Path(entry.path) for entry in os.scandir(folder) if entry.is_symlink()]:
        if link.suffix.lower() in ANNOTATION_SUFFIXES:
            _refuse(link, root)


def refuse_label_links(source: Path, labels: Path | None = None) -> None:
    """Looks at the files that are read as annotations beside or below a source, before any is read.

    Args:
        labels: the folder of its label files, where it lies deeper, or beside the source.

    Raises:
        UserError: one is a link out of the source's folder (its content could end up in a message).
    """
    root = source.resolve()
    root = root if root.is_dir() else root.parent
    if not source.is_dir() and source.suffix.lower() in (".json", ".xml"):
        return  # such a file is read alone
    if labels is not None and labels.resolve().parent != root:
        _refuse_links_in(labels, labels.resolve())
    for folder in (root, *(entry for entry in root.iterdir() if entry.is_dir())):
        _refuse_links_in(folder, root)
        if folder.is_symlink() and any(p.suffix.lower() in ANNOTATION_SUFFIXES for p in folder.iterdir()):
            _refuse(folder, root)


def refuse_image_links(root: Path, names: Iterable[str]) -> None:
    """Looks at a source's images; one lstat a file, one realpath a folder.

    Args:
        root: of the images, resolved.
        names: image paths relative to it.

    Raises:
        UserError: an image, or a folder on the way to it, is a link out of the root.
    """
    seen: set[str] = set()
    for name in names:
        folder = name.rpartition("/")[0]
        if folder not in seen:
            seen.add(folder)
            _refuse(root / folder, root)
        if os.path.islink(f"{root}/{name}"):
            _refuse(root / name, root)
