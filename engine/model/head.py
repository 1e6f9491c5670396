"""DB head: twin branches from stride 4 to full resolution, logits out (no sigmoid; the loss works on logits).

    branch: conv3x3 + BN + ReLU -> x2 + BN + ReLU -> x2 -> 1 channel
    x2 is a 2x2 transposed convolution of stride 2, or with `smooth` nearest upsampling and a 3x3 convolution.

Source: DBNet, Liao et al. 2020, arXiv 1911.08947, section 3.
"""

import torch
from torch import nn


def _double(in_channels: int, out_channels: int, smooth: bool, bias: bool) -> nn.Module:
    if smooth:
        return nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        )
    return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=bias)


def _branch(in_channels: int, hidden: int, smooth: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
        _double(hidden, hidden, smooth, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
        _double(hidden, 1, smooth, bias=True),
    )  # fmt: skip


class Head(nn.Module):
    """(N, C, H / 4, W / 4) -> prob_logits and thresh_logits, (N, 1, H, W) each, in training; prob_logits in evaluation.

    Two tensors and not one of two channels: joining and parting them again would move 16 bytes a pixel for nothing.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 64, smooth: bool = False) -> None:
        super().__init__()
        self.prob = _branch(in_channels, hidden_channels, smooth)
        self.thresh = _branch(in_channels, hidden_channels, smooth)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        prob_logits = self.prob(x)
        return (prob_logits, self.thresh(x)) if self.training else prob_logits
