"""Text regions of a set of pages, in their order: loader, network and postprocessing in one pass.

    opened = open_detector("runs/mine", [])
    for row, found in detect_pages(opened.load(), pages, opened.config, opened.ranks):
        found.polygons, found.scores              # in source pixels, best first

The host reads a batch while the network has the next one, so a GPU does not wait for the postprocessing.
"""

import contextlib
from collections.abc import Iterator

import numpy as np

from engine.config import Config
from engine.detection.maps import Forward, prob_batches
from engine.detection.postprocess import Detections, Pending, begin, finish
from engine.distributed import Ranks
from pipelines.batch import Batch
from pipelines.index.pages import Pages
from pipelines.quarantine import BadPages

NOTHING_FOUND = Detections([], np.zeros(0, np.float32))


def detect_pages(
    forward: Forward, pages: Pages, config: Config, ranks: Ranks, bad: BadPages | None = None
) -> Iterator[tuple[int, Detections]]:
    """Yields (row, detections in source pixels) of this rank's pages, in order.

    A batch is read and yielded after the next one was handed to the network: whatever the caller does with a page
    runs while the GPU works.

    Args:
        forward: model in evaluation mode on `ranks.device`, or an `Ensemble` of `detection.ensemble`.
        ranks: rank r takes rows r, r + world_size, ...
        bad: what becomes of pages that cannot be read, and which are known: nothing is found on them. None = the first
            is refused.

    Raises:
        UserError: a page cannot be read and is refused.
    """
    bad = bad or BadPages()
    waiting = None
    with contextlib.closing(prob_batches(forward, pages, config, ranks, bad)) as batches:
        for batch, maps in batches:
            pending = begin(maps, config.post, config.trainer.kernels)
            if waiting is not None:
                yield from _finished(*waiting, pages, config, bad)
            waiting = batch, pending
        if waiting is not None:
            yield from _finished(*waiting, pages, config, bad)


def _finished(
    batch: Batch, pending: Pending, pages: Pages, config: Config, bad: BadPages
) -> Iterator[tuple[int, Detections]]:
    rows = batch.index.tolist()
    found = finish(pending, batch.matrix, pages.size_wh[batch.index], config.post)
    yield from ((row, NOTHING_FOUND if row in bad.known else page) for row, page in zip(rows, found, strict=True))
