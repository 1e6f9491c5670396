"""The evaluation behind a report: the score of every page, sums by text height, and maps of the worst pages.

judged = judge(Path("runs/mine"), [], worst=8)
judged.pages[0].hmean                                # of the worst page
"""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine import distributed
from engine.checkpoint import store
from engine.config import Config
from engine.config.load import canvas_hw
from engine.data import open_data, open_pages
from engine.detection.maps import page_loader
from engine.detection.open import Opened, open_detector
from engine.detection.pages import detect_pages
from engine.detection.postprocess import Detections
from engine.distributed import Ranks
from engine.evaluation.cleval import CLEval, PageResult
from engine.evaluation.judge import JUDGED_EMPTY, judged
from engine.files import json_object
from engine.model import DBNet
from engine.model.forward import run_network
from engine.report.heights import ByHeight, HeightRow, heights
from engine.report.history import Run
from pipelines.errors import UserError
from pipelines.geometry import letterbox
from pipelines.index.bare import BareIndex
from pipelines.index.build import ConcatIndex
from pipelines.quarantine import BadPages, paths_of

OWN = "the run's own pages"


@dataclass(frozen=True)
class PageScore:
    """One page's result in numbers. `counts`: status -> texts or detections."""

    row: int
    name: str
    path: Path
    hmean: float
    recall: float
    precision: float
    counts: Counter


@dataclass(frozen=True)
class WorstPage:
    """A page to be drawn: what was found, and the network's maps cut to the page, (h, w) float32 in canvas pixels."""

    score: PageScore
    detections: Detections
    result: PageResult
    polygons: list[np.ndarray]
    texts: list[str] | None
    ignore: np.ndarray
    prob_map: np.ndarray
    thresh_map: np.ndarray


@dataclass(frozen=True)
class Judgement:
    """An evaluation of a checkpoint; `pages` worst first, `bad` path -> what is wrong with a page, judged as empty."""

    checkpoint: Path
    config: Config
    state: dict
    scores: dict[str, float]
    pages: list[PageScore]
    heights: list[HeightRow]
    worst: list[WorstPage]
    bad: dict[str, str]


def judge(
    folder: Path, settings: list[str], worst: int, tell: Callable[[int, int | None], None] = lambda done, total: None
) -> Judgement:
    """Runs a run's best checkpoint (else its last) over its validation pages.

    Args:
        settings: `section.key=value` each, over the checkpoint's.
        worst: pages to keep for pictures.
        tell: told of (pages done, all of them).

    Raises:
        UserError: no checkpoint, a damaged one, settings or data that are wrong or gone.
    """
    path = store.locate(folder).resolve()  # of a run that goes on, `best` may be another one a moment later
    try:
        opened = open_detector(path, settings)
        config, ranks = opened.config, opened.ranks
        # Without data of its own a run was trained on built-in pages, which are made again where they are gone.
        pages = open_pages(config, config.data.val, ranks) if config.data.val else open_data(config, ranks).val
        return _judged(opened, pages, worst, tell)
    finally:
        distributed.stop()


def _judged(opened: Opened, pages: ConcatIndex, worst: int, tell: Callable[[int, int | None], None]) -> Judgement:
    """The loop over the pages: scores of each, sums by height, and the worst ones kept for their pictures."""
    config, ranks, model = opened.config, opened.ranks, opened.load()
    assert isinstance(model, DBNet)
    metric, by_height, canvas = CLEval(config.eval.protocol), ByHeight(), canvas_hw(config)
    scores: list[PageScore] = []
    kept: list[tuple[float, int, Detections, PageResult]] = []  # a heap of the worst, the best of them on top
    bad = BadPages(JUDGED_EMPTY)
    tell(0, len(pages))
    detected = detect_pages(model, pages, config, ranks, bad)
    for row, found, result in judged(detected, pages, config.eval.protocol, characters=True):
        metric.add(result)
        scale = float(letterbox(tuple(pages.size_wh[row]), canvas)[1, 1])
        by_height.add(heights(pages.polygons(row)), heights(found.polygons), scale, result)
        counts = Counter([*result.gt_status, *(f"pred {status}" for status in result.pred_status)])
        numbers = result.hmean, result.recall, result.precision
        scores.append(PageScore(row, pages.name(row), Path(pages.path(row)), *numbers, counts))
        if row not in bad.known and worst:
            heapq.heappush(kept, (-result.hmean, -row, found, result))
            if len(kept) > worst:
                heapq.heappop(kept)
        tell(len(scores), len(pages))
    known = {page.row: page for page in scores}
    drawn = [(known[-row], found, result) for _, row, found, result in sorted(kept, key=lambda k: (-k[0], -k[1]))]
    maps = page_maps(model, [score.path for score, _, _ in drawn], config, ranks) if drawn else []
    worst_pages = []
    for (score, found, result), (prob, thresh) in zip(drawn, maps, strict=True):
        labels = pages.polygons(score.row), pages.texts(score.row), np.asarray(pages.ignore(score.row), bool)
        worst_pages.append(WorstPage(score, found, result, *labels, prob, thresh))
    return Judgement(
        checkpoint=opened.path,
        config=config,
        state=store.load_state(opened.path),
        scores=metric.compute(config.eval.select),
        pages=sorted(scores, key=lambda page: (page.hmean, page.row)),
        heights=by_height.rows(),
        worst=worst_pages,
        bad=paths_of(pages, bad.known),
    )


