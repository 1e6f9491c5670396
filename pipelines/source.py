"""What is fed into the DALI graph: a pure function of the batch number, picklable, without torch (it runs in workers).

Each call reads the encoded files of one batch and computes, on the host, everything random about it: the matrix, the
colours, and the polygons on the canvas. The stream never ends and has no state, hence no pipeline restart between
epochs, exact resume from any position, and the same batches from any number of workers.

A page whose file is gone, or is not the one that was indexed, never reaches the decoder, which would fail for the whole
batch: training takes another page of the same data set, chosen by (seed, epoch, row) alone (`sampler.substitutes`),
evaluation a black one. Decoders fail on the rest; the loader finds those and adds them to `SampleMaker.bad`.
"""

import errno
import math
import multiprocessing
import os
import stat
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np

from pipelines import geometry, sampler
from pipelines.augment import NOISE_MARGIN, AugmentConfig, Draw, draw
from pipelines.index.bare import BareIndex
from pipelines.index.pages import Pages
from pipelines.sampler import Share
from pipelines.worker_signals import leave_to_parent

NOISE_UNIT = 32.0  # standard deviation of the int8 noise tile: 127 is then 4 sigma
NOT_AUGMENTED = AugmentConfig(enabled=False)
NOTHING = np.zeros(0, np.uint8)
JPEG_START = b"\xff\xd8"
BLANK = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1]  # outside a page the canvas is black anyway


class Sample(NamedTuple):
    """One sample as it enters the graph."""

    encoded: np.ndarray  # (bytes,) uint8; empty, which fails the decoder, when no substitute was found either
    resize: np.ndarray  # () bool
    size_hw: np.ndarray  # (2,) float32
    inverse: np.ndarray  # (2, 3) float32 canvas -> decoded and resized image
    points: np.ndarray  # (V, 2) float32 canvas pixels
    offsets: np.ndarray  # (P + 1,) int64
    ignore: np.ndarray  # (P,) bool
    row: np.ndarray  # () int64, in the index
    matrix: np.ndarray  # (2, 3) float64 upright page -> canvas
    colour_on: np.ndarray  # () bool
    colour: np.ndarray  # (3, 4) float32
    tone_on: np.ndarray  # () bool; instead of colour, where all channels get the same gain and shift
    tone_gain: np.ndarray  # () float32
    tone_shift: np.ndarray  # () float32, share of 255
    blur_on: np.ndarray  # () bool
    blur_kernel: np.ndarray  # (k, k) float32, k odd; (1, 1) when off
    noise_on: np.ndarray  # () bool
    noise: np.ndarray  # (H, W, 3) int8 grey levels, (1, 1, 1) when off
    light_on: np.ndarray  # () bool
    light_gain: np.ndarray  # (16, 16, 1) float32
    light_offset: np.ndarray  # (16, 16, 1) float32


def raw_size(index: Pages, row: int) -> tuple[int, int]:
    """Width and height as stored in the file; EXIF orientations 5 to 8 swap the upright ones."""
    w, h = (int(side) for side in index.size_wh[row])
    return (h, w) if int(index.orientation[row]) >= 5 else (w, h)


