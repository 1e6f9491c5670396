"""Loaders: `Batch`es for training, evaluation and prediction, out of the DALI graph."""

import dataclasses
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch
from nvidia.dali import backend

from pipelines import graph, quarantine, sampler
from pipelines.augment import AugmentConfig
from pipelines.batch import Batch, collate
from pipelines.errors import UserError
from pipelines.geometry import Labels
from pipelines.graph import DEFAULT, LoaderOptions
from pipelines.index.pages import Pages
from pipelines.quarantine import BadPages, Ledger
from pipelines.sampler import Share
from pipelines.source import EvalSource, TrainSource, raw_sizes

logger = logging.getLogger(__name__)

# The hardware decoder's memory is taken for a batch of pages of the hinted size: 16 pages of 16 Mpx are 0.8 GB. For a
# larger one it grows when that page comes.
HINT_MAX_PX = 16_000_000


class _Stream:
    """A running pipeline and the place in it. `wait_seconds` adds up the time spent waiting for batches.

    A DALI pipeline is of no use after an error. So when a file cannot be decoded, or not to the size of the index, its
    row is made known to the source and a new pipeline starts at the same batch: what comes out is what would have come
    had the row been known from the beginning.
    """

    def __init__(self, source: TrainSource | EvalSource, options: LoaderOptions, ledger: Ledger) -> None:
        self.source, self.options, self.ledger = source, options, ledger
        self.iteration = 0
        self._stale = False  # rows were passed over since the pipeline was built
        self._unexplained = -1  # batch number of a failure that no file explained
        self.wait_seconds = 0.0
        sizes = raw_sizes(source.maker.index)
        sizes = sizes[sizes[:, 0] > 0]  # bare images may not all have been looked at yet
        if options.device_id is not None:
            _preallocate(source, sizes, options.prefetch, options.device_id)
        self._largest_wh = largest_wh(sizes)
        self._start()

    def _start(self) -> None:
        """Builds the pipeline that begins at the present batch; 0.1 s, and 2 s more with workers."""
        self._pipeline, self._stale = None, False  # first of all the old one's workers and memory are freed
        source = self.source
        source.first = self.iteration
        self._pipeline = graph.define(
            source, source.maker.canvas_hw, source.augment, source.batch_size, self.options, self._largest_wh
        )
        self._pipeline.build()

    def __next__(self) -> Batch:
        """The next batch; raises UserError for more bad pages than the ledger allows."""
        start = time.perf_counter()
        if self._stale and self._pipeline is not None:
            self._start()
        outputs = self._run()
        while outputs is None:
            self._start()
            outputs = self._run()
        batch = self._batch(outputs)
        self.iteration += 1
        self.wait_seconds += time.perf_counter() - start
        return batch

    def close(self) -> None:
        """Frees the pipeline, its workers and its memory, for good; batches already handed out stay valid."""
        self._pipeline = None

    def _run(self) -> graph.Outputs | None:
        """One batch; None when it cannot be had or is wrong, and the files at fault are now known as bad."""
        assert self._pipeline is not None, "the loader is closed"
        # Bound to torch's stream: no host wait, and DALI reuses a buffer only after the work queued on that stream.
        device_id = self.options.device_id
        stream = None if device_id is None else torch.cuda.current_stream(device_id)
        try:
            outputs = graph.Outputs(*self._pipeline.run(stream))
        except RuntimeError as error:
            if not self._find_undecodable():
                self._excuse_once(error)
            return None
        rows = np.array(outputs.row.as_tensor())
        for row in self.source.passed_over(self.iteration, rows):
            self._add(row)
        return None if self._find_wrong_size(rows, np.array(outputs.shape.as_tensor())) else outputs

    def _excuse_once(self, error: RuntimeError) -> None:
        """A file may have been bad only when it was read: one more try of the batch, then `error` is raised."""
        if self._unexplained == self.iteration:
            raise error
        self._unexplained = self.iteration
        logger.warning(
            "rank %d: a batch failed, though its files can be decoded now: it is made again", self.ledger.rank
        )

    def _batch(self, outputs: graph.Outputs) -> Batch:
        # No copy: DALI's dynamic executor gives every iteration a buffer of its own, alive as long as the torch tensor.
        image = torch.from_dlpack(outputs.image.as_tensor()).permute(0, 3, 1, 2)
        labels = [
            Labels(*(np.array(part) for part in page))
            for page in zip(outputs.points, outputs.offsets, outputs.ignore, strict=True)
        ]
        return collate(image, labels, np.array(outputs.row.as_tensor()), np.array(outputs.matrix.as_tensor()))

    def _add(self, row: int, reason: str = "") -> None:
        if row not in self.ledger.bad.known:
            self.ledger.add(row, reason or quarantine.problem(self.source.maker.index, row))

    def _find_wrong_size(self, rows: np.ndarray, shapes: np.ndarray) -> bool:
        """Whether a decoded size is not the index's: image and polygons would not fit each other."""
        wrong = False
        for row, (height, width, _) in zip(rows.tolist(), shapes.tolist()):
            expected = self.source.size_of(row)
            if (width, height) != expected:
                wrong = True
                self.source.maker.bad.add(row)
                self._add(row, f"decoded as {width}x{height} px but indexed as {expected[0]}x{expected[1]}")
        return wrong

    def _find_undecodable(self) -> bool:
        """Whether there are files that cannot be decoded among the batches in flight."""
        pages = [
            page
            for iteration in range(self.iteration, self.iteration + self.options.prefetch + 1)
            for page in self.source.encoded(iteration)
        ]
        self._pipeline = None
        bad = quarantine.undecodable([page for page in pages if len(page[1])], None)
        if not bad and self.options.device_id is not None:
            bad = quarantine.undecodable([page for page in pages if len(page[1])], self.options.device_id)
        self.source.maker.bad |= set(bad)
        for row in bad:
            self._add(row, quarantine.UNDECODABLE)
        hopeless = [row for row, encoded in pages if not len(encoded)]
        if hopeless:
            raise UserError(
                f"{self.source.maker.index.path(hopeless[0])} cannot be read, nor can any of {sampler.TRIES} other "
                "pages of its data set: is the disk there?"
            )
        return bool(bad)


