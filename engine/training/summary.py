"""What a run leaves to look at: overlay pictures of its worst pages, curves, and the score on the test split."""

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from engine import distributed
from engine.checkpoint import store
from engine.config import Config
from engine.console import optional
from engine.data import Data
from engine.detection.open import load_detector
from engine.distributed import Ranks
from engine.evaluation.judge import Page, evaluate
from engine.files import replace_text
from engine.run.log import RunLog
from engine.visualization import overlay
from engine.visualization.curves import curves
from pipelines.errors import printable
from pipelines.images.read import read_rgb
from pipelines.index.build import ConcatIndex
from pipelines.limits import Limits

LONGEST_NAME = 40  # letters of a page's name in a picture's; 255 bytes are what a file system takes


def draw_worst(folder: Path, pages: ConcatIndex, worst: list[Page], config: Config, ranks: Ranks) -> None:
    """Draws the worst pages over all ranks into `folder/overlays/`, replacing the pictures of the evaluation before.

    Files are named `<rank of badness>_<page>.jpg`: ground truth, misses, predictions and false positives in colours,
    the page's H-mean in the header.
    """
    limit = config.trainer.overlays
    gathered = [page for part in distributed.gather_objects(worst) for page in part]
    if not ranks.main or not limit:
        return
    target = folder / "overlays"
    gathered.sort(key=lambda page: (page.result.hmean, page.row))
    with optional(target):
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.jpg"):
            old.unlink()
    for number, page in enumerate(gathered[:limit]):
        file = target / f"{number:02d}_{printable(Path(pages.name(page.row)).stem)[:LONGEST_NAME]}.jpg"
        with optional(file):  # the page is read a second time, and by another decoder, which takes less damage
            overlay.save_image(file, page_overlay(pages, page, config.data.limits))


def page_overlay(pages: ConcatIndex, page: Page, limits: Limits) -> np.ndarray:
    """The picture of one judged page: uint8 RGB (H, W, 3) in source pixels."""
    title = f"{pages.name(page.row)}  H-mean {page.result.hmean:.4f}"
    return overlay.overlay(
        read_rgb(pages.path(page.row), limits),
        gt=pages.polygons(page.row),
        ignore=pages.ignore(page.row),
        pred=page.detections.polygons,
        scores=page.detections.scores,
        gt_status=page.result.gt_status,
        pred_status=page.result.pred_status,
        title=title,
    )


def finish(
    config: Config, ranks: Ranks, folder: Path, data: Data, log: RunLog, pool: ProcessPoolExecutor | None
) -> dict:
    """Scores the test split with the best checkpoint (in `pool`), draws the curves, writes and prints the summary.

    Returns:
        the summary, as written to `folder/summary.json`.
    """
    best = distributed.from_main(ranks, lambda: store.locate(folder / "checkpoints"))
    state = store.load_state(best)
    summary = {"best": str(best), "epoch": state["epoch"], "step": state["step"], "minutes": state["minutes"]}
    summary["val"] = state["scores"]
    if data.test is not None:
        summary["test"] = evaluate(load_detector(best, config, ranks), data.test, config, ranks, pool=pool).scores
        log.summary({f"test_{key}": value for key, value in summary["test"].items()})
    if ranks.main:
        with optional(folder / "summary.json"):
            replace_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        with optional(folder / "curves.png"):
            curves(folder / "metrics.jsonl", folder / "curves.png")
        for split in ("val", "test"):
            if summary.get(split):
                s = summary[split]
                log.say(
                    f"{split}: H-mean {s['hmean']:.4f} (precision {s['precision']:.4f}, recall {s['recall']:.4f}, "
                    f"page mean {s['hmean_macro']:.4f}, {config.eval.protocol} CLEval), epoch {state['epoch']}, {best}"
                )
    return summary
