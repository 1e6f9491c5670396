"""Which sample goes where: a pure function of (seed, epoch, step, rank).

One global order per epoch, cut into global batches. Position (epoch, step) alone resumes a run, and a run on other
ranks sees the same samples in the same global batch as long as batch_size * world_size * accumulate is the same.
"""

import dataclasses

import numpy as np

from pipelines.augment import generator
from pipelines.errors import UserError

ORDER_STREAM = 0x6F72646572  # "order": keeps this stream apart from the samples' own
SUBSTITUTE_STREAM = 0x7377617073  # "swaps"
TRIES = 100  # with half of a data set's pages gone, one row in 10^30 finds no substitute


@dataclasses.dataclass(frozen=True)
class Share:
    """What one rank takes of every optimizer step: `accumulate` batches of `batch_size` samples.

    Ranks are numbered 0 to world_size - 1 over all machines.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step, over all ranks."""
        return self.batch_size * self.world_size * self.accumulate


def epoch_order(seed: int, epoch: int, lengths: list[int], weights: list[float] | None = None) -> np.ndarray:
    """(M,) int64 shuffled sample numbers of one epoch over concatenated data sets.

    Args:
        lengths: number of samples of each data set; sample numbers run through them in turn.
        weights: how often each data set's samples come in an epoch; [] or None = once each, UserError unless one >= 0
            for each. A whole number is that many passes, the fraction a random part of the data set, another one each
            epoch. M = sum of round(length * weight).
    """
    weights = _checked(weights, lengths)
    rng = generator(seed, epoch, stream=ORDER_STREAM)
    parts, start = [], 0
    for length, weight in zip(lengths, weights):
        passes, rest = divmod(round(length * weight), length) if length else (0, 0)
        parts += [np.arange(start, start + length)] * passes + [start + rng.permutation(length)[:rest]]
        start += length
    order = np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)
    return order[rng.permutation(len(order))]


def repeats(order: np.ndarray) -> np.ndarray:
    """(M,) int64: how often each entry's sample came earlier in the order; all 0 unless a weight is above 1."""
    by_sample = np.argsort(order, kind="stable")
    ordered = order[by_sample]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else np.zeros(0, np.int64)
    run = np.repeat(first, np.diff(np.r_[first, len(order)]))
    result = np.empty(len(order), np.int64)
    result[by_sample] = np.arange(len(order)) - run
    return result


def substitutes(seed: int, epoch: int, row: int, repeat: int, lengths: list[int]) -> np.ndarray:
    """(TRIES,) int64 rows of the same data set, the first good one of which takes the place of a row that is bad.

    A pure function of its arguments, so that it matters neither when, nor where, nor in which order bad rows are found.
    `row` came `repeat` times earlier in the epoch.
    """
    ends = np.cumsum(lengths)
    part = int(np.searchsorted(ends, row, side="right"))
    rng = generator(seed, epoch, row, repeat, SUBSTITUTE_STREAM)
    return rng.integers(ends[part] - lengths[part], ends[part], TRIES)


def num_samples(lengths: list[int], weights: list[float] | None = None) -> int:
    """Length M of `epoch_order` without making it."""
    return sum(round(length * weight) for length, weight in zip(lengths, _checked(weights, lengths)))


def _checked(weights: list[float] | None, lengths: list[int]) -> list[float]:
    """The weights, 1 for each data set when there are none."""
    weights = list(weights) if weights else [1.0] * len(lengths)
    if len(weights) != len(lengths) or min(weights, default=0) < 0:
        raise UserError(f"data.train_weights={weights}: give one number >= 0 for each of {len(lengths)} data sets")
    return weights


def rank_batch(order: np.ndarray, step: int, micro: int, share: Share) -> np.ndarray:
    """(batch_size,) int64 numbers out of the epoch's order: of forward pass `micro` (0..accumulate-1) of a step."""
    assert 0 <= share.rank < share.world_size and 0 <= micro < share.accumulate
    start = ((step * share.accumulate + micro) * share.world_size + share.rank) * share.batch_size
    assert start + share.batch_size <= len(order)
    return order[start : start + share.batch_size]
