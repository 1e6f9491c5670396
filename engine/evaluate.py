"""Evaluation of a detector with CLEval, sharded over ranks.

    python -m engine.evaluate checkpoint=runs/NAME data.val=PATH [output=FILE.json] [--json] [section.key=value ...]

Prints one JSON object, with and without --json.

`checkpoint` is a run folder (its best, else its last) or one checkpoint. Settings come from the checkpoint and may be
overridden, e.g. `post.bin_thresh=0.2`. Counters are sums of integers, so 1, 2 and 3 ranks give the identical H-mean.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from engine import checkpoint, cli, distributed
from engine.cleval import CLEval, PageResult
from engine.config import Config, split_extra
from engine.data import open_pages
from engine.distributed import Ranks
from engine.loss import check_kernels
from engine.maps import prob_batches
from engine.model import DBNet, build_model
from engine.postprocess import Detections, Pending, begin, finish
from engine.scoring import score_in_order, worker_pool
from engine.sentinel import Sentinel
from pipelines.bare_index import BareIndex
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.index import ConcatIndex


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


def evaluate(
    forward: Callable,
    pages: ConcatIndex,
    config: Config,
    ranks: Ranks,
    worst: int = 0,
    pool: ProcessPoolExecutor | None = None,
    sentinel: Sentinel | None = None,
    refuse_bad: bool = False,
) -> Evaluation | None:
    """Detects on all pages and scores them.

    Args:
        forward: model in evaluation mode, on `ranks.device`: image (N, 3, H, W) -> logits (N, 1, H, W).
        pages: annotated pages; rank r judges rows r, r + world_size, ...
        config: eval, post and data settings.
        worst: how many of the worst pages of this rank to keep.
        pool: processes that score pages, from `engine.scoring.worker_pool`; None scores them here.
        sentinel: of a training, told of every page; its request to stop cuts the evaluation off.
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
        if sentinel is not None:
            sentinel.tick(step=False)
            if sentinel.asked:
                break
    if sentinel is not None:
        sentinel.pause()
    cut = sentinel is not None and bool(sentinel.asked)
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
    """What CLEval sees of a page and its detections: the arguments of `engine.cleval.evaluate_page`."""
    if protocol == "official":
        return polygons, pages.polygons(row), pages.texts(row), pages.ignore(row), protocol
    # The contest's baseline hands its metric whole pixels on both sides.
    whole = [[np.rint(polygon) for polygon in side] for side in (polygons, pages.polygons(row))]
    return *whole, None, pages.ignore(row), protocol


def load_detector(path: Path, config: Config, ranks: Ranks) -> DBNet:
    """The detector of a checkpoint in evaluation mode on the device; averaged weights if there are any and eval.ema."""
    check_kernels(config, ranks.device)
    # Weights come from the checkpoint, so the encoder must not ask for the hub or a file of its own.
    encoder = dataclasses.replace(config.models.encoder, weights="", freeze="none")
    models = dataclasses.replace(config.models, encoder=encoder)
    model = build_model(dataclasses.replace(config, models=models))
    tensors = checkpoint.load_judged(path, config.eval.ema)
    if config.trainer.precision == "float64":
        model = model.double()
    checkpoint.load_model(model, tensors, path)
    return model.to(ranks.device).eval()


def checkpoint_settings(argv: list[str], extra: dict[str, str], describe: str) -> tuple[Config, dict[str, str], Path]:
    """Parses `checkpoint=PATH` and overrides; the base is the checkpoint's own configuration.

    Raises:
        UserError: no checkpoint named, none found, or it is damaged.
    """
    own = {"checkpoint": "", **extra}
    if cli.wants_help(argv):
        cli.parse(argv, own, describe)
    named = split_extra([item for item in argv if not item.startswith("--")], own)[0]["checkpoint"]
    if not named:
        raise UserError("checkpoint=PATH is missing: name a run folder (runs/NAME) or one of its checkpoints")
    path = checkpoint.locate(named)
    config, extras, dry_run = cli.parse(argv, own, describe, base=checkpoint.load_settings(path))
    if dry_run:
        raise UserError("--dry-run belongs to engine.train; an evaluation of few pages is one already")
    return config, extras, path


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    argv = [item for item in argv if item != "--json"]  # as of the other commands; this one prints nothing else
    config, extras, path = checkpoint_settings(argv, {"output": ""}, __doc__)
    if not config.data.val:
        raise UserError("data.val=PATH is missing: name the pages to evaluate on")
    if extras["output"]:
        Path(extras["output"]).parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    ranks = distributed.start(config.trainer.device)
    try:
        if config.trainer.threads:
            torch.set_num_threads(config.trainer.threads)
        pages = open_pages(config, config.data.val, ranks)
        with worker_pool(config.eval.workers) as pool:
            model = load_detector(path, config, ranks)
            scores = evaluate(model, pages, config, ranks, pool=pool, refuse_bad=True).scores
        if ranks.main:
            report = json.dumps({**scores, "checkpoint": str(path), "protocol": config.eval.protocol}, indent=1)
            print(report)
            if extras["output"]:
                Path(extras["output"]).write_text(report + "\n")
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    cli.run(main)
