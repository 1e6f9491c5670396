"""The training step: one graph without a break, and nothing in it that waits for the device."""

import dataclasses

import pytest
import torch
from no_sync import HostSync, no_sync

from engine.model.forward import run_network
from engine.training.metrics import Stopwatch
from engine.training.step import compute_loss, make_targets, train_step
from tests.conftest import DEVICE
from tests.engine.training.conftest import ready


@pytest.mark.parametrize(
    ("kernels", "precision"),
    [
        ("triton", "bf16"),
        ("reference", "float32"),
        pytest.param("triton", "float32", marks=pytest.mark.slow),
        pytest.param("reference", "bf16", marks=pytest.mark.slow),
    ],
)
def test_targets_network_and_loss_are_one_graph(tmp_path, kernels, precision):
    with ready(tmp_path, f"trainer.kernels={kernels}", f"trainer.precision={precision}") as made:
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


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_step_waits_for_nothing(tmp_path, accumulate, monkeypatch):
    settings = ("trainer.kernels=triton", f"trainer.accumulate={accumulate}", "trainer.clip_norm=1", "trainer.ema=true")
    with ready(tmp_path, *settings) as (config, ranks, state, loader):
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
