"""Something small that was trained, to be saved."""

import torch

from engine.training.ema import Ema


def trained_model(steps=2):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ema = Ema(model, 0.9)
    for step in range(steps):
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
    return model, ema, optimizer
