"""Pages judged with CLEval: what a detector found on them against the texts that stand there.

    found = detect_pages(forward, pages, config, ranks)
    for row, detections, result in judged(found, pages, config.eval.protocol):
        result.hmean                                          # of one page

    evaluate(forward, pages, config, ranks).scores["score"]   # of all pages, over all ranks

There is one loop over pages, `judged`; every command that scores detections goes through it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from engine import distributed
from engine.config import Config, EvalConfig
from engine.detection.maps import Forward
from engine.detection.pages import detect_pages
from engine.detection.postprocess import Detections
from engine.distributed import Ranks
from engine.evaluation.cleval import CLEval, PageResult, scores_of
from engine.evaluation.workers import score_in_order
from pipelines.index.pages import LabelledPages
from pipelines.quarantine import BadPages

JUDGED_EMPTY = "judged as a page without detections"  # what becomes of a page that cannot be read

Arguments = tuple[list[np.ndarray], list[np.ndarray], list[str] | None, np.ndarray, str]


@dataclasses.dataclass(frozen=True)
class Page:
    """One judged page: its row in the index, detections in source pixels and CLEval result."""

    row: int
    detections: Detections
    result: PageResult


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores over all ranks, and the pages with the least H-mean that this rank saw."""

    scores: dict[str, float]
    worst: list[Page]


@dataclasses.dataclass(frozen=True)
class Totals:
    """What one rank has counted, or all of them."""

    metric: CLEval
    bad: int  # pages that could not be read
    cut: bool  # whether the evaluation was cut off

    def summed(self, ranks: Ranks) -> "Totals":
        """The sums over all ranks, the same on each; a sync."""
        own = np.concatenate([self.metric.state(), [self.bad, self.cut]])
        total = distributed.sum_over_ranks(own, ranks.device)
        return Totals(CLEval.from_state(self.metric.protocol, total[:-2]), round(total[-2]), bool(total[-1]))


def judged(
    found: Iterable[tuple[int, Detections]],
    pages: LabelledPages,
    protocol: str,
    pool: ProcessPoolExecutor | None = None,
    characters: bool = False,
) -> Iterator[tuple[int, Detections, PageResult]]:
    """Yields (row, detections, CLEval's result) of every page that `found` gives, in its order.

    Args:
        found: (row, detections in source pixels), as `detect_pages` yields them.
        pages: what stands on them.
        protocol: official or contest, as eval.protocol.
        pool: processes that score pages, from `engine.evaluation.workers.worker_pool`; None scores them here.
        characters: count those of each text and detection too.
    """
    jobs = (((row, page), (*cleval_arguments(page.polygons, row, pages, protocol), characters)) for row, page in found)
    for (row, page), result in score_in_order(pool, jobs):
        yield row, page, result


def scores_by(rules: EvalConfig, found: Iterable[tuple[int, Detections]], pages: LabelledPages) -> dict[str, float]:
    """`CLEval.compute` of everything that was found on pages of one process."""
    results = (result for _, _, result in judged(found, pages, rules.protocol))
    return scores_of(results, rules.protocol, rules.select)


def cleval_arguments(polygons: list[np.ndarray], row: int, pages: LabelledPages, protocol: str) -> Arguments:
    """What CLEval sees of a page and its detections: the arguments of `engine.evaluation.cleval.evaluate_page`."""
    if protocol == "official":
        return polygons, pages.polygons(row), pages.texts(row), pages.ignore(row), protocol
    # The contest's baseline hands its metric whole pixels on both sides.
    ours, theirs = ([np.rint(polygon) for polygon in side] for side in (polygons, pages.polygons(row)))
    return ours, theirs, None, pages.ignore(row), protocol


def evaluate(
    forward: Forward,
    pages: LabelledPages,
    config: Config,
    ranks: Ranks,
    worst: int = 0,
    pool: ProcessPoolExecutor | None = None,
    on_page: Callable[[bool], bool] | None = None,
    refuse_bad: bool = False,
) -> Evaluation | None:
    """Detects on all pages and scores them.

    Args:
        forward: model in evaluation mode, on `ranks.device`: image (N, 3, H, W) -> logits (N, 1, H, W).
        pages: annotated pages; rank r judges rows r, r + world_size, ...
        config: eval, post and data settings.
        worst: how many of the worst pages of this rank to keep.
        pool: processes that score pages, from `engine.evaluation.workers.worker_pool`; None scores them here.
        on_page: called with False after every page and with True once after the last; a True from it cuts the
            evaluation off.
        refuse_bad: a page that cannot be read ends the evaluation. Else it is judged as a page without detections: it
            ends no training, and flatters none.

    Returns:
        None when it was cut off on any rank; else
        scores as `CLEval.compute` has them, and `bad_images` (that could not be read), `seconds` and
        `images_per_second`; identical on all ranks except for the times.

    Raises:
        UserError: a page cannot be read, with `refuse_bad`.
    """
    start = time.perf_counter()
    metric, worst_pages = CLEval(config.eval.protocol), []
    # Nothing is known every time: a disk that was away for a moment must not lower all later scores.
    bad = BadPages("" if refuse_bad else JUDGED_EMPTY, named=pages.bad)
    found = detect_pages(forward, pages, config, ranks, bad)
    for row, detections, result in judged(found, pages, config.eval.protocol, pool):
        metric.add(result)
        if row not in bad.known:  # there is no picture of it
            worst_pages.append(Page(row, detections, result))
            worst_pages = sorted(worst_pages, key=lambda page: page.result.hmean)[:worst]
        if on_page is not None and on_page(False):
            break
    cut = on_page is not None and on_page(True)
    total = Totals(metric, len(bad.known), cut).summed(ranks)
    if total.cut:
        return None
    seconds = time.perf_counter() - start
    scores = total.metric.compute(config.eval.select)
    scores |= {"bad_images": float(total.bad), "seconds": seconds, "images_per_second": len(pages) / seconds}
    return Evaluation(scores, worst_pages)