def raw_sizes(index: Pages) -> np.ndarray:
    """(N, 2) int32 `raw_size` of every row."""
    swapped = np.asarray(index.orientation) >= 5
    return np.where(swapped[:, None], index.size_wh[:, ::-1], index.size_wh)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A plain file opened for reading; OSError for what is none: a device or a pipe could block for ever."""
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file")
    return file


def read_page(index: Pages, row: int) -> np.ndarray:
    """(bytes,) uint8 of a page's file as DALI decodes it; empty when it cannot be read or has not as many bytes as were
    indexed.

    One byte more is asked for than there should be: a file that was replaced by a huge one takes no memory.
    """
    expected = index.num_bytes(row)
    try:
        with open_file(index.path(row)) as file:
            encoded = np.fromfile(file, np.uint8, expected + 1)
    except OSError:
        return NOTHING
    if len(encoded) != expected or encoded[:2].tobytes() == JPEG_START:
        return encoded if len(encoded) == expected else NOTHING
    try:
        from pipelines.images.plain import readable  # here: loaders of JPEGs do without Pillow
    except ModuleNotFoundError:  # a bare machine, which times pages of its own drawing: none is transparent
        return encoded

    width, height = (int(side) for side in index.size_wh[row])
    return readable(encoded, int(index.orientation[row]), width * height)


class SampleMaker:
    """Makes a `Sample` of an index row and a draw; rows in `bad` are not read."""

    def __init__(self, index: Pages, canvas_hw: tuple[int, int]) -> None:
        self.index = index
        self.canvas_hw = canvas_hw
        self.bad: set[int] = set()
        self._tile: np.ndarray | None = None  # made on first use, in the process that uses it

    def read(self, row: int) -> np.ndarray:
        """`read_page`, without looking at a row that is known to be bad.

        What cannot be read does not join them here: a training's rows do so at the end of an epoch, for all ranks and
        workers, so that what a batch holds does not depend on which process has read what before.
        """
        return NOTHING if row in self.bad else read_page(self.index, row)

    def __call__(self, row: int, drawn: Draw, encoded: np.ndarray | None = None) -> Sample:
        """The sample; `encoded` is the row's `read`, where the caller has it."""
        index, canvas = self.index, self.canvas_hw
        size_wh = (int(index.size_wh[row, 0]), int(index.size_wh[row, 1]))
        labels = index.labels(row)
        matrix = geometry.place(drawn, size_wh, canvas, labels)
        labels = geometry.transform(labels, matrix, canvas)
        raw = raw_size(index, row)
        warp = geometry.plan_warp(geometry.compose(matrix, geometry.orient(index.orientation[row], raw)), raw)
        colour = np.eye(3, 4, dtype=np.float32) if drawn.colour is None else drawn.colour
        tone = drawn.colour is not None and is_tone(colour)
        light = np.zeros((1, 1, 2), np.float32) if drawn.light is None else drawn.light
        return Sample(
            encoded=self.read(row) if encoded is None else encoded,
            resize=np.array(warp.resize),
            size_hw=warp.size_hw,
            inverse=warp.inverse,
            points=labels.points,
            offsets=labels.offsets,
            ignore=labels.ignore,
            row=np.array(row, np.int64),
            matrix=matrix,
            colour_on=np.array(drawn.colour is not None and not tone),
            colour=colour,
            tone_on=np.array(tone),
            tone_gain=np.array(colour[0, 0]),
            tone_shift=np.array(colour[0, 3] / 255),
            blur_on=np.array(drawn.blur_mix != 0),
            blur_kernel=blur_kernel(drawn.blur_mix, drawn.blur_sigma),
            noise_on=np.array(drawn.noise_sigma > 0),
            noise=self._noise(drawn),
            light_on=np.array(drawn.light is not None),
            light_gain=np.ascontiguousarray(light[:, :, :1]),
            light_offset=np.ascontiguousarray(light[:, :, 1:]),
        )

    def _noise(self, drawn: Draw) -> np.ndarray:
        """(H, W, 3) int8 window of the noise tile in grey levels; a token when there is no noise.

        Rounded here: a page of whole levels plus noise, rounded, is the page plus the rounded noise. The tile ends at 4
        sigma, so a level is beyond int8, and cut to 127, only for a sigma above 32.
        """
        if drawn.noise_sigma <= 0:
            return np.zeros((1, 1, 1), np.int8)
        height, width = self.canvas_hw
        if self._tile is None:
            rng = np.random.Generator(np.random.Philox(key=0))
            values = rng.standard_normal((height + NOISE_MARGIN, width + NOISE_MARGIN, 3), np.float32) * NOISE_UNIT
            self._tile = np.clip(np.rint(values), -127, 127).astype(np.int8)
        y, x = drawn.noise_offset
        window = self._tile[y : y + height, x : x + width]
        # 1 ms for 1280 x 1280, where the same in numpy's floats takes 4.5 ms and the bare copy 0.4 ms
        return cv2.addWeighted(window, drawn.noise_sigma / NOISE_UNIT, window, 0, 0, dtype=cv2.CV_8S)


