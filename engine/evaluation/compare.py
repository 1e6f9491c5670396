"""Detectors on the same pages: the score of each, and whether one is better than another by more than chance.

    every = [judge("a", "member", model_a, pages, config, ranks), judge("b", "member", model_b, pages, config, ranks)]
    print(as_text(rows(every, config.eval.select)))

The standard error of a difference is the jackknife's over pages, in pairs: see `engine.evaluation.significance`.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from engine.config import Config
from engine.console import text_table
from engine.detection.maps import Forward, prob_batches
from engine.detection.pages import detect_pages
from engine.distributed import Ranks
from engine.evaluation.cleval import PageResult, scores_of, selected
from engine.evaluation.judge import judged
from engine.evaluation.significance import SURE, counts_of, hmeans, standard_error, without_each
from pipelines.errors import printable
from pipelines.index.build import ConcatIndex


@dataclasses.dataclass(frozen=True)
class Judged:
    """One row of the table."""

    name: str
    kind: str  # member, ensemble or soup
    pages: list[PageResult]  # all of them, in order
    scores: dict[str, float]  # as `CLEval.compute`
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Reading, network, regions and scoring, as engine.evaluate counts."""
        return len(self.pages) / self.seconds


def judge(
    name: str,
    kind: str,
    forward: Forward,
    pages: ConcatIndex,
    config: Config,
    ranks: Ranks,
    pool: ProcessPoolExecutor | None = None,
    on_page: Callable[[], object] = lambda: None,
) -> Judged:
    """Detects on all pages, in one process, and scores each. One batch is detected before the clock starts.

    Args:
        forward: a model in evaluation mode, or an ensemble.
        pool: processes that score pages; None scores here.
        on_page: called after every page.

    Raises:
        UserError: a page cannot be read.
    """
    with contextlib.closing(prob_batches(forward, pages, config, ranks)) as batches:
        next(batches, None)
    assert ranks.world_size == 1
    start = time.perf_counter()
    results = []
    for _, _, result in judged(detect_pages(forward, pages, config, ranks), pages, config.eval.protocol, pool):
        results.append(result)
        on_page()
    seconds = time.perf_counter() - start
    return Judged(name, kind, results, scores_of(results, config.eval.protocol, config.eval.select), seconds)


def difference(
    ours: Sequence[PageResult], theirs: Sequence[PageResult], select: str, groups: np.ndarray | None = None
) -> tuple[float, float | None]:
    """H-mean of one detector minus another's on the same pages, and the standard error of that.

    Args:
        ours, theirs: N pages each, in the same order.
        select: micro (of all texts) or macro (mean over pages), as eval.select.
        groups: (N,), copies of a page together; None: no page is another's copy.

    Returns:
        difference and standard error, None where there are no two different pages.
    """
    assert len(ours) == len(theirs)
    one, other = counts_of(ours), counts_of(theirs)
    error = standard_error(without_each(one, select, groups) - without_each(other, select, groups))
    return float(hmeans(one, select) - hmeans(other, select)), error


def verdict(gain: float, error: float | None) -> str:
    """gain, loss, or noise where the difference is within two standard errors of 0 (or there is no error to tell)."""
    if error is None or abs(gain) <= SURE * error:
        return "noise"
    return "gain" if gain > 0 else "loss"


def rows(every: Sequence[Judged], select: str, groups: np.ndarray | None = None) -> list[dict]:
    """The table as plain values: every row beside the best member.

    Args: as for `difference`.

    Returns:
        per row name, kind, hmean, precision, recall (by eval.select), images_per_second, difference to the best member,
        its standard_error and verdict (None for the best member itself).
    """
    best = best_member(every)
    table = []
    for item in every:
        row = {"name": item.name, "kind": item.kind, **selected(item.scores, select)}
        row |= {"images_per_second": item.images_per_second}
        if item is best:
            row |= {"difference": None, "standard_error": None, "verdict": None}
        else:
            gain, error = difference(item.pages, best.pages, select, groups)
            row |= {"difference": gain, "standard_error": error, "verdict": verdict(gain, error)}
        table.append(row)
    return table


def best_member(every: Sequence[Judged]) -> Judged:
    """The member with the best score, the first of equals."""
    return max((item for item in every if item.kind == "member"), key=lambda item: item.scores["score"])


def as_text(table: Sequence[dict]) -> str:
    """The table for a terminal."""
    lines = [["", "H-mean", "precision", "recall", "images/s", "against the best member"]]
    for row in table:
        against = "the best member"
        if row["difference"] is not None:
            error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.4f}"
            against = f"{row['difference']:+.4f}{error}  {row['verdict']}"
        scores = [f"{row[name]:.4f}" for name in ("hmean", "precision", "recall")]
        lines.append([printable(row["name"]), *scores, f"{row['images_per_second']:.2f}", against])
    return text_table(lines, left=(0, 5))
