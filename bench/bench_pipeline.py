"""Images per second of the loaders, alone: the ceiling they set for training and evaluation.

Pages are the receipts of DBNET_RECEIPTS (a folder that `pipelines.index` reads), else drawn ones of about 600x1200 px.
On a machine with a GPU the graph runs there too. `images_per_second` is in extra_info.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import loader
from pipelines.augment import AugmentConfig, draw
from pipelines.index import build, open_index
from pipelines.source import SampleMaker

THREADS = 2
BATCH = 4
BATCHES = 3  # per round
OFF = AugmentConfig(enabled=False)
GEOMETRY = AugmentConfig(brightness_p=0, hsv_p=0, sharpen_p=0, blur_p=0, noise_p=0, shadow_p=0, fog_p=0)
FULL = AugmentConfig()
DEVICES = [None, 0] if torch.cuda.is_available() else [None]


def draw_page(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, list[str]]:
    """A page of dark bars on grained paper, and the bars as label lines."""
    page = np.clip(rng.normal(225, 6, (height, width, 3)), 0, 255)
    rows = []
    for top in range(30, height - 30, 24):
        left, right = int(rng.integers(10, width // 3)), int(rng.integers(width // 2, width - 10))
        page[top : top + 12, left:right] = rng.integers(10, 90, (12, right - left, 1))
        rows.append(f"{left},{top},{right},{top},{right},{top + 12},{left},{top + 12},word")
    return page.astype(np.uint8), rows


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench_pages")
    if "DBNET_RECEIPTS" in os.environ:
        return open_index(Path(os.environ["DBNET_RECEIPTS"]), cache_dir=folder)
    rng = np.random.default_rng(0)
    (folder / "img").mkdir()
    (folder / "gt").mkdir()
    for i in range(24):
        rgb, rows = draw_page(rng, int(rng.integers(450, 700)), int(rng.integers(900, 1300)))
        Image.fromarray(rgb).save(folder / "img" / f"{i:02}.jpg", quality=90)
        (folder / "gt" / f"{i:02}.txt").write_text("\n".join(rows), encoding="utf-8")
    return build(folder, folder / "index")


def finish(batch, device):
    """Waits until the pixels are there."""
    if device is not None:
        torch.cuda.synchronize(device)
    return batch.image.shape


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: "cpu" if d is None else "gpu")
@pytest.mark.parametrize("size", [(640, 640), (1280, 640)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("augment", [OFF, GEOMETRY, FULL], ids=["off", "geometry", "full"])
def test_train_loader(benchmark, index, augment, size, device):
    made = loader.train_loader(
        index, image_size=size, batch_size=BATCH, augment=augment, seed=0, device_id=device, threads=THREADS
    )
    finish(next(made), device)
    benchmark.pedantic(lambda: [finish(next(made), device) for _ in range(BATCHES)], rounds=4, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = BATCH * BATCHES / benchmark.stats.stats.median
    made.close()


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: "cpu" if d is None else "gpu")
@pytest.mark.parametrize("size", [(640, 640), (1280, 640)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_eval_loader(benchmark, index, size, device):
    world_size = max(1, len(index) // 24)
    pages = loader.eval_loader(
        index, image_size=size, batch_size=BATCH, world_size=world_size, device_id=device, threads=THREADS
    )
    benchmark.pedantic(lambda: [finish(batch, device) for batch in pages], rounds=3, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = len(pages.rows) / benchmark.stats.stats.median
    pages.close()


def test_source(benchmark, index):
    """The host's part of a sample: file, draw, placement, polygons. In this process it is taken from the step."""
    maker = SampleMaker(index, (1280, 1280))
    maker(0, draw(AugmentConfig(noise_p=1.0), 0, 0, 0))  # makes the noise tile

    def one_pass():
        for row in range(min(24, len(index))):
            maker(row, draw(FULL, 0, 0, row))

    benchmark.pedantic(one_pass, rounds=5, warmup_rounds=1)
    benchmark.extra_info["samples_per_second"] = min(24, len(index)) / benchmark.stats.stats.median
