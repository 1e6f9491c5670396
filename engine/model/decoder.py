"""Decoder: the UNet-type feature pyramid of the original baseline.

    lateral_i = conv1x1(map_i)                      C_i -> inner_channels
    top-down:   p_i = lateral_i + upsample2(p_{i+1})
    out_i     = conv3x3(p_i)                        inner_channels -> output_channels
    result    = concat(upsample(out_i) to stride 4) 4 * output_channels

The baseline has no norm here and upsamples nearest; batch norm and bilinear are options.
Source: DBNet, Liao et al. 2020, arXiv 1911.08947; FPN, Lin et al. 2017, arXiv 1612.03144.
"""

import torch
import torch.nn.functional as F
from torch import nn

from engine.model.upsample import dense_gradient, repeat


def conv_block(in_channels: int, out_channels: int, kernel_size: int, batch_norm: bool) -> nn.Sequential:
    """A convolution without bias, followed by BN + ReLU when `batch_norm`."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)]
    if batch_norm:
        layers += [nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Decoder(nn.Module):
    """Four maps at strides 4..32 -> one map at stride 4.

    Args:
        channels: C_i of the four maps, finest first.
        inner_channels: width of the laterals.
        output_channels: width of each level's output; the result has 4 times as many.
        upsample: "nearest" or "bilinear".
        batch_norm: BN + ReLU after every convolution.
    """

    def __init__(
        self, channels: list[int], inner_channels: int = 256, output_channels: int = 64,
        upsample: str = "nearest", batch_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.upsample = upsample
        self.laterals = nn.ModuleList(conv_block(c, inner_channels, 1, batch_norm) for c in channels)
        self.outs = nn.ModuleList(conv_block(inner_channels, output_channels, 3, batch_norm) for _ in channels)
        self.out_channels = output_channels * len(channels)

    def _resize(self, x: torch.Tensor, size: torch.Size, levels: int) -> torch.Tensor:
        """x -> `size`, which lies `levels` halvings of the image below it."""
        align = None if self.upsample == "nearest" else False
        if torch.compiler.is_exporting():  # sizes are symbols; of sides that are multiples of 32 the factor is exact
            return F.interpolate(x, scale_factor=2.0**levels, mode=self.upsample, align_corners=align)
        factor = size[0] // x.shape[-2]
        whole = (x.shape[-2] * factor, x.shape[-1] * factor) == tuple(size)
        if self.upsample == "nearest" and whole:
            return repeat(x, factor)
        return F.interpolate(x, size=size, mode=self.upsample, align_corners=align)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """maps: 4 x (N, C_i, H / s_i, W / s_i) -> (N, 4 * output_channels, H / 4, W / 4)."""
        paths = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(paths) - 2, -1, -1):
            paths[i] = paths[i] + self._resize(paths[i + 1], paths[i].shape[-2:], 1)
        size = paths[0].shape[-2:]
        outs = [out(x) for out, x in zip(self.outs, paths, strict=True)]
        return torch.cat(
            [dense_gradient(outs[0])] + [self._resize(x, size, i) for i, x in enumerate(outs[1:], 1)], dim=1
        )
