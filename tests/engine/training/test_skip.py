"""A step whose loss is no number changes nothing."""

import itertools
import math

import pytest
import torch

from engine.distributed import seed_everything
from engine.training import step as step_module
from engine.training.metrics import Stopwatch
from engine.training.skip import Place, SkippedStep
from engine.training.step import train_step
from kernels.db_loss.op import DBLoss
from tests.engine.training.conftest import ready


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_bad_first_step_leaves_no_trace(tmp_path, name, fused, monkeypatch):
    """The update after it equals that of a run without it, to the last bit, in the form a GPU has it (fused) too."""

    def after(bad: bool) -> dict:
        seed_everything(0, False)
        with ready(tmp_path, f"models.optimizer.name={name}", "trainer.clip_norm=1") as (config, ranks, state, _):
            loader = itertools.repeat(batch)
            for group in state.optimizer.param_groups:
                group.update(fused=fused, foreach=not fused)
            if bad:
                real = step_module.compute_loss
                with monkeypatch.context() as patch:
                    patch.setattr(step_module, "compute_loss", lambda *a: DBLoss(*(x * math.nan for x in real(*a))))
                    skipped = train_step(state, loader, config, ranks, Stopwatch(), 0)
                assert skipped.tolist() == [0, 0, 0, 0, 0, 1]
                state.skipper.record(Place(1, 0, 0))
                assert state.skipper.skipped() == [SkippedStep(Place(1, 0, 0), in_a_row=1, to_dump=True)]
            parts = train_step(state, loader, config, ranks, Stopwatch(), 1)
            assert parts[5] == 0 and parts[0] > 0
            states = {f"{i}.{k}": v for i, s in enumerate(state.optimizer.state.values()) for k, v in s.items()}
            return {**{k: v.clone() for k, v in state.model.state_dict().items()}, **states}

    with ready(tmp_path) as (_config, _ranks, _state, loader):
        batch = next(loader)
    one, other = after(False), after(True)
    assert one.keys() == other.keys() and len(one) > 100
    assert [k for k in one if not torch.equal(one[k], other[k])] == []
