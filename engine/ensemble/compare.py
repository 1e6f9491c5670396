"""Detectors judged on the same pages by the same protocol, and whether one is better than another beyond chance.

The standard error of a difference is the jackknife's over pages, in pairs: with D(i) the difference of the two H-means
without page i, and M the mean of all n of them,

    se = sqrt((n - 1) / n * sum (D(i) - M)^2)

Texts of one page are easy or hard together, and both detectors see the same pages: so pages are what is left out, and
what they have in common cancels. Source: Efron & Stein 1981, "The jackknife estimate of variance".
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from engine import distributed
from engine.cleval import CLEval, PageResult
from engine.config import Config
from engine.distributed import Ranks
from engine.ensemble.mean import Ensemble
from engine.evaluate import cleval_arguments, detect_pages
from engine.maps import prob_batches
from engine.scoring import score_in_order
from pipelines.errors import printable
from pipelines.index import ConcatIndex

WITHIN_NOISE = 2.0  # standard errors: a difference this small shows in one of 20 pairs that do not differ
Tell = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Judged:
    """One row of the table."""

    name: str
    kind: str  # member, ensemble or soup
    pages: list[PageResult]  # all of them, in order
    scores: dict[str, float]  # as `CLEval.compute`, and `score`: the H-mean that eval.select names
    seconds: float  # of the slowest rank

    @property
    def images_per_second(self) -> float:
        """Reading, network, regions and scoring, as engine.evaluate counts."""
        return len(self.pages) / self.seconds


def judge(
    name: str,
    kind: str,
    forward: Callable | Ensemble,
    pages: ConcatIndex,
    config: Config,
    ranks: Ranks,
    pool: ProcessPoolExecutor | None = None,
    tell: Tell = lambda pages: None,
) -> Judged:
    """Detects on all pages, shared over the ranks, and scores each. One batch is detected before the clock starts.

    Args:
        forward: a model in evaluation mode, or an ensemble.
        config: eval, data and post settings.
        pool: processes that score pages; None scores here.
        tell: called with the number of pages of this rank done since the last call.

    Raises:
        UserError: a page cannot be read.
    """
    protocol = config.eval.protocol
    with contextlib.closing(prob_batches(forward, pages, config, ranks)) as batches:
        next(batches, None)
    start = time.perf_counter()
    jobs = (
        (row, cleval_arguments(found.polygons, row, pages, protocol))
        for row, found in detect_pages(forward, pages, config, ranks)
    )
    mine = []
    for row, result in score_in_order(pool, jobs):
        mine.append((row, result))
        tell(1)
    seconds = time.perf_counter() - start
    gathered = distributed.gather_objects((seconds, mine))
    results = [result for _, result in sorted((pair for _, part in gathered for pair in part), key=lambda p: p[0])]
    metric = CLEval(protocol=protocol)
    for result in results:
        metric.add(result)
    scores = metric.compute()
    scores["score"] = scores["hmean" if config.eval.select == "micro" else "hmean_macro"]
    return Judged(name, kind, results, scores, max(part[0] for part in gathered))


def difference(ours: Sequence[PageResult], theirs: Sequence[PageResult], select: str) -> tuple[float, float | None]:
    """H-mean of one detector minus another's on the same pages, and the standard error of that.

    Args:
        ours, theirs: N pages each, in the same order.
        select: micro (of all texts) or macro (mean over pages), as eval.select.

    Returns:
        difference and standard error, None for a single page.
    """
    assert len(ours) == len(theirs)
    statistic = _micro if select == "micro" else _macro
    return float((statistic(ours) - statistic(theirs))[0]), _jackknife(statistic(ours, True) - statistic(theirs, True))


def standard_error(pages: Sequence[PageResult], select: str) -> float | None:
    """The jackknife's standard error of an H-mean over pages; None for a single page."""
    return _jackknife((_micro if select == "micro" else _macro)(pages, True))


def _jackknife(without: np.ndarray) -> float | None:
    """Standard error of a statistic from its values (n,) without each of n pages."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())) if n > 1 else None


def _micro(pages: Sequence[PageResult], leave_out: bool = False) -> np.ndarray:
    """(1,) H-mean of the summed counts, or (N,) without each page: `engine.cleval`'s formula for many sums at once."""
    names = ("chars_hit", "chars_gt", "chars_pred", "penalty_recall", "penalty_precision")
    counts = np.array([[page.counts[name] for name in names] for page in pages], np.float64)
    total = counts.sum(0, keepdims=True)
    hit, gt, pred, recall_penalty, precision_penalty = (total - counts if leave_out else total).T
    recall = np.maximum(0, hit - recall_penalty) / np.maximum(gt, 1)
    precision = np.maximum(0, hit - precision_penalty) / np.maximum(pred, 1)
    both = recall + precision
    return 2 * recall * precision / np.where(both > 0, both, 1)


def _macro(pages: Sequence[PageResult], leave_out: bool = False) -> np.ndarray:
    values = np.array([page.hmean for page in pages])
    return (values.sum() - values) / max(len(values) - 1, 1) if leave_out else values.mean(keepdims=True)


def verdict(gain: float, error: float | None) -> str:
    """gain, loss, or noise where the difference is within two standard errors of 0 (or there is no error to tell)."""
    if error is None or abs(gain) <= WITHIN_NOISE * error:
        return "noise"
    return "gain" if gain > 0 else "loss"


def rows(judged: Sequence[Judged], select: str) -> list[dict]:
    """The table as plain values: every row beside the best member.

    Returns:
        per row name, kind, hmean, precision, recall (by eval.select), images_per_second, difference to the best member,
        its standard_error and verdict (None for the best member itself).
    """
    ending = "" if select == "micro" else "_macro"
    best = best_member(judged)
    table = []
    for item in judged:
        own = {"name": item.name, "kind": item.kind}
        own |= {name: item.scores[name + ending] for name in ("hmean", "precision", "recall")}
        own |= {"images_per_second": item.images_per_second, "difference": None, "standard_error": None}
        own |= {"verdict": None}
        if item is not best:
            gain, error = difference(item.pages, best.pages, select)
            own |= {"difference": gain, "standard_error": error, "verdict": verdict(gain, error)}
        table.append(own)
    return table


def best_member(judged: Sequence[Judged]) -> Judged:
    """The member with the best score, the first of equals."""
    return max((item for item in judged if item.kind == "member"), key=lambda item: item.scores["score"])


def text_table(table: Sequence[dict]) -> str:
    """Aligned columns for a terminal."""
    names = [printable(row["name"]) for row in table]
    width = max(map(len, names))
    lines = [f"{'':<{width}}  H-mean  precision  recall  images/s  against the best member"]
    for name, row in zip(names, table, strict=True):
        against = "the best member"
        if row["difference"] is not None:
            error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.4f}"
            against = f"{row['difference']:+.4f}{error}  {row['verdict']}"
        lines.append(
            f"{name:<{width}}  {row['hmean']:.4f}  {row['precision']:9.4f}  {row['recall']:.4f}  "
            f"{row['images_per_second']:8.2f}  {against}"
        )
    return "\n".join(lines)
