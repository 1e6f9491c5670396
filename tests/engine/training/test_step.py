"""The training step: one graph without a break, and nothing in it that waits for the device."""

import contextlib
import dataclasses
import itertools
import math

import pytest
import torch
from no_sync import HostSync, no_sync

from engine.config.load import load_config
from engine.data import build_train_loader, open_data
from engine.distributed import seed_everything, start
from engine.model.forward import run_network
from engine.training import step as step_module
from engine.training.metrics import Stopwatch
from engine.training.skip import Place, SkippedStep
from engine.training.state import build
from engine.training.step import compute_loss, make_targets, train_step
from kernels.db_loss.op import DBLoss
from tests.conftest import DEVICE, TINY


@contextlib.contextmanager
def _ready(tmp_path, *settings):
    config, _ = load_config([*TINY, f"run_root={tmp_path}", f"trainer.device={DEVICE}", *settings])
    ranks = start(config.trainer.device)
    data = open_data(config, ranks)
    state = build(config, ranks)
    state.model.train()
    loader = build_train_loader(config, data.train, ranks, 0, 0)
    with contextlib.closing(loader):
        yield config, ranks, state, loader


@pytest.mark.parametrize("kernels", ["triton", "reference"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_targets_network_and_loss_are_one_graph(tmp_path, kernels, precision):
    with _ready(tmp_path, f"trainer.kernels={kernels}", f"trainer.precision={precision}") as made:
        config, ranks, state, loader = made
        batch = next(loader).to(ranks.device)

        def step(image, points_xy, poly_offsets, page_offsets, ignore):
            given = dataclasses.replace(
                batch,
                image=image,
                points_xy=points_xy,
                poly_offsets=poly_offsets,
                page_offsets=page_offsets,
                ignore=ignore,
            )
            targets = make_targets(given, config)
            return compute_loss(run_network(state.forward, image, config), targets, config).total

        arguments = (batch.image, batch.points_xy, batch.poly_offsets, batch.page_offsets, batch.ignore)
        seen = torch._dynamo.explain(step)(*arguments)
        assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_waits_for_nothing(tmp_path, accumulate, monkeypatch):
    settings = ("trainer.kernels=triton", f"trainer.accumulate={accumulate}", "trainer.clip_norm=1", "trainer.ema=true")
    with _ready(tmp_path, *settings) as (config, ranks, state, loader):
        for group in state.optimizer.param_groups:  # as on a GPU; elsewhere its step counters are read on the host
            group.update(fused=True, foreach=False)
        train_step(state, loader, config, ranks, Stopwatch(), 0)  # the optimizer makes its state here
        with no_sync(uploads=True):
            parts = train_step(state, loader, config, ranks, Stopwatch(), 1)
        assert parts.isfinite().all() and parts[0] > 0


def test_the_check_itself_sees_what_waits(tmp_path):
    values = torch.arange(6.0, device=DEVICE)
    waiting = (
        lambda: values.sum().item(),
        lambda: int(values[0]),
        lambda: bool(values.any()),
        lambda: values.nonzero(),
        lambda: values[values > 2],
        lambda: values.unique(),
        lambda: values.tolist(),
        lambda: torch.equal(values, values),
        lambda: values.masked_fill_(values > 9, 0.0).index_put_((values > 2,), torch.ones(3, device=DEVICE)),
        lambda: values.to("meta"),
    )
    for wait in waiting:
        with no_sync(), pytest.raises(HostSync):
            wait()
    with no_sync():
        assert values.cumsum(0).topk(2).values.shape == (2,)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_bad_first_step_leaves_no_trace(tmp_path, name, fused, monkeypatch):
    """The update after it equals that of a run without it, to the last bit, in the form a GPU has it (fused) too."""

    def after(bad: bool) -> dict:
        seed_everything(0, False)
        with _ready(tmp_path, f"models.optimizer.name={name}", "trainer.clip_norm=1") as (config, ranks, state, _):
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

    with _ready(tmp_path) as (_config, _ranks, _state, loader):
        batch = next(loader)
    one, other = after(False), after(True)
    assert one.keys() == other.keys() and len(one) > 100
    assert [k for k in one if not torch.equal(one[k], other[k])] == []
