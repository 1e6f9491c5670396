"""The detector: encoder, decoder and head, and the groups of its parameters.

Comes in: images on a canvas. Goes out: logits of prob_map and thresh_map; `forward` runs it as the settings say.
"""

import math
from typing import cast

import timm.layers
import torch
from torch import nn

from engine.config import Config, ModelsConfig
from engine.model.decoder import Decoder
from engine.model.encoder import build_encoder
from engine.model.head import Head
from engine.model.norms import fuse_norms
from engine.model.upsample import sum_gradients
from engine.model.widths import HRNet, pad_first_branch, pad_input
from pipelines.errors import UserError

PARTS = ("encoder", "decoder", "head")
# How timm's models call what follows their stem: layer1 (ResNet, HRNet), blocks, stages, s1 (RegNet), features.
STAGES = ("layer", "stage", "block", "s1", "features", "transition")


class DBNet(nn.Module):
    """image (N, 3, H, W), ImageNet-normalised, H and W multiples of 32 -> logits at full resolution.

    Returns (prob_logits, thresh_logits), each (N, 1, H, W), in training mode and prob_logits in evaluation mode.
    """

    def __init__(self, models: ModelsConfig) -> None:
        super().__init__()
        e, d, h = models.encoder, models.decoder, models.head
        self.encoder = build_encoder(e.name, e.weights, e.hrnet_incre_head)
        self.decoder = Decoder(self.encoder.channels, d.inner_channels, d.output_channels, d.upsample, d.batch_norm)
        self.head = Head(self.decoder.out_channels, h.hidden_channels or self.decoder.out_channels // 4, h.smooth)
        _initialise(self.decoder)
        _initialise(self.head)
        _start_small(self.head)
        sum_gradients(self)
        if e.pad_widths != "none":
            _pad_widths(cast(HRNet, self.encoder), self.decoder, e.name, int(e.pad_widths))

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return self.head(self.decoder(self.encoder(image)))


def _pad_widths(encoder: HRNet, decoder: Decoder, name: str, width: int) -> None:
    pad_first_branch(encoder, name, width)
    if encoder.incre_modules is None:  # its first map is the branch itself
        pad_input(decoder.laterals.get_submodule("0.0"), encoder.channels[0], width)


def _initialise(part: nn.Module) -> None:
    """The baseline's start: Kaiming-normal convolutions, BN weight 1 and bias 1e-4."""
    for module in part.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 1e-4)


def _start_small(head: Head) -> None:
    """Last layers that start near a prior: P = 0.1, T = 0.5, logits with a spread of some tenths.

    The baseline's start has logits of +-5, most of them confidently wrong. The first 70 steps of the demo went into
    unlearning them, and with one seed of three the probability map ended constant: under OHEM that is a minimum, and
    with nothing in the features left to tell pixels apart there was no way out (H-mean 0). From here the same seeds
    reach 0.78 to 0.85 where they had 0 (epoch 4) and 0.986 to 0.998 where they had 0, 0.949 and 0.970 (epoch 8).
    """
    for branch, prior in ((head.prob, 0.1), (head.thresh, 0.5)):
        last = [module for module in branch.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))][-1]
        fan_in = last.in_channels if isinstance(last, nn.ConvTranspose2d) else last.weight[0].numel()
        nn.init.normal_(last.weight, std=0.17 * fan_in**-0.5)
        assert last.bias is not None
        nn.init.constant_(last.bias, math.log(prior / (1 - prior)))


def build_model(config: Config) -> DBNet:
    """The detector of a configuration, in channels_last where asked, frozen parts without gradients, norms fused.

    Raises:
        UserError: unknown encoder, weights that do not fit, or nothing left to train.
    """
    model = DBNet(config.models)
    for name in PARTS:
        _freeze(getattr(model, name), getattr(config.models, name).freeze)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("models.*.freeze: every part is frozen, nothing is left to train")
    if config.speed.fused_norms:
        fuse_norms(model, config.trainer.kernels)
    return model.to(memory_format=torch.channels_last) if config.trainer.channels_last else model


def _freeze(part: nn.Module, freeze: str | bool) -> None:
    """`stem` freezes the children before the first stage or block; `all` (True) the whole part."""
    if freeze in ("all", True):
        part.requires_grad_(False)
    if freeze != "stem":
        return
    children = list(part.named_children())
    first = next((i for i, (name, _) in enumerate(children) if name.startswith(STAGES)), 0)
    if first == 0:
        names = ", ".join(name for name, _ in children[:5])
        raise UserError(
            f"models.encoder.freeze=stem: cannot tell the stem of this encoder ({names}, ...); use none or all"
        )
    for _, child in children[:first]:
        child.requires_grad_(False)


def frozen_norms_to_eval(model: DBNet) -> None:
    """Keeps BatchNorm layers without trainable parameters in evaluation mode, so their statistics stay fixed too."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not module.weight.requires_grad:
            module.eval()


def synchronise_norms(model: DBNet) -> DBNet:
    """Its BatchNorm layers as SyncBatchNorm, same tensors and names; timm's norms keep their activation.

    In training they need GPUs and a process group; in evaluation they are what they were.
    """
    return timm.layers.convert_sync_batchnorm(model)


def parameter_groups(model: DBNet, config: Config) -> list[dict]:
    """One optimizer group a part, with `lr_scale` and its own weight decay; frozen parameters are left out."""
    groups = []
    for name in PARTS:
        settings = getattr(config.models, name)
        params = [p for p in getattr(model, name).parameters() if p.requires_grad]
        if params:
            decay = config.models.optimizer.weight_decay * settings.decay_scale
            groups.append({"params": params, "weight_decay": decay, "lr_scale": settings.lr_scale, "name": name})
    return groups
