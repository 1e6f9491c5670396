"""evaluation.judge: the same scores with worker processes and ranks as without."""

import json

import pytest
import torch

from engine.config.load import load_config
from engine.data import open_data
from engine.detection.pages import detect_pages
from engine.distributed import start
from engine.evaluation import judge
from engine.evaluation import workers as scoring
from engine.model import build_model
from tests.conftest import TINY, run_module

# An untrained network finds little above the usual thresholds.
LOOSE = ("post.bin_thresh=0.05", "post.box_thresh=0", "post.min_size_px=1", "post.min_unclipped_px=1")


@pytest.mark.parametrize("protocol", ["official", "contest"])
def test_an_evaluation_with_workers_is_the_one_without(tmp_path, protocol):
    kept = []
    for workers in (0, 2):
        settings = (f"run_root={tmp_path}", f"eval.protocol={protocol}", f"eval.workers={workers}", "eval.batch_size=3")
        config, _ = load_config([*TINY, *LOOSE, *settings])
        ranks = start(config.trainer.device)
        torch.manual_seed(1)
        model = build_model(config).to(ranks.device).eval()
        with scoring.worker_pool(config.eval.workers) as pool:
            pages = open_data(config, ranks).val
            kept.append(judge.evaluate(model, pages, config, ranks, 3, pool))
    alone = judge.scores_by(config.eval, detect_pages(model, pages, config, ranks), pages)
    one, two = ({k: v for k, v in e.scores.items() if k not in ("seconds", "images_per_second")} for e in kept)
    assert one == two and one["images"] == 4 and one["chars_pred"] > 0
    assert [(p.row, p.result) for p in kept[0].worst] == [(p.row, p.result) for p in kept[1].worst]
    assert len(kept[0].worst) == 3
    assert {key: one[key] for key in alone} == alone and alone["score"] == one["score"]


@pytest.mark.slow
def test_two_ranks_with_workers_score_as_one_process_without(trained, tmp_path):
    """Under torchrun each rank has workers of its own."""
    source = next((trained.parent / ".synthetic").rglob("*.json"))
    scores = []
    for ranks, workers in ((0, 0), (2, 2)):
        out = tmp_path / f"{ranks}.json"
        settings = (f"checkpoint={trained}", f"data.val={source}", f"output={out}", f"run_root={tmp_path}", *LOOSE)
        run_module("engine.evaluate", *settings, f"eval.workers={workers}", ranks=ranks, cwd=tmp_path, check=True)
        scores.append({k: v for k, v in json.loads(out.read_text()).items() if "second" not in k})
    assert scores[0] == scores[1] and scores[0]["chars_pred"] > 0
