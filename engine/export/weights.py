"""A detector's weights as one safetensors file, for plain timm and our decoder and head.

    from engine.export import weights
    detector = weights.load("FILE.safetensors")                         # the whole detector, in evaluation mode

    tensors = safetensors.torch.load_file("FILE.safetensors")           # or its encoder alone, without this project
    encoder = timm.create_model(NAME, features_only=True, out_indices=INDICES)
    encoder.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("encoder.")})

NAME, INDICES and the rest of what is needed stand in the file's header (`safetensors.safe_open(FILE, "pt").metadata()`:
`encoder`, `out_indices`, `models`, `mean`, `std`). The file starts a training too: `init_from=FILE.safetensors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors

from engine.checkpoint.store import load_model, read_safetensors, write_safetensors
from engine.config.load import from_dict, to_dict
from engine.export.network import Exported
from engine.model import DBNet
from pipelines.errors import UserError

PARTS = ("encoder", "decoder", "head")  # of the settings, what builds the network


def write(exported: Exported, path: Path, facts: Mapping[str, str]) -> int:
    """Writes all tensors by their plain names and the settings that build the network; returns their number."""
    detector, models = exported.module.detector, to_dict(exported.config)["models"]
    header = dict(facts) | {
        "models": json.dumps({name: models[name] for name in PARTS}),
        "out_indices": json.dumps(list(detector.encoder.feature_info.out_indices)),
    }
    if not exported.config.models.encoder.hrnet_incre_head and "hrnet" in header["encoder"]:
        header["feature_location"] = ""  # a further argument of create_model
    tensors = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    write_safetensors(tensors, path, header)
    return len(tensors)


def load(path: str | Path) -> DBNet:
    """The detector of a file that `write` made, in evaluation mode on the CPU: image -> logits (N, 1, H, W).

    Raises:
        UserError: no such file, another kind of file, settings in it that make no network or another one.
    """
    path = Path(path)
    tensors = read_safetensors(path)
    with safetensors.safe_open(path, "pt") as file:
        header = file.metadata() or {}
    try:
        settings = json.loads(header["models"])
    except (KeyError, ValueError):
        raise UserError(f"{path}: its header holds no settings of a detector; was it written by --weights?") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: its header holds no settings of a detector")
    model = DBNet(from_dict({"models": settings}).models)
    load_model(model, tensors, path)
    return model.eval()