def is_tone(colour: np.ndarray) -> bool:
    """Whether a (3, 4) colour matrix gives every channel the same gain and shift: brightness and contrast alone.

    A quarter of the pages by the defaults; on a CPU that costs 2.4 ms for 1280x640 where a full matrix takes 15.
    """
    gain, shift = colour[0, 0], colour[0, 3]
    return bool((colour == np.eye(3, 4) * gain + np.array([0, 0, 0, shift])).all())


def blur_kernel(mix: float, sigma: float) -> np.ndarray:
    """(k, k) float32 kernel of image + mix * (blurred - image), Gaussian of radius ceil(3 sigma).

    One convolution for the blur and for the unsharp mask, instead of a blur and a mix of two images.
    """
    if not mix:
        return np.ones((1, 1), np.float32)
    radius = math.ceil(3 * sigma)
    row = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = mix * np.outer(row, row) / row.sum() ** 2
    kernel[radius, radius] += 1 - mix
    return kernel.astype(np.float32)


def fields_of(augment: AugmentConfig) -> tuple[str, ...]:
    """The fields of `Sample` that a graph of this configuration takes, in order."""
    groups = {
        "colour": augment.colours,
        "tone": augment.colours,
        "blur": augment.blurs,
        "noise": augment.noises,
        "light": augment.lights,
    }
    return tuple(name for name in Sample._fields if groups.get(name.partition("_")[0], True))


def columns(samples: list[Sample], fields: tuple[str, ...]) -> tuple[list[np.ndarray], ...]:
    """One list per field, as DALI's batch-wise external source wants them."""
    return tuple([getattr(sample, name) for sample in samples] for name in fields)


class TrainSource:
    """Training batches without end: batch i is micro-step `start` + i of this rank, counted from epoch 0.

    Arguments as of `loader.train_loader`; `share` tells which samples of each step are this rank's.
    """

    def __init__(
        self,
        index: Pages,
        canvas_hw: tuple[int, int],
        augment: AugmentConfig,
        share: Share,
        *,
        seed: int,
        weights: list[float] | None = None,
    ) -> None:
        self.maker = SampleMaker(index, canvas_hw)
        self.fields = fields_of(augment)
        self.augment, self.share, self.seed, self.start = augment, share, seed, 0
        self.batch_size = share.batch_size
        self.lengths = list(getattr(index, "lengths", [len(index)]))
        self.weights = weights
        self.num_samples = sampler.num_samples(self.lengths, weights)
        self.steps_per_epoch = self.num_samples // share.global_batch  # an incomplete one is dropped, on every rank
        self.first = 0  # batch number of the running pipeline's first batch
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickled in a worker of DALI's."""
        self.__dict__.update(state)
        if multiprocessing.parent_process() is not None:
            leave_to_parent()

    def position(self, iteration: int) -> tuple[int, int, int]:
        """(epoch, step, micro) of a batch number."""
        accumulate = self.share.accumulate
        epoch, rest = divmod(self.start + iteration, self.steps_per_epoch * accumulate)
        return (epoch, *divmod(rest, accumulate))

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order and repeats. Two epochs are kept: the pipeline is ahead of the loader, which asks too."""
        if epoch not in self._orders:
            order = sampler.epoch_order(self.seed, epoch, self.lengths, self.weights)
            self._orders = {k: v for k, v in self._orders.items() if k == epoch - 1}
            self._orders[epoch] = order, sampler.repeats(order)
        return self._orders[epoch]

    def wanted(self, iteration: int) -> list[tuple[int, int]]:
        """Index row of every page of a batch number, and how often it came earlier in the epoch."""
        epoch, step, micro = self.position(iteration)
        rows, again = (sampler.rank_batch(every, step, micro, self.share) for every in self._order(epoch))
        return list(zip(rows.tolist(), again.tolist()))

    def draws(self, iteration: int) -> list[tuple[int, Draw]]:
        """Index row and random numbers of every page of a batch number, were every page good."""
        epoch = self.position(iteration)[0]
        return [(row, draw(self.augment, self.seed, epoch, row, again)) for row, again in self.wanted(iteration)]

    def pick(self, epoch: int, row: int, again: int) -> tuple[int, int, np.ndarray]:
        """The page itself or, if it is bad, its first good substitute: row, repeat (for the draw) and encoded bytes.

        The bytes are empty when none of the substitutes is good either.
        """
        encoded = self.maker.read(row)
        if len(encoded):
            return row, again, encoded
        for other in sampler.substitutes(self.seed, epoch, row, again, self.lengths).tolist():
            encoded = self.maker.read(other)
            if len(encoded):  # augmented in its own way: the page may come by itself in the same epoch
                return other, (row + 1) << 20 | again, encoded
        return row, again, encoded

    def passed_over(self, iteration: int, rows: np.ndarray) -> list[int]:
        """Rows that were bad when a batch was made, given the (batch_size,) rows that are in it (made in a worker)."""
        epoch, found = self.position(iteration)[0], []
        for (row, again), got in zip(self.wanted(iteration), rows.tolist()):
            if row != got:
                others = sampler.substitutes(self.seed, epoch, row, again, self.lengths).tolist()
                found += [row, *others[: others.index(got)]]
        return list(dict.fromkeys(found))

    def encoded(self, iteration: int) -> list[tuple[int, np.ndarray]]:
        """Row and encoded bytes of every page of a batch number; empty bytes when there is no good substitute."""
        epoch = self.position(iteration)[0]
        return [(row, data) for row, _, data in (self.pick(epoch, *page) for page in self.wanted(iteration))]

    def size_of(self, row: int) -> tuple[int, int]:
        """Width and height that the page's image must have."""
        return raw_size(self.maker.index, row)

    def __call__(self, info: Any) -> tuple[list[np.ndarray], ...]:
        """Batch number `first + info.iteration` (nvidia.dali.types.BatchInfo)."""
        iteration = self.first + info.iteration
        epoch = self.position(iteration)[0]
        samples = []
        for page in self.wanted(iteration):
            row, again, encoded = self.pick(epoch, *page)
            samples.append(self.maker(row, draw(self.augment, self.seed, epoch, row, again), encoded))
        return columns(samples, self.fields)


