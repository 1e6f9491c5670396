"""H-means of sets of pages, and the standard error of an H-mean, or of the difference of two.

    counts = counts_of(results)                                          # one row of COUNTS a page
    error = standard_error(without_each(counts, "micro", groups_of(pages, config)))

The error is the jackknife's. With d_i the statistic without group i of pages, and m the mean of all n of them,

    se^2 = (n - 1) / n * sum_i (d_i - m)^2

The texts of one page are easy or hard together, so whole pages are left out, and all copies of a page at once. Two
detectors that saw the same pages are compared in pairs: d_i is their difference without group i, and what they have in
common cancels.

Sources: Efron and Stein 1981, The jackknife estimate of variance; Efron and Tibshirani 1993, An Introduction to the
Bootstrap, equation 11.5.
"""

from collections.abc import Sequence

import numpy as np

from engine.config import Config
from engine.evaluation.cleval import COUNTS, PageResult
from pipelines.bars import progress
from pipelines.index.build import ConcatIndex
from pipelines.split import find_copies

SURE = 2.0  # standard errors: chance alone reaches that 1 time in 44 upwards, and as often downwards
COLUMN = {name: i for i, name in enumerate(COUNTS)}


def groups_of(pages: ConcatIndex, config: Config) -> np.ndarray:
    """(N,) number of each page's group, in order of first appearance: copies together, as `pipelines.split` finds them.

    Raises:
        UserError: an image cannot be read.
    """
    paths = [pages.path(row) for row in range(len(pages))]
    with progress("looking for copies") as tell:
        first = find_copies(paths, workers=config.data.threads, limits=config.data.limits, progress=tell)
    return np.unique(first, return_inverse=True)[1]


def counts_of(pages: Sequence[PageResult]) -> np.ndarray:
    """(N, 10) int64 COUNTS of pages."""
    return np.array([list(page.counts.values()) for page in pages], np.int64).reshape(len(pages), len(COUNTS))


def hmeans(counts: np.ndarray, select: str) -> np.ndarray:
    """H-mean of sets of pages, as `engine.evaluation.cleval.CLEval.compute` has it.

    Args:
        counts: (..., P, 10) integers, COUNTS of P pages.
        select: micro (of the summed counts) or macro (mean over the pages).

    Returns:
        (...) float64, 0 of no pages.
    """
    if select == "micro":
        return _hmean(counts.sum(-2))
    return _hmean(counts).sum(-1) / max(counts.shape[-2], 1)


def without_each(counts: np.ndarray, select: str, groups: np.ndarray | None = None) -> np.ndarray:
    """(n,) H-means of all pages but those of one group.

    Args:
        counts: (N, 10) COUNTS. select: as for `hmeans`.
        groups: (N,) from 0 to n - 1, pages of one group together; None: each page alone.
    """
    groups = np.arange(len(counts)) if groups is None else groups
    number = int(groups.max(initial=-1)) + 1
    if select == "micro":
        sums = np.zeros((number, counts.shape[1]), np.int64)
        np.add.at(sums, groups, counts)
        return _hmean(counts.sum(0) - sums)
    each, pages = _hmean(counts), np.bincount(groups, minlength=number)
    return (each.sum() - np.bincount(groups, each, minlength=number)) / np.maximum(len(counts) - pages, 1)


def standard_error(without: np.ndarray) -> float | None:
    """The jackknife's, from the values (n,) of a statistic without each of n groups; None for fewer than two."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())) if n > 1 else None


def _hmean(counts: np.ndarray) -> np.ndarray:
    """(..., 10) -> (...): `engine.evaluation.cleval`'s formula; where a denominator is 0, so is the value."""
    hit, gt, pred = (counts[..., COLUMN[name]].astype(float) for name in ("chars_hit", "chars_gt", "chars_pred"))
    recall = np.maximum(hit - counts[..., COLUMN["penalty_recall"]], 0) / np.where(gt > 0, gt, np.inf)
    precision = np.maximum(hit - counts[..., COLUMN["penalty_precision"]], 0) / np.where(pred > 0, pred, np.inf)
    both = recall + precision
    return 2 * recall * precision / np.where(both > 0, both, 1.0)
