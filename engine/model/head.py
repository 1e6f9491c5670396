"""DB head: twin branches from stride 4 to full resolution, logits out (no sigmoid; the loss works on logits).

    branch: conv3x3 + BN + ReLU -> x2 + BN + ReLU -> x2 -> 1 channel
    x2 is a 2x2 transposed convolution of stride 2, or with `smooth` nearest upsampling and a 3x3 convolution.

Source: DBNet, Liao et al. 2020, arXiv 1911.08947, section 3.
"""

import torch
import torch.nn.functional as F
from torch import nn

from engine.model.norm_double import DoubleToOne


def _double(in_channels: int, out_channels: int, smooth: bool, bias: bool) -> nn.Module:
    if smooth:
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        )
    if out_channels == 1:
        return DoubleToOne(in_channels)
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=bias)


def _branch(in_channels: int, hidden: int, smooth: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
        _double(hidden, hidden, smooth, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
        _double(hidden, 1, smooth, bias=True),
    )  # fmt: skip


def _rest(branch: nn.Sequential, y: torch.Tensor) -> torch.Tensor:
    """A branch behind its first convolution, compiled, in training."""
    *layers, norm, act, last = list(branch)[1:]
    for layer in layers:
        y = layer(y)
    if isinstance(last, DoubleToOne) and type(norm) is nn.BatchNorm2d and norm.training:
        return last.after_norm(y, norm)
    return last(act(norm(y)))


class Head(nn.Module):
    """(N, C, H / 4, W / 4) -> prob_logits and thresh_logits, (N, 1, H, W) each, in training; prob_logits in evaluation.

    Two tensors and not one of two channels: joining and parting them again would move 16 bytes a pixel for nothing.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 64, smooth: bool = False) -> None:
        super().__init__()
        self.prob = _branch(in_channels, hidden_channels, smooth)
        self.thresh = _branch(in_channels, hidden_channels, smooth)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not self.training:
            return self.prob(x)
        if not torch.compiler.is_compiling():
            return self.prob(x), self.thresh(x)
        # Compiled, the first convolutions are one: x is read once, and its two gradients need no sum. In eager mode the
        # halves of one map would have to be copied.
        weights: list[torch.Tensor] = [branch.get_parameter("0.weight") for branch in (self.prob, self.thresh)]
        prob, thresh = F.conv2d(x, torch.cat(weights), padding=1).chunk(2, dim=1)
        return _rest(self.prob, prob), _rest(self.thresh, thresh)
