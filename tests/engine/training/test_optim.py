"""Schedules against torch's own schedulers, optimizers and the average against plain formulas."""

import itertools

import pytest
import torch

from engine.config import OptimizerConfig, SchedulerConfig
from engine.training.optim import build_optimizer, lr_at

STEPS = 7  # updates an epoch in these tests


def _torch_cosine(lr, eta_min, T_max, epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=T_max, eta_min=eta_min)
    values = []
    for _ in range(epochs):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize(
    ("lr", "eta_min", "T_max"), [(1e-4, 1e-5, 15), (4.5e-4, 8e-6, 20), (1e-5, 4.5e-5, 15), (1.0, 0, 1)]
)
def test_cosine_has_the_values_of_torch_also_past_T_max(lr, eta_min, T_max):
    schedule = SchedulerConfig(name="cosine", T_max=T_max, eta_min=eta_min)
    expected = _torch_cosine(lr, eta_min, T_max, 25)
    for epoch, value in enumerate(expected):
        for step in (epoch * STEPS, epoch * STEPS + STEPS - 1):  # constant within an epoch
            assert lr_at(step, STEPS, 25, lr, schedule) == pytest.approx(value, rel=1e-9, abs=1e-18)


def test_hold_stays_at_eta_min_after_T_max():
    schedule = SchedulerConfig(name="cosine", T_max=15, eta_min=1e-5, after_T_max="hold")
    assert lr_at(15 * STEPS, STEPS, 20, 1e-4, schedule) == pytest.approx(1e-5)
    assert lr_at(19 * STEPS, STEPS, 20, 1e-4, schedule) == pytest.approx(1e-5)
    mirror = SchedulerConfig(name="cosine", T_max=15, eta_min=1e-5)
    assert lr_at(19 * STEPS, STEPS, 20, 1e-4, mirror) == pytest.approx(2.488e-5, rel=1e-3)  # the docstring's number


def test_warm_up_rises_linearly_and_meets_the_schedule():
    schedule = SchedulerConfig(name="constant", warmup_epochs=2, warmup_start=0.1)
    values = [lr_at(step, STEPS, 5, 1.0, schedule) for step in range(3 * STEPS)]
    assert values[0] == pytest.approx(0.1)
    gaps = {round(b - a, 12) for a, b in itertools.pairwise(values[: 2 * STEPS + 1])}
    assert len(gaps) == 1
    assert values[2 * STEPS :] == [1.0] * STEPS


def test_poly_and_onecycle_shapes():
    poly = SchedulerConfig(name="poly", eta_min=0.0, poly_power=0.9)
    assert lr_at(0, STEPS, 10, 1.0, poly) == 1.0
    assert lr_at(35, STEPS, 10, 1.0, poly) == pytest.approx(0.5**0.9)
    cycle = SchedulerConfig(name="onecycle", eta_min=1e-3, pct_start=0.3)
    values = [lr_at(step, STEPS, 10, 1.0, cycle) for step in range(71)]
    assert values[0] == pytest.approx(1 / 25)
    assert max(values) == pytest.approx(1.0) and values.index(max(values)) == 21
    assert values[-1] == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizers_take_the_step_of_plain_torch(name):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(5, 3).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1)
    group = {"params": list(ours.parameters()), "weight_decay": 0.1, "lr_scale": 1.0}
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    more = {"momentum": 0.9} if name == "sgd" else {}
    pair = [
        (ours, build_optimizer([group], settings)),
        (theirs, kind(theirs.parameters(), 0.01, weight_decay=0.1, **more)),
    ]
    x = torch.randn(4, 5, dtype=torch.float64)
    for model, optimizer in pair:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-12)
