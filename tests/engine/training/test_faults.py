"""What is said and kept when a step goes wrong."""

import pytest
import safetensors.torch
import torch

from engine import train
from pipelines.errors import UserError
from tests.conftest import TINY


def test_a_loss_that_is_no_number_ends_the_run_with_a_line(tmp_path):
    settings = [*TINY, "name=nan", f"run_root={tmp_path}", "trainer.clip_norm=0", "models.optimizer.name=sgd"]
    with pytest.raises(UserError, match=r"diverged at step \d+: .* not finite.*lower models.optimizer.lr"):
        train.main([*settings, "models.optimizer.lr=90", "models.scheduler.name=constant", "trainer.max_epochs=30"])


def test_nothing_is_saved_after_a_loss_that_is_no_number(tmp_path):
    wild = [
        "models.optimizer.name=sgd",
        "models.optimizer.lr=90",
        "models.scheduler.name=constant",
        "trainer.clip_norm=0",
    ]
    settings = [*TINY, *wild, "name=nan", f"run_root={tmp_path}", "trainer.max_epochs=30", "trainer.log_every=1000"]
    with pytest.raises(UserError, match=r"diverged at step"):
        train.main([*settings, "trainer.checkpoint_every_steps=1"])
    for part in tmp_path.glob("nan/checkpoints/step_*/model.safetensors"):
        assert all(torch.isfinite(t).all() for t in safetensors.torch.load_file(part).values() if t.is_floating_point())
