"""Small annotated data sets on disk."""

import io
import json

import numpy as np
from PIL import Image

SQUARE = [[10, 20], [110, 20], [110, 40], [10, 40]]


def noise_jpeg(seed=0, size=(200, 100), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def data_set(folder, pages, **size):
    """{name: (image bytes or None, [points, ...])} as a contest JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name, (data, polygons) in pages.items():
        if data is not None:
            (folder / name).write_bytes(data)
        words = {str(k): {"points": p, "transcription": "A"} for k, p in enumerate(polygons)}
        images[name] = {"words": words, "img_w": 200, "img_h": 100} | size
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    return path
