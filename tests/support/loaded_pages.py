"""Small pages on disk, loaders of them, and what batches hold."""

import numpy as np
from PIL import Image

from pipelines import loader
from pipelines.augment import AugmentConfig
from pipelines.graph import LoaderOptions
from pipelines.index.build import build

CANVAS = (96, 128)


PAGES = 14


def write_pages(folder, count, ignored_row=1):
    rng = np.random.default_rng(count)
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    for i in range(count):
        small = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((90 + i, 120 - i), Image.Resampling.BICUBIC).save(folder / "img" / f"{i:02}.png")
        # page 2 has no text at all, page 1 an ignored one
        boxes = [] if i == 2 else [(10 + 2 * k, 10 + 15 * k, 60 + i, 20 + 15 * k) for k in range(1 + i % 4)]
        text = "###" if i == ignored_row else "word"
        rows = [f"{l},{t},{r},{t},{r},{b},{l},{b},{text}" for l, t, r, b in boxes]
        (folder / "gt" / f"{i:02}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return build(folder, folder / "index")


def make(index, workers=0, **options):
    given = {"image_size": CANVAS, "batch_size": 2, "augment": AugmentConfig(), "seed": 11, **options}
    return loader.train_loader(index, **given, options=LoaderOptions(workers=workers))


def take(made, count):
    batches = [next(made) for _ in range(count)]
    made.close()
    return batches


def pages_of(batches):
    """Every page of some batches as comparable bytes, in order."""
    result = []
    for batch in batches:
        points, offsets = batch.points_xy.numpy(), batch.poly_offsets.numpy()
        for n in range(len(batch)):
            first, last = batch.page_offsets[n : n + 2].tolist()
            polygons = [points[offsets[p] : offsets[p + 1]].tobytes() for p in range(first, last)]
            image = batch.image[n].permute(1, 2, 0).contiguous().numpy().tobytes()
            flags = batch.ignore[first:last].numpy().tobytes()
            result.append((int(batch.index[n]), image, batch.matrix[n].tobytes(), flags, *polygons))
    return result


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "other size":
        Image.new("RGB", (50, 60)).save(path, compress_level=9)
        small = path.read_bytes()
        path.write_bytes(small + bytes(len(data) - len(small)))  # as many bytes as before
    else:
        half = len(data) // 2
        path.write_bytes({"empty": b"", "cut": data[:half], "garbage": data[:half] + bytes(len(data) - half)}[how])