class EvalSource:
    """Evaluation batches: (n >= 1,) index rows in order, the last batch smaller, then all of them again, for ever."""

    def __init__(self, index: Pages, canvas_hw: tuple[int, int], rows: np.ndarray, batch_size: int) -> None:
        self.maker = SampleMaker(index, canvas_hw)
        self.augment, self.fields = NOT_AUGMENTED, fields_of(NOT_AUGMENTED)
        self._rows, self.batch_size = rows, batch_size
        self.num_batches = math.ceil(len(rows) / batch_size)
        self.first = 0  # batch number of the running pipeline's first batch

    def passed_over(self, iteration: int, rows: np.ndarray) -> list[int]:
        """Rows of a batch that are bad."""
        return [row for row in rows.tolist() if row in self.maker.bad]

    def encoded(self, iteration: int) -> list[tuple[int, np.ndarray]]:
        """Row and encoded bytes of every page of a batch number."""
        first = iteration % self.num_batches * self.batch_size
        rows = self._rows[first : first + self.batch_size].tolist()
        if isinstance(self.maker.index, BareIndex):
            self.maker.index.look(rows)
            self.maker.bad |= {row for row in rows if row in self.maker.index.bad}
        pages = [(row, self.maker.read(row)) for row in rows]
        self.maker.bad |= {row for row, data in pages if not len(data)}
        return [(row, data if len(data) else BLANK) for row, data in pages]

    def size_of(self, row: int) -> tuple[int, int]:
        """Width and height that the page's image must have."""
        return (1, 1) if row in self.maker.bad else raw_size(self.maker.index, row)

    def __call__(self, info: Any) -> tuple[list[np.ndarray], ...]:
        """Batch number `first + info.iteration` (nvidia.dali.types.BatchInfo)."""
        plain = draw(NOT_AUGMENTED, 0, 0, 0)
        pages = self.encoded(self.first + info.iteration)
        return columns([self.maker(row, plain, encoded) for row, encoded in pages], self.fields)
