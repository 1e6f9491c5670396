"""Where text-line annotations lie: folders of images and of labels, and lists of ids beside them."""

from collections.abc import Iterable
from pathlib import Path

from pipelines.annotations.page import IMAGE_SUFFIXES, Finding, Source, safe_relative
from pipelines.annotations.text_formats import build_pages
from pipelines.errors import UserError

IMAGE_FOLDERS = ("img", "images", "imgs", "image")
LABEL_FOLDERS = ("box", "gt", "labels", "annotations", "label", "gts")
LABEL_SUFFIXES = (".txt", ".csv")


def subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of the named subfolders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder by suffix, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def label_of(image: str, labels: dict[str, Path]) -> Path | None:
    """The label file of an image file name: stem.txt, gt_stem.txt, stem.jpg.txt, and the same with .csv."""
    stem = Path(image).stem
    for name in (stem, f"gt_{stem}", image, f"gt_{image}"):
        for suffix in LABEL_SUFFIXES:
            if name + suffix in labels:
                return labels[name + suffix]
    return None


def label_files(folder: Path) -> dict[str, Path]:
    """Text-line files of a folder by name."""
    return {p.name: p for p in sorted(folder.iterdir()) if p.suffix.lower() in LABEL_SUFFIXES and p.is_file()}


def _pair(images: list[Path], labels: dict[str, Path], root: Path, findings: list[Finding]) -> list[tuple[str, Path]]:
    """Images with their label files; an image without one is left out (unlabelled is not the same as empty)."""
    items, used = [], set()
    for image in images:
        label = label_of(image.name, labels)
        name = image.relative_to(root).as_posix()
        if label is None:
            findings.append(Finding(name, "no-labels", "no label file for this image; left out"))
            continue
        used.add(label)
        items.append((name, label))
    for label in labels.values():
        if label not in used and items:
            findings.append(Finding(label.relative_to(root).as_posix(), "orphan", "label file without an image"))
    return items


def read_folder(folder: Path, root: str | Path | None, layout: str) -> Source:
    """A folder with image and label subfolders, or with gt_IMG.txt (or IMG.txt, IMG.csv) beside each image."""
    folder = folder.resolve()
    image_dir = Path(root).resolve() if root is not None else subfolder(folder, IMAGE_FOLDERS) or folder
    label_dir = subfolder(folder, LABEL_FOLDERS) or folder
    top = folder if image_dir.is_relative_to(folder) else image_dir
    findings: list[Finding] = []
    if not image_dir.is_dir():
        raise UserError(f"{image_dir}: no such folder (given as the image root)")
    if label_dir.is_relative_to(top):
        items = _pair(images_in(image_dir), label_files(label_dir), top, findings)
    else:
        labels = label_files(label_dir)
        found = ((image.name, label_of(image.name, labels)) for image in images_in(image_dir))
        items = [(name, label) for name, label in found if label is not None]
    if not items:
        raise UserError(f"{folder}: no pages: no image in {image_dir} has a label file in {label_dir}")
    layout, pages = build_pages(items, layout, str(folder), findings)
    return Source(layout, top, pages, findings)


def _listed_image(name: str, image_dir: Path, images: dict[str, Path]) -> Path:
    """The image of a listed id (with or without suffix); a missing one keeps the name that was looked for."""
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        return image_dir / name
    return images.get(name, image_dir / f"{name}.jpg")


def read_list(path: Path, root: str | Path | None, layout: str, lines: Iterable[str]) -> Source:
    """An id list: one id (or image file name) a line, lying next to the image and the label folder."""
    folder = path.resolve().parent
    image_dir = Path(root).resolve() if root is not None else subfolder(folder, IMAGE_FOLDERS)
    label_dir = subfolder(folder, LABEL_FOLDERS)
    if image_dir is None or label_dir is None or not image_dir.is_dir():
        raise UserError(f"{path}: an id list must lie next to an image folder (img/) and a label folder (box/)")
    images = {p.stem: p for p in images_in(image_dir)}
    labels = label_files(label_dir)
    top = folder if image_dir.is_relative_to(folder) else image_dir
    findings: list[Finding] = []
    items: dict[str, Path] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        image = _listed_image(safe_relative(line.strip(), where), image_dir, images)
        name = image.relative_to(top).as_posix()
        label = label_of(image.name, labels)
        if label is None:
            raise UserError(f"{where}: {line.strip()}: no label file in {label_dir}")
        if name in items:
            findings.append(Finding(name, "duplicate", f"listed again in {where}; left out"))
        items[name] = label
    if not items:
        raise UserError(f"{path}: no pages")
    layout, pages = build_pages(list(items.items()), layout, str(path), findings)
    return Source(layout, top, pages, findings)
