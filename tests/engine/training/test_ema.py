"""The moving average of the weights."""

import math

import torch

from engine.training.ema import Ema


def test_ema_follows_its_formula_and_copies_buffers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).double()
    ema = Ema(model, decay=0.9)
    expected = model[0].weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model[0].weight += 1.0
            model[1].running_mean += 2.0
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.model[0].weight, expected)
    torch.testing.assert_close(ema.model[1].running_mean, model[1].running_mean)
    assert not ema.model[0].weight.requires_grad and math.isclose(model[1].running_mean[0].item(), 40.0)
