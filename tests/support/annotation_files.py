"""Annotation files of every format, written and read."""

import json

from PIL import Image

from pipelines.annotations.read import read_source

QUAD = "10,20,110,20,110,40,10,40"


SQUARE = [[10, 20], [110, 20], [110, 40], [10, 40]]


def read(*args, **options):
    """(format, image root, pages) of a source."""
    made = read_source(*args, **options)
    return made.format, made.root, made.pages


def picture(path, size=(200, 100)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "white").save(path)


def put(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def put_json(path, data):
    return put(path, json.dumps(data))


def contest(words, name="a.jpg", **size):
    return {"images": {name: {"words": words, **size}}}


def sroie(tmp_path, lines, images="img", labels="box", suffix=".csv", encoding="utf-8"):
    picture(tmp_path / images / "000.jpg")
    put(tmp_path / labels / f"000{suffix}", "\n".join(lines), encoding)
    return tmp_path


def labelme(image, shapes):
    return {"imagePath": image, "imageWidth": 200, "imageHeight": 100, "shapes": shapes}
