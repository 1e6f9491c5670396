"""The contest baseline's Lightning checkpoint (Upstage's receipt text detection baseline) as a detector of ours.

    models, tensors = convert(theirs)                    # settings that build the network, and its weights

    theirs (below `model.`)            ours
    encoder.model.*                    encoder.*
    decoder.inners.i                   decoder.laterals.i.0
    decoder.outers.j                   decoder.outs.(3 - j).0      coarsest first
    head.binarize.*                    head.prob.*
    head.thresh.*                      head.thresh.*

Two things differ besides names. They join the decoder's maps coarsest first, we finest first: the blocks of the heads'
first weight change places. Their transposed convolution has a bias before a BatchNorm, which takes it out again: the
bias goes into the norm's running mean, which is exact.

The file holds neither the encoder's name nor sizes, since the baseline saves no hyperparameters. The name is given, or
found by the names and shapes of the tensors among the encoders that entrants used.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from engine.config.load import from_dict
from engine.model import DBNet
from engine.model.encoder import build_encoder
from pipelines.errors import UserError

MARKS = ("encoder.model.", "decoder.inners.", "head.binarize.")  # of this baseline, after its prefixes are stripped
LEVELS = 4
# What entrants reported, by a module that only their family has: making a model to look at takes up to a second.
ENCODERS = {
    "stage4": (
        "hrnet_w44", "hrnet_w18", "hrnet_w18_small", "hrnet_w18_small_v2", "hrnet_w30", "hrnet_w32", "hrnet_w40",
        "hrnet_w48", "hrnet_w64",
    ),
    "stages_0": ("convnext_tiny", "convnext_small", "convnext_base"),
    "conv_stem": (
        "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4",
        "efficientnet_b5", "efficientnet_b7", "mobilenetv3_large_100", "lcnet_050", "lcnet_100",
    ),
    "layer1": ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d"),  # HRNet has this one too
}  # fmt: skip
DATA = {"image_size": [640, 640]}  # its canvas; the file does not tell
POST = {"bin_thresh": 0.3, "box_thresh": 0.4}


def is_baseline(names: Iterable[str]) -> bool:
    """Whether these are the tensors of a baseline detector."""
    names = list(names)
    return all(any(name.startswith(mark) for name in names) for mark in MARKS)


def convert(tensors: Mapping[str, torch.Tensor], encoder: str = "") -> tuple[dict, dict[str, torch.Tensor]]:
    """A baseline's tensors as ours.

    Args:
        tensors: by the baseline's names, without Lightning's prefix.
        encoder: timm name of the encoder; "" = it is looked for.

    Returns:
        settings of `models` that build the network, and its tensors.

    Raises:
        UserError: it is a variant of the baseline that our network cannot be, or its encoder is not found.
    """
    _refuse_variants(tensors)
    decoder = _decoder(tensors)
    head = {**_branch(tensors, "binarize", "prob"), **_branch(tensors, "thresh", "thresh")}
    channels = [tensors[f"decoder.inners.{i}.weight"].shape[1] for i in range(LEVELS)]
    given = {n.removeprefix(MARKS[0]): t for n, t in tensors.items() if n.startswith(MARKS[0])}
    # An HRNet's four branches are its maps where its channel-increasing heads are left out.
    branches = [given.get(f"stage4.0.branches.{i}.0.conv1.weight") for i in range(LEVELS)]
    incre = channels != [weight.shape[0] for weight in branches if weight is not None and weight.ndim]
    name, reads = _find_encoder(given, incre, encoder)
    if reads != channels:
        raise UserError(
            f"this baseline reads maps of {channels} channels from {name}; this engine reads {reads}, those of strides "
            "4 to 32"
        )
    body = {f"encoder.{key}": tensor for key, tensor in given.items()}
    inner, output = tensors["decoder.inners.0.weight"].shape[0], decoder["decoder.outs.0.0.weight"].shape[0]
    models = {
        "encoder": {"name": name, "hrnet_incre_head": incre},
        "decoder": {"inner_channels": inner, "output_channels": output, "upsample": "nearest", "batch_norm": False},
        "head": {"hidden_channels": head["head.prob.0.weight"].shape[0], "smooth": False},
    }
    converted = {**body, **decoder, **head}
    with torch.device("meta"):  # names and shapes: whatever else is odd about the file shows here
        own = {key: tensor.shape for key, tensor in DBNet(from_dict({"models": models}).models).state_dict().items()}
    odd = sorted(
        key for key in own.keys() | converted.keys() if key not in converted or own.get(key) != converted[key].shape
    )
    if odd:
        raise UserError(f"{len(odd)} tensors of this baseline are missing or of another shape, e.g. {odd[0]} of ours")
    return models, converted


def _refuse_variants(tensors: Mapping[str, torch.Tensor]) -> None:
    levels = {found[1] for name in tensors if (found := re.match(r"decoder\.inners\.(\d+)\.", name))}
    if levels != {str(i) for i in range(LEVELS)}:
        raise UserError(f"this baseline's decoder has {len(levels)} levels; this engine's has {LEVELS}")
    if any(re.fullmatch(r"decoder\..*\.bias", name) for name in tensors):
        raise UserError("this baseline was trained with biases in its decoder (bias: True); this engine's has none")
    other = [n for n in tensors if n.startswith("decoder.") and not re.match(r"decoder\.(inners|outers)\.\d", n)]
    if other:
        raise UserError(f"this baseline's decoder has parts that this engine's has not ({other[0]})")
    for branch in ("binarize", "thresh"):
        if f"head.{branch}.3.1.weight" in tensors:
            raise UserError("this baseline was trained with smooth: True, whose head this engine's cannot be")
        for layer in (0, 3, 6):
            _weight(tensors, f"head.{branch}.{layer}.weight")


def _weight(tensors: Mapping[str, torch.Tensor], *names: str) -> torch.Tensor:
    """The convolution's weight of the first of the names that is there."""
    found = next((tensors[name] for name in names if name in tensors), None)
    if found is None or found.ndim != 4:
        raise UserError(f"this baseline's {names[0]} is missing, or no weight of a convolution")
    return found


