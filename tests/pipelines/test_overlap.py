"""Pages of one set in another: by path, by bytes, by picture; different pages of one size are not."""

import json

import numpy as np
from PIL import Image

from pipelines.index.build import ConcatIndex, build
from pipelines.overlap import ALIKE_PAGES, overlap


def pages(folder, pictures) -> ConcatIndex:
    """An index of pictures: arrays, or files to copy."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        path = folder / f"{number}.png"
        if isinstance(picture, np.ndarray):
            Image.fromarray(picture).save(path)
        else:
            path.write_bytes(picture.read_bytes())
    return indexed(folder, [f"{number}.png" for number in range(len(pictures))])


def indexed(folder, names, root=None) -> ConcatIndex:
    images = [{"id": k, "file_name": name, "width": 64, "height": 64} for k, name in enumerate(names)]
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [5, 5, 20, 10], "segmentation": []}
        for k in range(len(names))
    ]
    file = folder / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "text"}]}))
    return ConcatIndex([build(file, folder / "index", root=root or folder)])


def noise(seed, number):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(number)]


def test_copies_of_files_and_of_pictures(tmp_path):
    train = pages(tmp_path / "train", noise(0, 4))
    brighter = np.asarray(Image.open(train.path(2))) // 2 + 60
    val = pages(tmp_path / "val", [*noise(1, 2), train.path(1), brighter.astype(np.uint8)])
    found = overlap(train, val)
    assert (found.same, found.alike) == ([2], [3])
    assert found.example == f"{val.path(2)} is {train.path(1)}"
    assert overlap(train, pages(tmp_path / "other", noise(2, 3))).example == ""


def test_the_same_file_named_by_both_is_not_even_read(tmp_path, monkeypatch):
    train = pages(tmp_path / "train", noise(0, 3))
    (tmp_path / "val").mkdir()
    val = indexed(tmp_path / "val", ["2.png", "0.png"], root=tmp_path / "train")
    monkeypatch.setattr("pipelines.overlap._middle", lambda path: 1 / 0 if "train/1" not in path else None)
    monkeypatch.setattr("pipelines.overlap.ALIKE_PAGES", 0)
    assert overlap(train, val).same == [0, 1]


def test_a_file_that_is_gone_is_like_no_other(tmp_path):
    train = pages(tmp_path / "train", noise(0, 3))
    val = pages(tmp_path / "val", [train.path(0), train.path(1)])
    val.path(1).unlink()
    assert overlap(train, val).same == [0]


def test_files_of_one_size_that_differ(tmp_path, monkeypatch):
    """Uncompressed pictures all have one size: their bytes decide."""
    monkeypatch.setattr("pipelines.overlap.ALIKE_PAGES", 0)
    folders = []
    for name, seed in (("train", 0), ("val", 1)):
        folder = tmp_path / name
        folder.mkdir()
        for number, picture in enumerate(noise(seed, 3)):
            Image.fromarray(picture).save(folder / f"{number}.bmp")
        folders.append(folder)
    (folders[1] / "2.bmp").write_bytes((folders[0] / "0.bmp").read_bytes())
    train, val = (indexed(folder, [f"{k}.bmp" for k in range(3)]) for folder in folders)
    assert len({train.num_bytes(k) for k in range(3)} | {val.num_bytes(k) for k in range(3)}) == 1
    assert overlap(train, val).same == [2] and overlap(train, val).unread == 0
    monkeypatch.setattr("pipelines.overlap.MOST_READ", 5)
    assert overlap(train, val).same == [] and overlap(train, val).unread == 6  # which open_data says
    assert 100 <= ALIKE_PAGES <= 1000
