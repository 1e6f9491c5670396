"""Tensors of PyTorch files from elsewhere.

    python -m engine.export --import FOREIGN.pt --out weights.safetensors

The result starts a training: `models.encoder.weights=weights.safetensors`, or `init_from=weights.safetensors` for a
whole detector of this engine. A checkpoint of the receipt contest's baseline becomes such a detector
(`engine.export.lightning`).

A PyTorch file (.pt, .pth, .ckpt, .bin) is a pickle, which is a program. It is read by torch's restricted reader only
(weights_only), never by another. That reader was bypassed twice, hence torch 2.11 or newer.
"""

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from engine.checkpoint import store
from engine.checkpoint.store import write_safetensors
from engine.config import Config
from engine.config.load import from_dict, keys, load_config, to_dict, to_yaml
from engine.export import check, lightning
from pipelines.errors import UserError

SAFE_TORCH = (2, 11)  # CVE-2025-32434 and CVE-2026-24747 ran code in spite of weights_only
# Where the weights lie in files of training programs: Lightning, timm (`model`, `state_dict_ema`), MMEngine, plain.
HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "network", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # of wrappers; stripped where every name has them
MOST_NAMES, MOST_DEPTH = 100_000, 8  # HRNet-W44 has 2,000; a pickle can name one table in itself a million times
# Tied weights are stored once and written twice; a tensor of stride 0 is any size out of 4 bytes.
MOST_GROWTH = 4
# What torch's reader raises for a file that is truncated, garbled or of another kind.
FAULTS = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    OverflowError, struct.error, MemoryError, zipfile.BadZipFile,
)  # fmt: skip


def read_foreign(path: Path) -> Any:
    """What a PyTorch file holds, by `torch.load(weights_only=True)` alone.

    Raises:
        UserError: an older torch, no file, code in the pickle, another format, a truncated file.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_TORCH:
        raise UserError(f"--import needs torch 2.11 or newer, this is {torch.__version__}: older ones run code from it")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text advises to switch the restriction off, so it is not passed on
        found = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"it asks for {found[1]}" if found else "it is no table of tensors"
        raise UserError(
            f"{path}: not read, {asks}; a file that holds more than tensors could run code; where it was written, "
            "save its weights alone (its state_dict)"
        ) from None
    except FAULTS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:200]
        raise UserError(f"{path}: not read, it is no whole PyTorch file ({reason})") from None


def _refuse_compressed(path: Path) -> None:
    """torch stores its entries as they are; a packed one may unpack to a thousand times its size."""
    try:
        if not zipfile.is_zipfile(path):
            return  # the format before torch 1.6, or none: torch.load says which
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{path}: not read, it is no whole PyTorch file ({error})") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path}: not read, it is a compressed archive, which PyTorch does not write")


def find_tensors(held: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights among what a file holds: {plain name: dense tensor on the CPU}, and what was left out, in words."""
    left = []
    for _ in range(MOST_DEPTH):  # a pickle can hold a table that holds itself
        if not isinstance(held, Mapping) or any(isinstance(value, torch.Tensor) for value in held.values()):
            break
        holder = next((key for key in HOLDERS if isinstance(held.get(key), Mapping)), None)
        if holder is None:
            break
        left += [f"{key} ({type(value).__name__})" for key, value in held.items() if key != holder]
        held = held[holder]
    found = {}
    for number, (name, value) in enumerate(_leaves(held) if isinstance(held, Mapping) else ()):
        if number > MOST_NAMES:
            raise UserError(f"more than {MOST_NAMES} entries: no table of weights")
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
        if plain and value.device.type == "cpu":
            found[name] = value.detach()
        else:
            left.append(f"{name} ({type(value).__name__})")
    for prefix in PREFIXES * 2:  # module._orig_mod.model.
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found, left


def _leaves(held: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(held, Mapping) and held and depth < MOST_DEPTH:
        for key, value in held.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
    else:
        yield prefix, held


def read(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors of a PyTorch file and what was left out, in words.

    Raises:
        UserError: as `read_foreign`; no tensors; more of them than the file has room for.
    """
    try:
        tensors, left = find_tensors(read_foreign(path))
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be a table of weights") from None
    if not tensors:
        raise UserError(f"{path}: holds no table of tensors" + (f", only {', '.join(left[:5])}" if left else ""))
    size, most = sum(t.numel() * t.element_size() for t in tensors.values()), MOST_GROWTH * path.stat().st_size
    if size > most:
        raise UserError(f"{path}: its tensors would take {size} bytes, more than a file of its size can hold")
    return tensors, left


def save(tensors: Mapping[str, torch.Tensor], out: Path, source: Path) -> None:
    """Writes tensors as safetensors, complete or not at all; `source` names them in an error.

    Raises:
        UserError: the format cannot hold them.
    """
    with check.draft(out, (".safetensors",)) as path:
        try:  # cloned: safetensors stores no strides and refuses tensors that share memory
            write_safetensors({k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}, path)
        except (safetensors.SafetensorError, KeyError, ValueError, UnicodeEncodeError) as error:
            raise UserError(f"{source}: its tensors do not fit into safetensors ({error})") from None


def import_file(source: Path, out: Path, settings: list[str]) -> dict:
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
    tensors, left = read(source)
    notice, baseline = "", lightning.is_baseline(tensors)
    if baseline:
        tensors, left, notice = _baseline(tensors, left, source, out, settings, as_file)
    elif not as_file:
        raise UserError(f"--out {out}: the name must end in .safetensors (only a baseline's checkpoint makes a folder)")
    elif settings:
        raise UserError(f"{settings[0]}: settings go with a baseline's checkpoint, and {source} is none")
    else:
        save(tensors, out, source)
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
    own = [n for n in tensors if n.startswith(("encoder.", "decoder.", "head."))]
    others = [n for n in tensors if n not in own]
    try:
        models, converted = lightning.convert({n: tensors[n] for n in own}, name)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    config = _settings(models, settings)
    if as_file:
        save(converted, out, source)
        changed = [f"models.{part}.{key}={value}" for part, values in models.items() for key, value in values.items()]
        words = " ".join(changed).replace("=True", "=true").replace("=False", "=false")
        notice = f"a detector of the contest's baseline; init_from takes it with {words}"
    else:
        folder = out / "checkpoints"
        parts = {"model": {k: t.clone(memory_format=torch.contiguous_format) for k, t in converted.items()}}
        written = store.write(folder, parts, {"step": 0}, to_yaml(config))
        store.link(folder, "last", written)
        notice = (
            f"a detector of the contest's baseline, encoder {models['encoder']['name']}; the file names no canvas: "
            f"data.image_size={config.data.image_size} is taken (give another if it was trained on another)"
        )
    return converted, [*left, *others], notice


def _settings(models: dict, settings: list[str]) -> Config:
    """The baseline's settings, and those given."""
    base = to_dict(from_dict({"models": models, "data": lightning.DATA, "post": lightning.POST, "preset": "baseline"}))
    fixed = [f"models.{part}.{key}" for part, values in models.items() for key in values if key != "name"]
    for item in settings:
        if item.partition("=")[0] in fixed and item.partition("=")[0] in keys():
            raise UserError(f"{item}: the tensors decide this one")
    return load_config(settings, base=base)[0]
