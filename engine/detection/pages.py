"""Regions of pages, in order: the network, the postprocessing and a batch in between"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from engine.checkpoint import store
from engine.config import Config, changed
from engine.detection.maps import prob_batches
from engine.detection.postprocess import Detections, Pending, begin, finish
from engine.distributed import Ranks
from engine.model import DBNet, build_model
from engine.model.forward import check_kernels
from pipelines.batch import Batch
from pipelines.index.bare import BareIndex
from pipelines.index.build import ConcatIndex

NOTHING_FOUND = Detections([], np.zeros(0, np.float32))


def detect_pages(
    forward: Callable,
    pages: ConcatIndex | BareIndex,
    config: Config,
    ranks: Ranks,
    fate: str = "",
    bad: dict[int, str] | None = None,
) -> Iterator[tuple[int, Detections]]:
    """Yields (row, detections in source pixels) of this rank's pages, in order.

    A batch is read and yielded after the next one was handed to the network, so that on a GPU the host's part (reading
    quads, tracing polygons, whatever the caller does with a page) runs while the GPU works.

    Args:
        forward: model in evaluation mode on `ranks.device`.
        pages: annotated pages or bare images.
        config: eval, data and post settings.
        ranks: rank r takes rows r, r + world_size, ...
        fate: what becomes of a page that cannot be read, for a warning, given once for `pages`; "" = it is refused.
        bad: rows known to be bad and why. A row found now is in it when it is yielded, and was detected on as a black
            page.

    Raises:
        UserError: a page cannot be read and is refused.
    """
    waiting = None
    with contextlib.closing(prob_batches(forward, pages, config, ranks, fate, bad)) as batches:
        for batch, maps in batches:
            pending = begin(maps, config.post, config.trainer.kernels)
            if waiting is not None:
                yield from _finished(*waiting, pages, config)
            waiting = batch, pending
        if waiting is not None:
            yield from _finished(*waiting, pages, config)


def _finished(
    batch: Batch, pending: Pending, pages: ConcatIndex | BareIndex, config: Config
) -> Iterator[tuple[int, Detections]]:
    found = finish(pending, batch.matrix, pages.size_wh[batch.index], config.post)
    yield from zip(batch.index.tolist(), found, strict=True)


def load_detector(path: Path, config: Config, ranks: Ranks) -> DBNet:
    """The detector of a checkpoint in evaluation mode on the device; averaged weights if there are any and eval.ema."""
    check_kernels(config, ranks.device)
    # Weights come from the checkpoint, so the encoder must not ask for the hub or a file of its own.
    model = build_model(changed(config, {"models.encoder.weights": "", "models.encoder.freeze": "none"}))
    tensors = store.load_judged(path, config.eval.ema)
    if config.trainer.precision == "float64":
        model = model.double()
    store.load_model(model, tensors, path)
    return model.to(ranks.device).eval()
