"""Encoder: any timm `features_only` model, reduced to its maps at strides 4, 8, 16 and 32.

HRNet comes in two forms (`models.encoder.hrnet_incre_head`): with timm's channel-increasing heads its maps have
128/256/512/1024 channels (what the published study trained); without them 44/88/176/352 for W44, 1.7 M fewer
parameters and 1.8 % fewer FLOPs.

Source: timm (Wightman 2019); HRNet, Wang et al. 2020, arXiv 1908.07919.
"""

import http.client
import shlex
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import FeatureInfo
from torch import nn

from pipelines.errors import UserError

HUB_TIMEOUT_S = 10.0
STRIDES = (4, 8, 16, 32)
# Activations of torch and timm, by class name in small letters, whose gradient is a function of their input.
NEED_INPUT = ("hardswish", "hardsigmoid", "silu", "swish", "mish", "hardmish", "elu", "celu", "selu")


class Encoder(nn.Module):
    """What this engine asks of timm's feature extractors. For types only: each is of a class of its own."""

    channels: list[int]
    feature_info: FeatureInfo


def build_encoder(name: str, weights: str = "", hrnet_incre_head: bool = True) -> Encoder:
    """Builds the encoder.

    Args:
        name: timm model name.
        weights: "" for random, "timm" for timm's pretrained weights from its hub, else a local file.
        hrnet_incre_head: keep HRNet's channel-increasing heads; ignored for other models.

    Returns:
        module: image (N, 3, H, W) -> four maps (N, C_i, H / s, W / s), s in STRIDES; `.channels` holds the C_i.

    Raises:
        UserError: unknown model, a model without these strides, weights that cannot be had or do not fit.
    """
    if name.split(".")[0] not in timm.list_models():  # a pretrained tag may follow: hrnet_w44.ms_in1k
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise UserError(
            f"models.encoder.name={name}: timm has no such model" + (f"; near names: {near}" if near else "")
        )
    options = {} if hrnet_incre_head or not name.startswith("hrnet") else {"feature_location": ""}
    with torch.device("meta"):  # no memory, no initialisation: only the list of its maps is wanted
        probe = _create(name, **options)
    reductions = list(probe.feature_info.reduction())
    if not all(s in reductions for s in STRIDES):
        raise UserError(f"models.encoder.name={name}: its maps have strides {reductions}; needed are {list(STRIDES)}")
    _require_any_size(probe, name)
    # The deepest map of a stride is the last one listed with it.
    indices = tuple(len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES)
    encoder = _create(name, out_indices=indices, **options)
    if weights == "timm":
        encoder = _from_hub(name, indices, options)
    elif weights:
        load_encoder_file(encoder, Path(weights))
    encoder.channels = encoder.feature_info.channels()
    _write_apart(encoder)
    return encoder


def _create(name: str, **options: Any) -> Encoder:
    return cast(Encoder, timm.create_model(name, features_only=True, **options))


def _write_apart(encoder: nn.Module) -> None:
    """Takes hard-swish and its like out of place: their gradients need their inputs, which in place are copied first.

    4 % of a step of `receipts_cpu` in eager mode (ratios of 8 pairs in turn); compiled it makes no difference. ReLU's
    gradient needs its output only.
    """
    module: Any  # an activation has `inplace`, of its own accord
    for module in encoder.modules():
        if getattr(module, "inplace", False) and type(module).__name__.lower() in NEED_INPUT:
            module.inplace = False


def _require_any_size(probe: Encoder, name: str) -> None:
    """Refuses models of one fixed input size (plain Swin) and those whose maps are not NCHW."""
    try:
        with torch.device("meta"):
            maps = probe.to("meta")(torch.empty(1, 3, 64, 96))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"models.encoder.name={name}: it does not take images of any size ({reason})") from None
    if [m.shape[1] for m in maps] != list(probe.feature_info.channels()):
        raise UserError(f"models.encoder.name={name}: its maps are not (N, C, H, W); use another encoder")


def _from_hub(name: str, indices: tuple[int, ...], options: dict[str, str]) -> Encoder:
    """timm's pretrained weights; every way the hub can be out of reach ends in one line for the user.

    Where the hub does not answer, only files that are there already are taken: left alone, its client tries each of two
    files six times, over 50 seconds and 22 lines.
    """
    from huggingface_hub import constants, errors

    offline = constants.HF_HUB_OFFLINE
    silent = "" if offline else _silence(constants.ENDPOINT)
    try:
        constants.HF_HUB_OFFLINE = offline or bool(silent)
        return _create(name, pretrained=True, out_indices=indices, **options)
    except (OSError, RuntimeError, ValueError, errors.HfHubHTTPError) as error:
        reason = silent or str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"models.encoder.weights=timm: cannot get pretrained weights of {name} ({reason}); download the file once "
            "where the hub can be reached and give models.encoder.weights=PATH, or leave it empty to start from random"
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def _silence(address: str) -> str:
    """Why nothing answers at an address, asked once; "" where something does, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return ""
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        # Certificates are the client's own affair: it may have others than Python's.
        return "" if isinstance(reason, ssl.SSLError) else f"{address} does not answer: {reason}"
    return ""


def read_tensors(path: Path, key: str = "models.encoder.weights") -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: the file is missing, or is another: a pickle (.pt, .pth, .ckpt, .bin) is never opened here.
    """
    if path.suffix != ".safetensors" and path.is_file():
        raise UserError(
            f"{key}={path}: expected a safetensors file; make one with "
            f"`python -m engine.export --import {shlex.quote(str(path))} --out weights.safetensors`"
        )
    from engine.checkpoint.store import read_safetensors  # here, so that a step needs torch and timm only

    return read_safetensors(path)


def load_encoder_file(encoder: nn.Module, path: Path) -> None:
    """Loads encoder weights by name from a timm file or from one of our checkpoints.

    timm's `features_only` wrapper renames `blocks.0` to `blocks_0`, so names are compared with dots as underscores.

    Raises:
        UserError: a tensor of the encoder is missing or has another shape (step counters of BatchNorm excepted).
    """
    found = {}
    for key, value in read_tensors(path).items():
        for prefix in ("module.", "_orig_mod.", "model.", "encoder.", "backbone."):
            key = key.removeprefix(prefix)
        found[key.replace(".", "_")] = value
    own = encoder.state_dict()
    matched = {}
    for key, value in own.items():
        candidate = found.get(key.replace(".", "_"))
        if candidate is not None and candidate.shape == value.shape:
            matched[key] = candidate
    missing = [key for key in own if key not in matched and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"{path}: {len(matched)} of the encoder's {len(own)} tensors are in it (not {', '.join(missing[:3])}); "
            "is it the file of another model?"
        )
    encoder.load_state_dict(matched, strict=False)
