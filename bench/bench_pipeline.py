"""Images per second of the training and evaluation loaders, and of the fixed peer that makes the same batches.

Pages are the receipts of DBNET_RECEIPTS (a folder that `pipelines.index` reads), else drawn ones of about 600x1200 px.
The peer is a torch DataLoader with OpenCV (bench/opencv_loader.py), 2 worker processes where DALI has 2 threads. On a
machine with a GPU our loader runs there too. `images_per_second` is in extra_info.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.opencv_loader import opencv_loader
from pipelines import loader
from pipelines.augment import AugmentConfig, draw
from pipelines.index import build, open_index
from pipelines.source import SampleMaker

THREADS = 2
BATCH = 4
BATCHES = 6  # per round
CANVAS = (1280, 640)
AUGMENT = {
    "off": AugmentConfig(enabled=False),
    "geometry": AugmentConfig(brightness_p=0, hsv_p=0, sharpen_p=0, blur_p=0, noise_p=0, shadow_p=0, fog_p=0),
    "full": AugmentConfig(),
}
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


def open_pages(folder: Path) -> Any:
    """The index of DBNET_RECEIPTS, else of 24 pages drawn in `folder`."""
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


def ours(index: Any, augment: AugmentConfig, device: int | None = None) -> None:
    """BATCHES batches of our loader, from opening to closing it, ready on its device.

    Both loaders work ahead, so a call on an open one would be given what was made between the calls and would disturb
    the next one. Opened and closed within the call, each makes these batches and the two in flight (DALI's prefetch of
    2, one a worker of the peer).
    """
    made = loader.train_loader(
        index,
        image_size=CANVAS,
        batch_size=BATCH,
        augment=augment,
        seed=0,
        device_id=device,
        threads=THREADS,
        prefetch=2,
    )
    _take(made, device)


def peer(index: Any, augment: AugmentConfig) -> None:
    """The same batches by the DataLoader with OpenCV, from starting to ending its workers."""
    _take(
        opencv_loader(index, image_size=CANVAS, batch_size=BATCH, augment=augment, seed=0, workers=THREADS, prefetch=1),
        None,
    )


def _take(made: Any, device: int | None) -> None:
    for _ in range(BATCHES):
        next(made)
    if device is not None:
        torch.cuda.synchronize(device)  # the pixels must be there when the clock stops
    made.close()


def evaluation(index: Any, device: int | None = None) -> tuple[loader.EvalLoader, Callable[[], None]]:
    """The evaluation loader of about 24 pages, and one pass over it."""
    world_size = max(1, len(index) // 24)
    pages = loader.eval_loader(
        index, image_size=CANVAS, batch_size=BATCH, world_size=world_size, device_id=device, threads=THREADS
    )

    def one_pass() -> None:
        for _ in pages:
            if device is not None:
                torch.cuda.synchronize(device)

    return pages, one_pass


def source_pass(index: Any) -> Callable[[], None]:
    """The host's part of 24 training samples at 1280x1280: files, draws, placement, polygons, noise."""
    maker = SampleMaker(index, (1280, 1280))
    maker(0, draw(AugmentConfig(noise_p=1.0), 0, 0, 0))

    def one_pass() -> None:
        for row in range(min(24, len(index))):
            maker(row, draw(AUGMENT["full"], 0, 0, row))

    return one_pass


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_pages(tmp_path_factory.mktemp("bench_pages"))


def rate(benchmark, call, images, rounds=3):
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = images / benchmark.stats.stats.median


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: "cpu" if d is None else "gpu")
@pytest.mark.parametrize("name", AUGMENT)
def test_train_loader(benchmark, index, name, device):
    rate(benchmark, lambda: ours(index, AUGMENT[name], device), BATCH * BATCHES)


@pytest.mark.parametrize("name", AUGMENT)
def test_opencv_loader(benchmark, index, name):
    rate(benchmark, lambda: peer(index, AUGMENT[name]), BATCH * BATCHES)


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: "cpu" if d is None else "gpu")
def test_eval_loader(benchmark, index, device):
    pages, one_pass = evaluation(index, device)
    rate(benchmark, one_pass, len(pages.rows), rounds=3)
    pages.close()


def test_source(benchmark, index):
    """In the training process (data.workers=0) this is taken from the step."""
    rate(benchmark, source_pass(index), min(24, len(index)), rounds=5)