def largest_wh(sizes_wh: np.ndarray) -> tuple[int, int]:
    """Largest width and height of (N, 2) sizes, for buffers that hold every page; pages above HINT_MAX_PX are left out.

    (0, 0), no hint, when all are, or when the widest and the highest page together would make more than HINT_MAX_PX.
    """
    usual = sizes_wh[sizes_wh.astype(np.int64).prod(1) <= HINT_MAX_PX]
    width, height = (int(side) for side in usual.max(0)) if len(usual) else (0, 0)
    return (width, height) if width * height <= HINT_MAX_PX else (0, 0)


def _preallocate(source: TrainSource | EvalSource, sizes_wh: np.ndarray, prefetch: int, device_id: int) -> None:
    """Grows DALI's pools once instead of in the first epoch's steps, which would wait for it.

    Only where a quarter of the free memory is enough: the pools never shrink, and the network needs the rest.
    """
    canvas, augment, batch_size = source.maker.canvas_hw, source.augment, source.batch_size
    needed = graph.device_bytes(sizes_wh, canvas, augment, batch_size, prefetch)
    free, _total = torch.cuda.mem_get_info(device_id)
    if needed <= free // 4:
        backend.PreallocateDeviceMemory(needed, device_id)  # type: ignore[attr-defined]  # not in DALI's stub
    if augment.noises:  # by far the most that goes to the GPU: 3 bytes a pixel, on the pages that get noise
        pinned = 3 * canvas[0] * canvas[1] * math.ceil(batch_size * augment.noise_p)
        backend.PreallocatePinnedMemory(pinned)  # type: ignore[attr-defined]  # nor is this


class TrainLoader(_Stream):
    """Endless iterator of `Batch`, one per micro-step; made by `train_loader`.

    Attributes:
        steps_per_epoch: optimizer steps per epoch, the same on every rank.
        canvas_hw: canvas height and width, pixels.
        wait_seconds: total time the consumer waited in `next`, seconds.
    """

    source: TrainSource

    def __init__(self, source: TrainSource, options: LoaderOptions, ledger: Ledger) -> None:
        super().__init__(source, options, ledger)
        self.steps_per_epoch, self.canvas_hw = source.steps_per_epoch, source.maker.canvas_hw

    def __iter__(self) -> Iterator[Batch]:
        return self

    @property
    def position(self) -> tuple[int, int, int]:
        """(epoch, step, micro) of the next batch."""
        return self.source.position(self.iteration)

    def pass_over(self, rows: Iterable[int]) -> None:
        """From the next batch on these rows are not even read; if any is new, a new pipeline begins there."""
        new = set(rows) - self.source.maker.bad
        self._stale = self._stale or bool(new)
        self.source.maker.bad |= new


