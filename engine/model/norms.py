"""BatchNorm + ReLU, and BatchNorm + shortcut + ReLU, as one operator in training mode (`speed.fused_norms`).

Bytes an element of bfloat16, forward and backward: by Inductor's own count in a chain of BasicBlocks; of the operator,
whose readings inside Inductor does not see, by design:

                                              plain     with a shortcut    chain, sums of gradients included
    torch.compile of the layers               6 + 14    8 + 18             24.9
    this, eager                               6 + 10    8 + 14 and 6       22.4
    this, compiled (kernels.norm_relu.fold)   6 + 10    8 + 16             20.9

Which pairs: in every nn.Sequential of encoder and decoder a BatchNorm2d followed by ReLU (HRNet's transitions and
fusions); the stem's bn1/act1 and bn2/act2; all norms of timm's BasicBlock and Bottleneck that have nothing else in
them. Not the head's, which are fused otherwise (`engine.model.head`). A fused norm applies its ReLU in evaluation mode
too, by the plain functions, and the activation behind it passes its input on: so a norm that is frozen in evaluation
mode within a training model keeps its ReLU.

Classes are changed in place: parameters, buffers, names, hooks and state_dict stay what they are.
"""

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from engine.model.norm_double import follow
from engine.model.widths import PaddedBatchNorm2d
from kernels.norm_relu import norm_relu


class _NormReLU(nn.BatchNorm2d):
    """A BatchNorm2d that adds a shortcut, if one is given, and applies ReLU; `kernels` as `trainer.kernels`."""

    kernels: str
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, y: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        if not self.training:
            z = super().forward(y)
            return F.relu(z if shortcut is None else z.add_(shortcut), inplace=True)
        weight, bias = self._terms()
        if shortcut is not None:
            shortcut = shortcut.to(y.dtype)  # as timm's `x += shortcut`; under autocast it may be float32
        z, mean, var = norm_relu(y, weight, bias, shortcut, eps=self.eps, implementation=self.kernels)
        follow(self, mean[: self.num_features], var[: self.num_features], y.numel() // y.shape[1])
        return z

    def _terms(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weight, self.bias


class NormReLU(_NormReLU):
    """BatchNorm2d and ReLU."""


class PaddedNormReLU(_NormReLU, PaddedBatchNorm2d):
    """PaddedBatchNorm2d and ReLU: zero channels beyond its own stay zero."""

    def _terms(self) -> tuple[torch.Tensor, torch.Tensor]:
        return F.pad(self.weight, (0, self.more)), F.pad(self.bias, (0, self.more))


class AppliedReLU(nn.ReLU):
    """A ReLU that the norm before it has applied."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class FusedBasicBlock(BasicBlock):
    """timm's BasicBlock without extras, its shortcut added in its last norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.act1(self.bn1(self.conv1(x))))
        return self.bn2(y, x if self.downsample is None else self.downsample(x))


class FusedBottleneck(Bottleneck):
    """timm's Bottleneck without extras, its shortcut added in its last norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.conv3(self.act2(self.bn2(self.conv2(y))))
        return self.bn3(y, x if self.downsample is None else self.downsample(x))


FUSED_NORMS: dict[type[nn.Module], type[_NormReLU]] = {nn.BatchNorm2d: NormReLU, PaddedBatchNorm2d: PaddedNormReLU}
FUSED_BLOCKS: dict[type[nn.Module], tuple[type[nn.Module], int]] = {  # class, number of norms
    BasicBlock: (FusedBasicBlock, 2),
    Bottleneck: (FusedBottleneck, 3),
}
EXTRAS = ("se", "drop_path", "drop_block", "aa")  # of timm's blocks: None or an Identity where there is none


def fuse_norms(model: nn.Module, kernels: str) -> int:
    """Fuses every pair of the module docstring in a detector, in place; call it once, before compilation.

    Args:
        model: with `.encoder`.
        kernels: "auto", "triton" or "reference", as `trainer.kernels`.

    Returns:
        the number of norms fused.
    """
    pairs = [(getattr(model.encoder, f"bn{i}", None), getattr(model.encoder, f"act{i}", None)) for i in (1, 2)]
    parts = [getattr(model, name, nn.Identity()) for name in ("encoder", "decoder")]
    for module in [module for part in parts for module in part.modules()]:
        if type(module) is nn.Sequential:
            pairs += zip(module, list(module)[1:])
        elif type(module) in FUSED_BLOCKS:
            pairs += _fuse_block(module)
    found = [(norm, act) for norm, act in pairs if _is_pair(norm, act)]
    for norm, act in found:
        assert norm is not None and act is not None
        norm.__class__ = FUSED_NORMS[type(norm)]
        assert isinstance(norm, _NormReLU)
        norm.kernels = kernels
        act.__class__ = AppliedReLU
    return len(found)


def _fuse_block(block: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The block's pairs, after its class was changed; none, and the block as it was, where there is more in it."""
    fused, count = FUSED_BLOCKS[type(block)]
    pairs = [(getattr(block, f"bn{i}"), getattr(block, f"act{i}")) for i in range(1, count + 1)]
    extras = [getattr(block, name) for name in EXTRAS]
    if not all(_is_pair(*pair) for pair in pairs) or any(
        type(extra) not in (type(None), nn.Identity) for extra in extras
    ):
        return []
    block.__class__ = fused
    return pairs


def _is_pair(norm: nn.Module | None, act: nn.Module | None) -> bool:
    """Whether these are a BatchNorm2d with weights and a moving average of its statistics, and a ReLU."""
    if not isinstance(norm, nn.BatchNorm2d) or type(norm) not in FUSED_NORMS or type(act) is not nn.ReLU:
        return False
    return norm.affine and norm.track_running_stats and norm.momentum is not None
