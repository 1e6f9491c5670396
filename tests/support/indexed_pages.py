"""Pages of one colour with annotations, to be indexed."""

import json

from PIL import Image

SQUARE = [[10, 20], [110, 20], [110, 40], [10, 40]]


def picture(path, size=(200, 100), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", size, "white").save(path, exif=exif)


def data_set(folder, pages, texts=True):
    """Writes {name: [(points, text), ...]} in the contest's format, with white pictures."""
    images = {}
    for name, words in pages.items():
        picture(folder / "images" / name)
        made = {str(k): {"points": p} | ({"transcription": t} if texts else {}) for k, (p, t) in enumerate(words)}
        images[name] = {"words": made, "img_w": 200, "img_h": 100}
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    return path
