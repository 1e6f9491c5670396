"""Ranks: sums, the first rank's refusal reaches all, eight ranks on a machine without GPUs."""

import numpy as np
import pytest
import torch
from conftest import TINY, run_module

from engine import distributed
from pipelines.errors import UserError


def test_alone_without_torchrun():
    ranks = distributed.start("cpu")
    assert (ranks.rank, ranks.world_size, ranks.main) == (0, 1, True)
    assert distributed.gather_objects("x") == ["x"]
    assert (distributed.sum_over_ranks(np.array([1.0, 2.0]), ranks.device) == [1, 2]).all()
    assert distributed.on_main_first(ranks, lambda: 5) == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_asked_for_where_there_is_none():
    with pytest.raises(UserError, match="torch sees no GPU here"):
        distributed.start("cuda")


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
    assert "this run's global batch is 8" in done.stdout or "global batch" in done.stdout


def test_a_refusal_under_torchrun_is_one_line_and_leaves_no_rank_behind(tmp_path):
    done = run_module(
        "engine.train", *TINY, "data.train=nowhere", "data.val=nowhere", ranks=2, cwd=tmp_path, timeout=90
    )
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        line for line in done.stderr.splitlines() if line.startswith("error: nowhere")
    ]
    assert done.stderr.count("error: ") >= 1 and "engine/train.py" not in done.stderr.split("torch.distributed")[0]
