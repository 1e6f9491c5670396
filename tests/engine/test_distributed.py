"""Ranks: sums, the first rank's refusal reaches all, eight ranks on a machine without GPUs."""

import json

import numpy as np
import pytest
import torch

from engine import distributed, evaluate
from pipelines.errors import UserError
from tests.conftest import TINY, run_module

# An untrained network finds little above the usual thresholds.
LOOSE = ("post.bin_thresh=0.05", "post.box_thresh=0", "post.min_size_px=1", "post.min_unclipped_px=1")


def test_alone_without_torchrun():
    ranks = distributed.start("cpu")
    assert (ranks.rank, ranks.world_size, ranks.main) == (0, 1, True)
    assert distributed.gather_objects("x") == ["x"]
    assert (distributed.sum_over_ranks(np.array([1.0, 2.0]), ranks.device) == [1, 2]).all()
    assert distributed.on_main_first(ranks, lambda: 5) == 5


def test_a_gpu_has_a_number():
    """DALI takes a device without one for no GPU and decodes on the CPU."""
    with pytest.raises(AssertionError, match="cuda:0"):
        distributed.Ranks(0, 0, 1, torch.device("cuda"))
    assert distributed.Ranks(0, 0, 1, torch.device("cuda:0")).device.index == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_asked_for_where_there_is_none():
    with pytest.raises(UserError, match="torch sees no GPU here"):
        distributed.start("cuda")


@pytest.mark.slow  # 30 s; the README's dry run with eight ranks is among the quick ones
def test_eight_ranks_train_on_a_machine_without_gpus(tmp_path):
    settings = [
        *TINY,
        "name=eight",
        f"run_root={tmp_path}",
        "data.batch_size=1",
        "trainer.max_epochs=1",
        "trainer.device=cpu",
    ]
    done = run_module("engine.train", *settings, ranks=8, cwd=tmp_path, check=True)
    assert "on 8 x cpu" in done.stdout and done.stdout.count("steps an epoch") == 1
    assert "global batch 8 (1 a rank x 8 ranks x 1 accumulated)" in done.stdout


def test_a_refusal_under_torchrun_is_one_line_and_leaves_no_rank_behind(tmp_path):
    done = run_module(
        "engine.train", *TINY, "data.train=nowhere", "data.val=nowhere", ranks=2, cwd=tmp_path, timeout=90
    )
    assert done.returncode != 0
    refusals = [line for line in done.stderr.splitlines() if "error: nowhere" in line]
    assert len(refusals) == 1 and "Traceback" not in done.stderr.split(refusals[0])[0]


def test_a_refusal_of_every_rank_is_said_once(tmp_path):
    settings = (*TINY, "models.encoder.weights=nowhere.safetensors")
    done = run_module("engine.train", *settings, ranks=2, cwd=tmp_path, timeout=90)
    assert done.returncode != 0 and done.stderr.count("error: nowhere.safetensors") == 1


def test_the_hmean_of_a_run_on_two_ranks_is_that_of_its_checkpoint(tmp_path):
    """With an average, whose BatchNorm statistics must come from rank 0 too."""
    settings = (*TINY, "trainer.ema=true", "trainer.ema_decay=0.5", "name=two", f"run_root={tmp_path}", *LOOSE)
    run_module("engine.train", *settings, "trainer.max_epochs=1", ranks=2, cwd=tmp_path, check=True)
    state = json.loads((tmp_path / "two" / "checkpoints" / "last" / "state.json").read_text())
    source = max((tmp_path / ".synthetic").rglob("*.json"), key=lambda p: -len(json.loads(p.read_text())["images"]))
    out = tmp_path / "scores.json"
    assert evaluate.main([f"checkpoint={tmp_path}/two", f"data.val={source}", f"output={out}"]) == 0
    scores = json.loads(out.read_text())
    counted = ("images", "chars_gt", "chars_pred", "chars_hit", "hmean")
    assert scores["chars_pred"] > 0 and [scores[k] for k in counted] == [state["scores"][k] for k in counted]
