"""The batches of `pipelines.loader.train_loader` made by OpenCV in a torch DataLoader: the benches' fixed peer.

Same pages, same draws, same geometry and labels; only the pixels' arithmetic is another library's. Each worker makes
whole batches on one thread, the usual set-up. It needs numpy, torch and OpenCV only, so it also feeds a training step
where DALI is not installed.

Two differences to DALI's pixels are OpenCV's own: a shrink beyond 1.5 goes through INTER_AREA (a box where DALI has a
triangle), and warpAffine rounds its coordinates to 1/32 pixel.
"""

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from pipelines.augment import AugmentConfig, Draw
from pipelines.batch import Batch, collate
from pipelines.errors import UserError
from pipelines.geometry import Labels
from pipelines.index.pages import Pages
from pipelines.sampler import Share
from pipelines.source import Sample, TrainSource

# ImageNet statistics, grey levels of 255, RGB; written again here because pipelines.graph imports DALI
MEAN = np.array([0.485, 0.456, 0.406]) * 255
STD = np.array([0.229, 0.224, 0.225]) * 255
# (1, 256, 3) float32: normalising is one table look-up a byte, 6 times the speed of numpy's two passes over floats
NORMALISED = ((np.arange(256)[:, None] - MEAN) / STD).astype(np.float32)[None]


def decode(sample: Sample) -> np.ndarray | None:
    """(h, w, 3) uint8 BGR pixels as stored, or None when they cannot be decoded."""
    if not len(sample.encoded):
        return None
    return cv2.imdecode(sample.encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)


def warp(image: np.ndarray, sample: Sample, canvas_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 page on the canvas. The sample's matrix has pixel centres at i + 0.5, OpenCV's at i."""
    if sample.resize:
        height, width = (int(side) for side in sample.size_hw)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    matrix = sample.inverse.astype(np.float64)
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return cv2.warpAffine(image, matrix, canvas_hw[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def photometric(image: np.ndarray, sample: Sample, drawn: Draw) -> np.ndarray:
    """Colour, blur or sharpening, noise, shadow and fog of (H, W, 3) uint8 RGB, as `pipelines.graph` orders them."""
    if drawn.colour is not None:
        image = cv2.transform(image, drawn.colour)
    if drawn.blur_mix:
        window = 2 * math.ceil(3 * drawn.blur_sigma) + 1
        blurred = cv2.GaussianBlur(image, (window, window), drawn.blur_sigma)
        image = cv2.addWeighted(image, 1 - drawn.blur_mix, blurred, drawn.blur_mix, 0)
    if drawn.noise_sigma:
        image = cv2.addWeighted(image, 1, sample.noise, 1, 0, dtype=cv2.CV_8U)
    if drawn.light is not None:
        height, width, _ = image.shape
        gain, offset = (
            cv2.merge([cv2.resize(np.ascontiguousarray(grid), (width, height))] * 3)
            for grid in np.moveaxis(drawn.light, 2, 0)
        )
        image = cv2.add(cv2.multiply(image, gain, dtype=cv2.CV_32F), offset, dtype=cv2.CV_8U)
    return image


class Batches(Dataset):
    """Item i is the whole `Batch` number i of a source, made in the process that asks."""

    def __init__(self, source: TrainSource) -> None:
        self.source = source

    def __getitem__(self, iteration: int) -> Batch:
        """Batch number `iteration`; raises UserError that names a file which cannot be decoded."""
        maker, drawn = self.source.maker, self.source.draws(iteration)
        samples = [maker(row, numbers) for row, numbers in drawn]
        pages = []
        for sample, (row, numbers) in zip(samples, drawn):
            image = decode(sample)
            if image is None:
                raise UserError(f"cannot decode {maker.index.path(row)}: missing, empty or damaged")
            image = cv2.cvtColor(warp(image, sample, maker.canvas_hw), cv2.COLOR_BGR2RGB)
            pages.append(torch.from_numpy(cv2.LUT(photometric(image, sample, numbers), NORMALISED)))
        # In a worker it stacks the pages in shared memory, which spares the copy that sending a tensor makes.
        pixels = default_collate(pages)
        return collate(
            pixels.permute(0, 3, 1, 2),
            [Labels(sample.points, sample.offsets, sample.ignore) for sample in samples],
            np.array([row for row, _ in drawn], np.int64),
            np.stack([sample.matrix for sample in samples]),
        )


def one_thread(_worker: int) -> None:
    """Workers are the parallelism: OpenCV's own threads would fight over the same cores."""
    cv2.setNumThreads(0)


class OpenCVLoader:
    """Endless iterator of `Batch`, with what `pipelines.loader.TrainLoader` offers a training loop."""

    def __init__(self, source: TrainSource, workers: int, prefetch: int) -> None:
        self.steps_per_epoch = source.steps_per_epoch
        self.wait_seconds = 0.0
        # batch_size=None: an item is a batch already. The numbers never end; the order is kept.
        options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": one_thread}
        options |= {"pin_memory": torch.cuda.is_available(), "prefetch_factor": prefetch if workers else None}
        loader: DataLoader = DataLoader(Batches(source), batch_size=None, sampler=itertools.count(), **options)
        self._batches: Iterator[Batch] | None = iter(loader)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        assert self._batches is not None, "the loader is closed"
        start = time.perf_counter()
        batch = next(self._batches)
        self.wait_seconds += time.perf_counter() - start
        return batch

    def close(self) -> None:
        """Ends the workers; the loader cannot be used afterwards."""
        self._batches = None


def opencv_loader(
    index: Pages,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    augment: AugmentConfig,
    seed: int,
    workers: int = 2,
    prefetch: int = 2,
) -> OpenCVLoader:
    """The batches of `pipelines.loader.train_loader` of one rank, from the first on; float32 in host memory.

    workers: processes, 0 = in this one, each of which prepares `prefetch` batches ahead.
    """
    source = TrainSource(index, image_size, augment, Share(batch_size), seed=seed)
    assert source.steps_per_epoch, "fewer pages than a batch"
    return OpenCVLoader(source, workers, prefetch)
