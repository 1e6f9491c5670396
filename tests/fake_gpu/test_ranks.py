"""Two ranks on two emulated GPUs, gloo in NCCL's place: what one rank gives that sums two batches a step."""

import pytest

from engine import train
from engine.run.log import read_metrics
from tests.conftest import TINY
from tests.fake_gpu import run

SETTINGS = (*TINY, "trainer.precision=float32", "trainer.kernels=reference", "trainer.max_steps=2")


def test_two_ranks_train_as_one_with_two_batches(tmp_path):
    run.emulated("engine.train", *SETTINGS, "name=two", f"run_root={tmp_path}", ranks=2)
    assert (
        train.main([*SETTINGS, "name=one", f"run_root={tmp_path}", "trainer.accumulate=2", "trainer.device=cpu"]) == 0
    )
    two, one = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "one"))
    losses = [[r["loss"] for r in records if r["kind"] == "train"] for records in (two, one)]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-6)