def _decoder(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {f"decoder.laterals.{i}.0.weight": _weight(tensors, f"decoder.inners.{i}.weight") for i in range(LEVELS)}
    for j in range(LEVELS):  # all but the last, which needs no upsampling, are a sequence
        weight = _weight(tensors, f"decoder.outers.{j}.0.weight", f"decoder.outers.{j}.weight")
        found[f"decoder.outs.{LEVELS - 1 - j}.0.weight"] = weight
    return found


def _branch(tensors: Mapping[str, torch.Tensor], theirs: str, ours: str) -> dict[str, torch.Tensor]:
    """One branch of the head: its first weight's blocks finest first, biases before a norm moved into its mean."""
    found = {
        f"head.{ours}.{name.removeprefix(f'head.{theirs}.')}": tensor
        for name, tensor in tensors.items()
        if name.startswith(f"head.{theirs}.")
    }
    first = f"head.{ours}.0.weight"
    found[first] = torch.cat(found[first].chunk(LEVELS, dim=1)[::-1], dim=1)
    for layer in (0, 3):
        bias, mean = found.pop(f"head.{ours}.{layer}.bias", None), f"head.{ours}.{layer + 1}.running_mean"
        if bias is not None and mean in found and found[mean].shape == bias.shape:
            found[mean] = found[mean] - bias
    return found


def _find_encoder(given: Mapping[str, torch.Tensor], incre: bool, named: str) -> tuple[str, list[int]]:
    """An encoder with exactly these tensors, the one that is named or one that entrants used: timm name, channels.

    Exactly: ResNet-18's are all in ResNet-34's.
    """
    family = next((names for part, names in ENCODERS.items() if any(key.split(".")[0] == part for key in given)), ())
    names = [named] if named else family
    shapes = {key: tensor.shape for key, tensor in given.items()}
    for name in names:
        with torch.device("meta"):
            encoder = build_encoder(name, "", incre)
        own = encoder.state_dict()
        if {key: tensor.shape for key, tensor in own.items()} == shapes:
            return name, list(encoder.channels)
    tried = named or f"one of the {len(names)} that were tried ({', '.join(names) or 'none looks like it'})"
    raise UserError(
        f"the encoder of this file is not {tried}; name the timm model it was trained with: models.encoder.name=NAME"
    )
