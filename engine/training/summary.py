"""What a run shows: its first lines, pictures of its worst pages, at its end curves and the score on the test split.

announce(run, start, steps_per_epoch)     # before the first step
draw_worst(run, worst)                    # after an evaluation that is the best so far: overlays/
finish(run)                               # after the last step: summary.json, curves.png
"""

import json
from pathlib import Path

import numpy as np

from engine import distributed
from engine.checkpoint import store
from engine.config.cautions import global_batch_notice, warnings
from engine.console import optional
from engine.data import not_scored
from engine.detection.open import load_detector
from engine.distributed import caution
from engine.evaluation.judge import Page, evaluate
from engine.files import replace_text
from engine.training.resume import Start
from engine.training.run import Run
from engine.visualization import overlay
from engine.visualization.curves import curves
from pipelines.errors import printable
from pipelines.images.read import read_rgb
from pipelines.index.build import ConcatIndex
from pipelines.limits import Limits

LONGEST_NAME = 40  # letters of a page's name in a picture's; 255 bytes are what a file system takes


def announce(run: Run, start: Start, steps_per_epoch: int) -> None:
    """Says what is about to happen, and whatever in the settings deserves a second look."""
    config, ranks, data, position = run.config, run.ranks, run.data, start.position
    say = run.log.say
    millions = sum(p.numel() for p in run.train_state.model.parameters()) / 1e6
    say(f"{config.models.encoder.name}, {millions:.1f} M parameters, on {ranks.world_size} x {ranks.device.type}")
    say(f"train {len(data.train)} pages, {steps_per_epoch} steps an epoch; val {len(data.val)} pages; run {run.folder}")
    cautions = warnings(config, ranks.world_size, ranks.device.type)
    for line in [start.change, data.notice, global_batch_notice(config, ranks.world_size), caution(), *cautions]:
        if line:
            say(line)
    if start.source is not None:
        say(f"resumed from {start.source}: epoch {position.epoch}, step {position.step}, best {position.best:.4f}")
    if position.rollback_factor != 1:
        factor = f"learning rate times {position.rollback_factor:g} since a rollback"
        say(f"{factor}; init_from={run.folder} starts without it")


def draw_worst(run: Run, worst: list[Page]) -> None:
    """Draws the worst pages over all ranks into the run's `overlays/`, in place of those of the evaluation before.

    Files are named `<rank of badness>_<page>.jpg`: ground truth, misses, predictions and false positives in colours,
    the page's H-mean in the header. To be called on all ranks, each with the worst of its own validation pages.
    """
    limit, pages = run.config.trainer.overlays, run.data.val
    gathered = [page for part in distributed.gather_objects(worst) for page in part]
    if not run.ranks.main or not limit:
        return
    target = run.folder / "overlays"
    gathered.sort(key=lambda page: (page.result.hmean, page.row))
    with optional(target):
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.jpg"):
            old.unlink()
    for number, page in enumerate(gathered[:limit]):
        file = target / f"{number:02d}_{printable(Path(pages.name(page.row)).stem)[:LONGEST_NAME]}.jpg"
        with optional(file):  # the page is read a second time, and by another decoder, which takes less damage
            overlay.save_image(file, page_overlay(pages, page, run.config.data.limits))


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


def finish(run: Run) -> None:
    """Scores the test split with the best checkpoint, draws the curves, writes and prints the summary."""
    config, ranks, folder = run.config, run.ranks, run.folder
    best = distributed.from_main(ranks, lambda: store.locate(folder / "checkpoints"))
    state = store.load_state(best)
    summary = {"best": str(best), "epoch": state["epoch"], "step": state["step"], "minutes": state["minutes"]}
    summary["val"] = state["scores"]
    unscored = not_scored(run.data.test) if run.data.test is not None else ""
    if unscored:
        summary["test"] = None
    elif run.data.test is not None:
        result = evaluate(load_detector(best, config, ranks), run.data.test, config, ranks, pool=run.pool)
        assert result is not None, "nothing cuts this evaluation off"
        summary["test"] = result.scores
        run.log.summary({f"test_{key}": value for key, value in result.scores.items()})
    if not ranks.main:
        return
    with optional(folder / "summary.json"):
        replace_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    with optional(folder / "curves.png"):
        curves(folder / "metrics.jsonl", folder / "curves.png")
    for split in ("val", "test"):
        if s := summary.get(split):
            run.log.say(
                f"{split}: H-mean {s['hmean']:.4f} (precision {s['precision']:.4f}, recall {s['recall']:.4f}, "
                f"page mean {s['hmean_macro']:.4f}, {config.eval.protocol} CLEval), epoch {state['epoch']}, {best}"
            )
    if unscored:
        run.log.say(f"test: not scored: {unscored}")