def page_maps(model: DBNet, paths: list[Path], config: Config, ranks: Ranks) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prob_map, thresh_map) of images, each (h, w) float32, cut to the page's place on the canvas.

    Raises:
        UserError: an image cannot be read any more.
    """

    def both(image: torch.Tensor) -> torch.Tensor:
        features = model.decoder(model.encoder(image))
        return torch.cat([model.head.prob(features), model.head.thresh(features)], 1)  # in evaluation the head skips T

    bare = BareIndex(paths, config.data.limits)
    canvas, result = canvas_hw(config), []
    loader = page_loader(bare, canvas, config, ranks, BadPages())
    try:
        for batch in loader:
            with torch.inference_mode():
                logits = run_network(both, batch.image.to(ranks.device), config)
                assert isinstance(logits, torch.Tensor)  # as `both` gives them
                maps = torch.sigmoid(logits.float()).cpu().numpy()
            for row, page in zip(batch.index, maps):
                w, h = bare.size_wh[row]
                matrix = letterbox((int(w), int(h)), canvas)
                x, y = (round(float(v)) for v in matrix[:, 2])
                width, height = round(matrix[0, 0] * w), round(matrix[1, 1] * h)
                prob, thresh = page[:, y : y + height, x : x + width]
                result.append((prob, thresh))
    finally:
        loader.close()
    if len(result) != len(paths):
        raise UserError("a page of the worst ones cannot be read any more")
    return result


def origin(run: Run, judged: Judgement) -> str:
    """Where the headline of a report comes from, in one line with both figures; "" where the run was judged alike.

    A tuning writes its settings into the checkpoint, and other pages may be given: then the headline is no point of the
    curves beside it. Settings alone that the user gives need no word.

    Args:
        run: with its logged best. judged: the evaluation of the headline.
    """
    if run.config is None:
        return ""
    own, now = run.config, judged.config
    ways = _tuning(judged.checkpoint, own.data.val)
    if now.data.val == own.data.val and not ways:
        return ""
    if now.post != own.post and not ways:
        ways.append("with other settings of the postprocessing than the run's own")
    if now.eval.protocol != own.eval.protocol:
        ways.append(f"by {now.eval.protocol} CLEval (the run: {own.eval.protocol})")
    pages = OWN if now.data.val == own.data.val else f"{', '.join(now.data.val)}, not {OWN}"
    shown = f"H-mean {judged.scores['hmean']:.4f} is of {pages}{', ' if ways else ''}{', '.join(ways)}"
    best, named = run.history.best.get("hmean"), ", ".join(own.data.val) or "built-in"
    curves = "the curves are" if best is None else f"the curves' best, {best:.4f}, is"
    return f"{shown}; {curves} of {OWN} ({named}), as logged while it trained."


def _tuning(checkpoint: Path, own: list[str]) -> list[str]:
    """What engine.tune wrote into the checkpoint, if it did, and on which pages it was found."""
    path = checkpoint / store.TUNED
    if not path.exists():
        return []
    try:
        record = json_object(path)
    except UserError:
        return ["with settings of engine.tune (its record is damaged)"]
    data, hmean = record.get("data"), record.get("hmean")
    on = OWN if data == own else ", ".join(map(str, data)) if isinstance(data, list) else "unknown pages"
    there = [hmean.get(name) for name in ("start", "best")] if isinstance(hmean, dict) else []
    numbers = " -> ".join(f"{value:.4f}" for value in there if isinstance(value, float))
    return [f"with settings that engine.tune found on {on}{f' ({numbers} there)' if numbers else ''}"]
