"""Names of files: what file managers leave behind, and names that are spelled otherwise than an annotation writes them.

    files_in(folder, (".txt",))            # without ._a.txt, .DS_Store, Thumbs.db
    Spelling(root).find("img/Prüfung.JPG")   # the file's own name: other Unicode form, suffix in other letters

macOS writes accents as two characters (NFD) where others write one (NFC); cameras write .JPG, scripts .jpg.
"""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from pipelines.errors import UserError

_CLUTTER = frozenset((".ds_store", "thumbs.db", "desktop.ini", "__macosx"))


def is_clutter(name: str) -> bool:
    """Whether a file or folder is something that macOS or Windows left there: `._page.jpg` is no picture."""
    return name.startswith("._") or name.lower() in _CLUTTER


def names_in(folder: Path, suffixes: Iterable[str]) -> list[str]:
    """Names of a folder's files with one of the suffixes (in small letters), sorted."""
    wanted = tuple(suffixes)
    with os.scandir(folder) as entries:  # which knows files from folders without asking for each
        names = [e.name for e in entries if e.name.lower().endswith(wanted) and not is_clutter(e.name) and e.is_file()]
    return sorted(name for name in names if name.lower() not in wanted)  # `.txt` is a hidden file without a suffix


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """The same as paths. A path takes 20 us to make and 500 bytes: names do where many are only compared."""
    return [folder / name for name in names_in(folder, suffixes)]


def nfc(text: str) -> str:
    """A name with every accented letter as one character."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def key(name: str) -> str:
    """What two spellings of one file name have in common."""
    stem, dot, suffix = nfc(name).rpartition(".")
    return stem + dot + (suffix.lower() if dot else suffix)


class Spelling:
    """Finds files below a folder by names that may be spelled in another way; a folder is listed once, when needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> str:
        """The path of the file relative to the root; `name` itself where no file, or more than one, is meant."""
        if os.path.lexists(os.path.join(self._root, name)):  # as text: a path takes longer than the look
            return name
        found = ""
        for part in PurePosixPath(name).parts:
            here = f"{found}/{part}" if found else part
            if not os.path.lexists(self._root / here):
                same = self._names(found).get(key(part), [])
                if len(same) != 1:
                    return name
                here = f"{found}/{same[0]}" if found else same[0]
            found = here
        return found

    def settle(self, names: Sequence[str], where: str) -> list[str]:
        """All the names, as their files have them.

        Raises:
            UserError: two of them mean one file.
        """
        found = [self.find(name) for name in names]
        if found != list(names):
            first: dict[str, str] = {}
            for name, file in zip(names, found, strict=True):
                if first.setdefault(file, name) != name:
                    raise UserError(f"{where}: {name} and {first[file]} are two spellings of one image; take one out")
        return found

    def _names(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._listed:
            names: dict[str, list[str]] = {}
            try:
                entries = os.listdir(self._root / folder)
            except OSError:  # a file, or one that may not be read: nothing lies in it
                entries = []
            for entry in entries:
                names.setdefault(key(entry), []).append(entry)
            self._listed[folder] = names
        return self._listed[folder]
