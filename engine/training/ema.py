"""Exponential moving average of the weights, one multi-tensor kernel a step.

    ema <- ema + (1 - d_t) (weight - ema),   d_t = min(decay, (1 + t) / (10 + t)),   t = updates so far

The ramp keeps the random start out of the average: at t = 10 d is 0.55, at t = 1000 0.991 (as in TensorFlow's
ExponentialMovingAverage with num_updates). BatchNorm statistics and other buffers are copied, not averaged: they are
running averages already.
"""

import copy

import torch
from torch import nn


class Ema:
    """A shadow copy of a model.

    Args:
        model: the bare model (not compiled, not wrapped), already on its device: its tensors are read at each update.
        decay: limit of d_t, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs = [
            (list(getattr(self.model, kind)()), [t.detach() for t in getattr(model, kind)()])
            for kind in ("parameters", "buffers")
        ]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average toward the model's weights after update number `step` (0-based)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        (averages, weights), (mine, theirs) = self._pairs
        torch._foreach_lerp_(averages, weights, share)
        if mine:
            torch._foreach_copy_(mine, theirs)
