"""What `python -m engine.export --import` does: tensors from a PyTorch file, and a run of the baseline's checkpoint."""

from pathlib import Path

import torch

from engine import checkpoint
from engine.config import Config, from_dict, keys, load_config, to_dict, to_yaml
from engine.export import foreign, lightning
from pipelines.errors import UserError


def run(source: Path, out: Path, settings: list[str]) -> dict:
    """Writes the tensors of `source` to `out`: a .safetensors file, or for a baseline's checkpoint a folder too.

    Returns:
        `kind` (tensors, baseline), `out`, `tensors` (name, shape, dtype of each), `numbers`, `left_out`, `notice`.

    Raises:
        UserError: as `foreign.read` and `lightning.convert`; `out` exists or is misnamed.
    """
    as_file = out.suffix == ".safetensors"
    if out.exists() and (as_file or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name another")
    if out.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise UserError(f"--out {out}: the name must end in .safetensors, or be a folder's")
    tensors, left = foreign.read(source)
    notice, baseline = "", lightning.is_baseline(tensors)
    if baseline:
        tensors, left, notice = _baseline(tensors, left, source, out, settings, as_file)
    elif not as_file:
        raise UserError(f"--out {out}: the name must end in .safetensors (only a baseline's checkpoint makes a folder)")
    elif settings:
        raise UserError(f"{settings[0]}: settings go with a baseline's checkpoint, and {source} is none")
    else:
        foreign.save(tensors, out, source)
    rows = [
        {"name": name, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
        for name, t in tensors.items()
    ]
    numbers = sum(t.numel() for t in tensors.values())
    kind = "baseline" if baseline else "tensors"
    return {"kind": kind, "out": str(out), "tensors": rows, "numbers": numbers, "left_out": left, "notice": notice}


def _baseline(
    tensors: dict, left: list[str], source: Path, out: Path, settings: list[str], as_file: bool
) -> tuple[dict[str, torch.Tensor], list[str], str]:
    """Converts, writes, and says what a user should know."""
    name = next((item.partition("=")[2] for item in settings if item.startswith("models.encoder.name=")), "")
    parts = [n for n in tensors if n.startswith(("encoder.", "decoder.", "head."))]
    others = [n for n in tensors if n not in parts]
    try:
        models, converted = lightning.convert({n: tensors[n] for n in parts}, name)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    config = _settings(models, settings)
    if as_file:
        foreign.save(converted, out, source)
        changed = [f"models.{part}.{key}={value}" for part, values in models.items() for key, value in values.items()]
        notice = "a detector of the contest's baseline; init_from takes it with " + " ".join(map(_plain, changed))
    else:
        folder = out / "checkpoints"
        parts = {"model": {k: t.clone(memory_format=torch.contiguous_format) for k, t in converted.items()}}
        written = checkpoint.write(folder, parts, {"step": 0}, to_yaml(config))
        checkpoint.link(folder, "last", written)
        notice = (
            f"a detector of the contest's baseline, encoder {models['encoder']['name']}; the file names no canvas: "
            f"data.image_size={config.data.image_size} is taken (give another if it was trained on another)"
        )
    return converted, [*left, *others], notice


def _plain(item: str) -> str:
    return item.replace("=True", "=true").replace("=False", "=false")


def _settings(models: dict, settings: list[str]) -> Config:
    """The baseline's settings, and those given."""
    base = to_dict(from_dict({"models": models, "data": lightning.DATA, "post": lightning.POST, "preset": "baseline"}))
    fixed = [f"models.{part}.{key}" for part, values in models.items() for key in values if key != "name"]
    for item in settings:
        if item.partition("=")[0] in fixed and item.partition("=")[0] in keys():
            raise UserError(f"{item}: the tensors decide this one")
    return load_config(settings, base=base)[0]
