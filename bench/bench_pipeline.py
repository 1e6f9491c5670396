"""The training and evaluation loaders on the CPU, beside OpenCV doing the same work.

Pages are the receipts of DBNET_RECEIPTS (a folder that `pipelines.index` reads), else drawn ones of 600x1200 px.
The peer of training is a torch DataLoader with OpenCV (`bench.peers.opencv_loader`), 2 worker processes where DALI has
2 threads: wall clock, so busy cores show. On a GPU, `bench.gpu` reports how long a step waits for data.
"""

if __name__ == "__main__":
    raise SystemExit("error: rows for pytest: run `pytest bench/bench_pipeline.py`")


import functools
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bench.gpu.pages import draw_pages
from bench.peers.opencv_loader import NORMALISED, opencv_loader
from pipelines import loader
from pipelines.augment import AugmentConfig, draw
from pipelines.graph import LoaderOptions
from pipelines.index.build import open_index
from pipelines.index.pages import Pages
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
PAGES = "receipts" if "DBNET_RECEIPTS" in os.environ else "drawn pages"


def open_pages(folder: Path) -> Pages:
    """The index of DBNET_RECEIPTS, else of 24 pages drawn in `folder`."""
    if "DBNET_RECEIPTS" in os.environ:
        return open_index(Path(os.environ["DBNET_RECEIPTS"]), cache_dir=folder)
    return draw_pages(folder, 24, height=1200, width=600)


def ours(index: Any, augment: AugmentConfig) -> None:
    """BATCHES batches of our loader, from opening to closing it.

    Both loaders work ahead, so a call on an open one would be given what was made between the calls and would disturb
    the next one. Opened and closed within the call, each makes these batches and the two in flight (DALI's prefetch of
    2, one a worker of the peer).
    """
    _take(
        loader.train_loader(
            index, image_size=CANVAS, batch_size=BATCH, augment=augment, seed=0, options=LoaderOptions(threads=THREADS)
        )
    )


def peer(index: Any, augment: AugmentConfig) -> None:
    """The same batches by the DataLoader with OpenCV, from starting to ending its workers."""
    _take(
        opencv_loader(index, image_size=CANVAS, batch_size=BATCH, augment=augment, seed=0, workers=THREADS, prefetch=1)
    )


def _take(made: Any) -> None:
    for _ in range(BATCHES):
        next(made)
    made.close()


def letterboxed(paths: list[Path]) -> list[np.ndarray]:
    """Pages on the canvas by OpenCV alone, one after another: (H, W, 3) float32, normalised."""
    height, width = CANVAS
    made = []
    for path in paths:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None, path
        scale = min(height / image.shape[0], width / image.shape[1])
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        made.append(cv2.LUT(canvas, NORMALISED))
    return made


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_pages(tmp_path_factory.mktemp("bench_pages"))


@pytest.mark.parametrize("name", AUGMENT)
def test_train_loader(measure, index, name):
    augment, case = AUGMENT[name], f"{PAGES} 1280x640, augmentation {name}"
    run = functools.partial(ours, index, augment), functools.partial(peer, index, augment)
    measure(
        "train_loader", case, *run, peer_name="DataLoader with OpenCV", impl="dali", images=BATCH * BATCHES, rounds=5,
        clock="wall",
    )  # fmt: skip


def test_eval_loader(measure, index):
    pages = loader.eval_loader(
        index, image_size=CANVAS, batch_size=BATCH, world_size=max(1, len(index) // 24),
        options=LoaderOptions(threads=THREADS),
    )  # fmt: skip
    paths = [index.path(int(row)) for row in pages.rows]
    measure(
        "eval_loader", f"{PAGES} 1280x640", lambda: list(pages), lambda: letterboxed(paths), peer_name="OpenCV",
        impl="dali", images=len(paths), rounds=5,
    )  # fmt: skip
    pages.close()


@pytest.mark.quick
def test_source(measure, index):
    """The host's part of training samples at 1280x1280, which with data.workers=0 is taken from the step."""
    maker, rows = SampleMaker(index, (1280, 1280)), range(min(24, len(index)))
    maker(0, draw(AugmentConfig(noise_p=1.0), 0, 0, 0))

    def source():
        for row in rows:
            maker(row, draw(AUGMENT["full"], 0, 0, row))

    def decoding():
        for row in rows:
            cv2.imdecode(np.fromfile(index.path(row), np.uint8), cv2.IMREAD_COLOR)

    measure(
        "source", f"{len(rows)} {PAGES}", source, decoding, peer_name="cv2.imdecode", impl="python", images=len(rows)
    )