class EvalLoader:
    """Iterable of `Batch` over one rank's rows, any number of times with one pipeline; made by `eval_loader`.

    `len` is the number of batches. An iteration that was left early is finished off before the next one starts.
    """

    def __init__(self, stream: _Stream | None, num_batches: int, rows: np.ndarray) -> None:
        self._stream, self._num_batches = stream, num_batches
        self.rows = rows

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        stream = self._stream
        if stream is None:
            return
        while stream.iteration % self._num_batches:
            next(stream)
        for _ in range(self._num_batches):
            yield next(stream)

    @property
    def wait_seconds(self) -> float:
        """Total time spent waiting for batches, seconds."""
        return self._stream.wait_seconds if self._stream else 0.0

    def close(self) -> None:
        """Frees the pipeline; the loader cannot be used afterwards."""
        if self._stream is not None:
            self._stream.close()


def train_loader(
    index: Pages,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    augment: AugmentConfig,
    seed: int,
    weights: list[float] | None = None,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    start_epoch: int = 0,
    start_step: int = 0,
    options: LoaderOptions = DEFAULT,
    bad: dict[int, str] | None = None,
    unread: Collection[int] | None = None,
    max_bad_share: float = 0.05,
) -> TrainLoader:
    """Augmented batches without end, from (start_epoch, start_step) on.

    Args:
        index: the pages; a ConcatIndex's parts are data sets by themselves.
        image_size: canvas (H, W), pixels.
        batch_size: pages per rank and micro-step.
        seed: with the epoch it decides the order; with epoch and row, each page's augmentation.
        weights: how often each part of a ConcatIndex comes in an epoch; empty = once.
        accumulate: micro-steps per optimizer step.
        start_epoch, start_step: position of the first batch.
        bad: rows found to be bad and why; those found now are added to it, in place.
        unread: those of them that are not read again; None = all. A row found now is read again where it comes again,
            unless it is the decoder that refuses it, until `TrainLoader.pass_over`.
        max_bad_share: share of the pages, rounded up, that may be bad; pages of the same data set take their places.

    Raises:
        UserError: fewer samples than one global batch; from `next`, more than max_bad_share bad pages.
    """
    canvas, share = (int(image_size[0]), int(image_size[1])), Share(batch_size, rank, world_size, accumulate)
    source = TrainSource(index, canvas, augment, share, seed=seed, weights=weights)
    if source.steps_per_epoch == 0:
        raise UserError(
            f"{source.num_samples} training pages are fewer than one global batch of {share.global_batch} "
            "(data.batch_size x ranks x trainer.accumulate); lower data.batch_size or add pages"
        )
    bad = {} if bad is None else bad
    source.maker.bad = set(bad if unread is None else unread)
    source.start = (start_epoch * source.steps_per_epoch + start_step) * accumulate
    ledger = Ledger(index, BadPages("another page takes its place", bad), max_bad_share, rank)
    return TrainLoader(source, options, ledger)


def eval_loader(
    index: Pages,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    options: LoaderOptions = DEFAULT,
    bad: BadPages | None = None,
) -> EvalLoader:
    """Letterboxed pages of rows rank, rank + world_size, ...: each row on one rank, once; the last batch smaller.

    Arguments as of `train_loader`. A bad page comes as a black one and `bad` tells what becomes of it; None = the first
    is refused: iterating raises UserError.
    """
    rows = np.arange(rank, len(index), world_size, dtype=np.int64)
    if not len(rows):
        return EvalLoader(None, 0, rows)
    source = EvalSource(index, (int(image_size[0]), int(image_size[1])), rows, batch_size)
    bad = bad or BadPages()
    source.maker.bad = set(bad.known)
    ledger = Ledger(index, bad, 1.0 if bad.on_bad_page else 0.0, rank)
    # In this process: the loader reads what the source has found out about files (`SampleMaker.bad`, `BareIndex.look`).
    stream = _Stream(source, dataclasses.replace(options, workers=0), ledger)
    return EvalLoader(stream, source.num_batches, rows)
