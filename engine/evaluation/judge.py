"""Pages judged: what was found on them against what stands there"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from engine import distributed
from engine.config import Config
from engine.detection.pages import NOTHING_FOUND, detect_pages
from engine.detection.postprocess import Detections
from engine.distributed import Ranks
from engine.evaluation.cleval import CLEval, PageResult
from engine.evaluation.workers import score_in_order
from pipelines.index.build import ConcatIndex


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


def evaluate(
    forward: Callable,
    pages: ConcatIndex,
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
        scores as in `CLEval.compute` plus `score` (the H-mean chosen by eval.select), `images`, `bad_images` (that
        could not be read), `seconds` and `images_per_second`; identical on all ranks except for the times.

    Raises:
        UserError: a page cannot be read, with `refuse_bad`.
    """
    start = time.perf_counter()
    protocol = config.eval.protocol
    metric = CLEval(protocol=protocol)
    kept: list[Page] = []
    bad: dict[int, str] = {}  # empty every time: a disk that was away for a moment must not lower all later scores
    fate = "" if refuse_bad else "judged as a page without detections"
    found_pages = (
        (row, NOTHING_FOUND if row in bad else found)
        for row, found in detect_pages(forward, pages, config, ranks, fate, bad)
    )
    jobs = (((row, found), cleval_arguments(found.polygons, row, pages, protocol)) for row, found in found_pages)
    for (row, found), result in score_in_order(pool, jobs):
        metric.add(result)
        if row not in bad:  # there is no picture of it
            kept = sorted([*kept, Page(row, found, result)], key=lambda page: page.result.hmean)[:worst]
        if on_page is not None and on_page(False):
            break
    cut = on_page is not None and on_page(True)
    total = distributed.sum_over_ranks(np.concatenate([metric.state(), [len(bad), cut]]), ranks.device)
    if total[-1]:
        return None
    scores = CLEval.from_state(protocol, total[:-2]).compute()
    scores["bad_images"] = float(total[-2])
    scores["score"] = scores["hmean" if config.eval.select == "micro" else "hmean_macro"]
    scores["seconds"] = time.perf_counter() - start
    scores["images_per_second"] = len(pages) / scores["seconds"]
    return Evaluation(scores, kept)


def cleval_arguments(polygons: list[np.ndarray], row: int, pages: ConcatIndex, protocol: str) -> tuple:
    """What CLEval sees of a page and its detections: the arguments of `engine.evaluation.cleval.evaluate_page`."""
    if protocol == "official":
        return polygons, pages.polygons(row), pages.texts(row), pages.ignore(row), protocol
    # The contest's baseline hands its metric whole pixels on both sides.
    whole = [[np.rint(polygon) for polygon in side] for side in (polygons, pages.polygons(row))]
    return *whole, None, pages.ignore(row), protocol
