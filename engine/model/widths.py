"""Width padding: HRNet's first branch computed in more channels than it has, the rest of them zero.

44 bf16 channels of NHWC are 88 bytes a pixel, no multiple of 16: no 16-byte loads, no TMA, and a tile of 64 columns of
which 20 are idle anyway. In 48 (or 64) channels of which the last are zero, the function and its training are the same:

    conv   weight padded by zeros in both directions      0 in -> 0 out
    BN     batch mean 0 and variance 0, scale and shift 0   0 in -> 0 out
    ReLU, sum, nearest upsampling                           0 in -> 0 out

Parameters, their gradients, the optimizer's state, EMA, DDP's buckets and checkpoints keep 44 channels: weights are
padded inside the forward pass (compiled, the pad joins the cast to bf16 that is there in any case), and the gradient of
a pad is a slice. So there are no padded weights that could drift from zero.

Price for W44 at 48: 5.5 % more FLOPs in all, 3.4 % more bytes of convolution outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from engine.model.encoder import Encoder
from pipelines.errors import UserError


class PaddedConv2d(nn.Conv2d):
    """A Conv2d whose inputs have `more_in` and whose outputs get `more_out` zero channels beyond the weight's own."""

    more_in: int
    more_out: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, self.more_in, 0, self.more_out))
        weight = weight.contiguous(memory_format=torch.channels_last) if _channels_last(x) else weight
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation)


class PaddedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm2d whose inputs have `more` zero channels beyond its own `num_features`."""

    more: int
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (F.pad(p, (0, self.more)) for p in (self.weight, self.bias))
        mean, var = (F.pad(b, (0, self.more)) for b in (self.running_mean, self.running_var))
        if self.training:
            self.num_batches_tracked.add_(1)
        y = F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if self.training:
            self.running_mean.copy_(mean[: self.num_features])
            self.running_var.copy_(var[: self.num_features])
        return y


def _channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class HRNet(Encoder):
    """What is asked of timm's HighResolutionNetFeatures besides. For types only."""

    stage4_cfg: dict[str, Any]
    incre_modules: nn.ModuleList | None


def pad_first_branch(encoder: HRNet, name: str, width: int) -> None:
    """Computes the first branch of an HRNet in `width` channels, in place.

    Without its channel-increasing heads the encoder's first map then has `width` channels; see `pad_input`.

    Args:
        encoder: timm's HighResolutionNetFeatures.
        name: its timm name, for the message.
        width: at least the branch's own width.

    Raises:
        UserError: no HRNet, or a branch wider than `width`.
    """
    if not name.startswith("hrnet"):
        raise UserError(f"models.encoder.pad_widths={width}: only an HRNet has such a branch, not {name}; use none")
    own = encoder.stage4_cfg["num_channels"][0]
    if own > width:
        raise UserError(f"models.encoder.pad_widths={width}: the first branch of {name} has {own} channels; use none")
    # Nothing else in these parts has the branch's width: the other branches have 2, 4 and 8 times it. The heads have
    # (32, 64, ... channels), so of the first one only what reads the branch is padded.
    for part in ("transition1", "transition2", "transition3", "stage2", "stage3", "stage4"):
        for module in list(encoder.get_submodule(part).modules()):
            _pad(module, own, width)
    if encoder.incre_modules is not None:
        for reader in ("0.0.conv1", "0.0.downsample.0"):
            pad_input(encoder.incre_modules.get_submodule(reader), own, width)


def pad_input(conv: nn.Module, own: int, width: int) -> None:
    """Makes a convolution over `own` channels take `width`, the last of them zero, in place."""
    assert isinstance(conv, nn.Conv2d) and conv.in_channels == own
    _as_padded(conv, width - own, 0)


def _pad(module: nn.Module, own: int, width: int) -> None:
    more = width - own
    if isinstance(module, nn.Conv2d) and own in (module.in_channels, module.out_channels):
        _as_padded(module, more * (module.in_channels == own), more * (module.out_channels == own))
    elif isinstance(module, nn.BatchNorm2d) and module.num_features == own:
        module.__class__ = PaddedBatchNorm2d
        assert isinstance(module, PaddedBatchNorm2d)
        module.more = more


def _as_padded(conv: nn.Conv2d, more_in: int, more_out: int) -> None:
    # The class is changed in place: parameters, names, hooks and groups stay what they are.
    assert conv.bias is None and conv.groups == 1 and conv.padding_mode == "zeros"
    conv.__class__ = PaddedConv2d
    assert isinstance(conv, PaddedConv2d)
    conv.more_in, conv.more_out = more_in, more_out
