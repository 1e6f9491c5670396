"""Checkpoints: a directory each, complete or absent, safetensors and JSON only (loading one runs no code).

    checkpoints/step_00000120/  model.safetensors      weights; plain timm names under `encoder.`
                                ema.safetensors        averaged weights, when there are any
                                optimizer.safetensors  `<parameter index>.<state name>`
                                state.json             step, epoch, samples_in_epoch, scores, pages known to be bad
                                config.yaml            the resolved configuration
                                manifest.json          size and SHA-256 of every file above
                                tune.json              only if engine.tune has written into config.yaml: its result
    checkpoints/last, best      symbolic links to the above

A directory is written under a temporary name, every file and the directory fsynced, then renamed: a kill at any byte
leaves either the old state or the new. `engine.checkpoint.writer` does it on a thread of its own, over a snapshot in
host memory.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from engine import files
from engine.console import warn
from engine.files import replace_text
from pipelines.errors import UserError

Tensors = dict[str, torch.Tensor]  # by name, on the CPU

LINKS = ("last", "best")
TUNED = "tune.json"  # not in the manifest: nothing depends on it
NAME = re.compile(r"step_(\d+)(?:\.(\d+))?")
NEEDED = {"model.safetensors", "state.json", "config.yaml"}  # in every checkpoint
PARTS = ("model", "ema", "optimizer")
STATE_BYTES = 1 << 24  # a bad page takes 100 bytes in it, 600 with the longest name: 28,000 of those
# What each kind of optimizer keeps of a parameter; a step counter is a scalar, the others have the parameter's shape.
MOMENTS = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}


def snapshot(
    model: torch.nn.Module, ema: torch.nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensors]:
    """Copies of all tensors of the training state in host memory: {part: {name: tensor}}.

    Reading the device is a sync, once a checkpoint. Tensors are made contiguous: safetensors stores no strides, and
    loading copies into the model's own layout.
    """
    states = optimizer.state_dict()["state"]
    flat = {f"{i}.{k}": torch.as_tensor(v) for i, state in states.items() for k, v in state.items() if v is not None}
    parts = {"model": host_copies(model.state_dict()), "optimizer": host_copies(flat)}
    if ema is not None:
        parts["ema"] = host_copies(ema.state_dict())
    return parts


def host_copies(tensors: Tensors) -> Tensors:
    """Contiguous copies in host memory, by name.

    From a GPU one copy for each dtype: one by one, HRNet-W44's 2,900 tensors would be as many waits, some 0.4 s by
    estimate. Joined on the GPU they take their own size there once more, for that moment.
    """
    made = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items() if not v.is_cuda}
    on_gpu = {k: v.detach() for k, v in tensors.items() if v.is_cuda}
    for dtype in {v.dtype for v in on_gpu.values()}:
        group = {k: v for k, v in on_gpu.items() if v.dtype == dtype}
        joined = torch.cat([v.reshape(-1) for v in group.values()]).cpu()
        each = torch.split(joined, [v.numel() for v in group.values()])
        made |= {k: one.view(v.shape) for (k, v), one in zip(group.items(), each, strict=True)}
    return {k: made[k] for k in tensors}


def not_finite(tensors: Tensors) -> list[str]:
    """Names of the host tensors that hold NaN or infinity (HRNet-W44: 67 M numbers, about 50 ms)."""
    return [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]


def write(folder: Path, parts: Mapping[str, Tensors], state: Mapping[str, Any], config_yaml: str) -> Path:
    """Writes one checkpoint `folder/step_<step>` durably and returns its path.

    One of that step that is there already stays until `prune`; the new one is `step_<step>.1` and so on, which sorts
    after it. So nothing is ever deleted before its successor is complete.

    Args:
        folder: the run's checkpoints folder.
        parts: from `snapshot`.
        state: JSON-ready; must hold `step`.
        config_yaml: text of the resolved configuration.

    Raises:
        OSError: disk full, read-only, folder gone; what was there before is intact.
    """
    name = f"step_{state['step']:08d}"
    final = next(
        p for p in (folder / f"{name}{end}" for end in ("", *(f".{k}" for k in range(1, 10**6)))) if not p.exists()
    )
    temporary = folder / f".tmp_{final.name}_{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _fill(temporary, parts, state, config_yaml)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after a failure: half of one must not keep a full disk full
    _fsync(folder)
    return final


def _fill(temporary: Path, parts: Mapping[str, Tensors], state: Mapping[str, Any], config_yaml: str) -> None:
    """Writes all files of a checkpoint, the manifest last, and makes them durable."""
    for part, tensors in parts.items():
        write_safetensors(tensors, temporary / f"{part}.safetensors")
    (temporary / "state.json").write_text(json.dumps(state, indent=1))
    (temporary / "config.yaml").write_text(config_yaml)
    manifest = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(temporary.iterdir())}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in temporary.iterdir():
        _fsync(path)
    _fsync(temporary)


def link(folder: Path, name: str, target: Path) -> None:
    """Points `folder/name` at a checkpoint of the same folder, atomically."""
    temporary = folder / f".tmp_{name}_{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.rename(folder / name)
    _fsync(folder)


def prune(folder: Path, keep_last: int, keep_top_k: int) -> None:
    """Deletes checkpoints that are neither among the newest `keep_last`, nor the `keep_top_k` best, nor linked.

    Of several of one step only the last written counts.
    """
    every = _steps(folder)
    steps = list({path.name.split(".")[0]: path for path in every}.values())
    scores = {path: value for path in steps if (value := score(path)) is not None}
    scored = sorted(scores, key=scores.__getitem__, reverse=True)
    linked = {(folder / name).resolve() for name in LINKS if (folder / name).is_symlink()}
    keep = set(steps[-keep_last:]) | set(scored[:keep_top_k]) | {p for p in every if p.resolve() in linked}
    for path in every:
        if path not in keep:  # renamed first: a kill in the middle must not leave half of one under its name
            shutil.rmtree(path.rename(folder / f".tmp_{path.name}_pruned"))
    sweep(folder)


def sweep(folder: Path) -> None:
    """Deletes what a kill or a full disk left half done; for the only writer of a folder, between two writes."""
    for path in folder.glob(".tmp_*"):
        if path.is_symlink():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def locate(path: str | Path, prefer: str = "best", key: str = "checkpoint") -> Path:
    """The checkpoint directory meant by a path: itself, or a run folder's `checkpoints/best` or `last`.

    Args:
        path: a checkpoint, a run folder, or its checkpoints folder.
        prefer: which link of a run folder comes first.
        key: the setting that named it, for the message.

    Raises:
        UserError: there is none, or its files do not match their checksums.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{key}={path}: no such folder")
    names = sorted(LINKS, key=lambda name: name != prefer)
    for candidate in (path, *(path / "checkpoints" / name for name in names), *(path / name for name in names)):
        if (candidate / "manifest.json").is_file() or (candidate.name in LINKS and candidate.is_symlink()):
            fault = verify(candidate)
            if fault:
                raise UserError(f"{key}={candidate}: damaged ({fault}); {_instead(candidate)}")
            return candidate
    raise UserError(f"{key}={path}: holds no checkpoint (a folder with manifest.json) and is no run folder")


def _instead(damaged: Path) -> str:
    """What to use in place of a damaged checkpoint. Nothing is used unasked: an older one scores otherwise."""
    others = [p for p in reversed(_steps(damaged.resolve().parent)) if p != damaged.resolve() and not verify(p)]
    return f"use {others[0]}, which is whole" if others else "the run has no other that is whole"


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a checkpoints folder; damaged ones are named on stderr and passed over."""
    for path in reversed(_steps(folder)):
        fault = verify(path)
        if not fault:
            return path
        warn(f"WARNING: {path} is damaged ({fault}); trying the one before it")
    return None


def verify(path: Path) -> str:
    """What is wrong with a checkpoint's files, "" when every size and SHA-256 matches its manifest.

    The manifest is not trusted: it must name plain files of this folder, all that are read later among them.
    """
    try:
        manifest = files.json_object(path / "manifest.json")
        present = {f"{part}.safetensors" for part in PARTS if os.path.lexists(path / f"{part}.safetensors")}
        for name in sorted((NEEDED | present) - set(manifest)):
            return f"{name} is not in its manifest"
        for name, entry in manifest.items():
            file = path / name
            if not name or "/" in name or "\\" in name or name in (".", ".."):
                return f"its manifest names {name!r}, which is no file of the folder"
            if file.is_symlink() or not file.is_file():
                return f"{name} is missing, or no regular file (links are not followed: copy it)"
            if not any(file.stat().st_size == e["bytes"] and _sha256(file) == e["sha256"] for e in _either(entry)):
                return f"{name} does not match its checksum"
    except UserError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _either(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """What a file may be: as its entry says, or, if `replace_settings` was killed on its way, as it was before."""
    return [entry, *([entry["before"]] if "before" in entry else [])]


def replace_settings(path: Path, config_yaml: str) -> None:
    """Replaces the settings of a checkpoint; its tensors and state stay. A kill at any moment leaves a whole one.

    Two files change, the settings and the manifest, and no file system moves two at once: so the manifest first says
    that the settings may be the old ones or the new, then they are replaced, then it forgets the old ones.

    Raises:
        OSError: as `write`.
    """
    path = path.resolve()  # of a link
    manifest, data = files.json_object(path / "manifest.json"), config_yaml.encode()
    old = _entry((path / "config.yaml").read_bytes())
    new = _entry(data)
    for name, text in (
        ("manifest.json", json.dumps(manifest | {"config.yaml": new | {"before": old}}, indent=1)),
        ("config.yaml", config_yaml),
        ("manifest.json", json.dumps(manifest | {"config.yaml": new}, indent=1)),
    ):
        replace_text(path / name, text)
        _fsync(path)


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _steps(folder: Path) -> list[Path]:
    """Checkpoints by step, then by how often it was written; clocks and dates of files play no part."""
    named = ((NAME.fullmatch(p.name), p) for p in folder.glob("step_*") if p.is_dir())
    return [p for _, p in sorted(((int(m[1]), int(m[2] or 0)), p) for m, p in named if m)]


def score(path: Path) -> float | None:
    """Score of a checkpoint (or of a link to one); None where it was not evaluated, is damaged or is none."""
    try:
        return load_state(path).get("score")
    except UserError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_part(path: Path, part: str) -> Tensors:
    """Tensors of one part (`model`, `ema`, `optimizer`) on the CPU; {} where the checkpoint has no such part.

    Raises:
        UserError: the file is not readable safetensors.
    """
    assert part in PARTS
    return read_safetensors(path / f"{part}.safetensors") if (path / f"{part}.safetensors").exists() else {}


def load_judged(path: Path, ema: bool) -> Tensors:
    """The tensors of a checkpoint that are judged: with `ema` (eval.ema) the averaged ones if there are any."""
    return (load_part(path, "ema") if ema else {}) or load_part(path, "model")


def read_safetensors(path: Path) -> Tensors:
    """Tensors of a safetensors file on the CPU. The format is a JSON header (100 MB at most) and raw numbers: no code.

    Raises:
        UserError: the file cannot be read, or its header is not one (wrong offsets, sizes, types).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None


def write_safetensors(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes contiguous tensors, with the rights a new file gets here: safetensors gives 0600 whatever the umask says.

    Raises:
        OSError, SafetensorError: it cannot be written.
        ValueError, KeyError, UnicodeEncodeError: the format cannot hold the tensors.
    """
    path.touch()  # under the umask, which can be asked for only by setting it, for all threads
    rights = stat.S_IMODE(path.stat().st_mode)
    safetensors.torch.save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    path.chmod(rights)


def load_state(path: Path, position: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The JSON state of a checkpoint, checked: no trust in its types.

    Args:
        path: the checkpoint.
        position: for a resume, the numbers that say where the run stands, and their types
            (`engine.training.resume.Position.kinds`). A resume needs `global_batch` and `stream` too.

    Raises:
        UserError: unreadable, a value of the wrong type, negative or not finite, or one missing.
    """
    try:
        state = files.json_object(path / "state.json", STATE_BYTES)
        kinds = {"step": int, "global_batch": int, "score": float}
        if position is not None:
            kinds |= {"bad_pages": list, **position}
            for name in ("step", "samples_in_epoch", "global_batch", "stream"):
                if name not in state:
                    raise UserError(f"state.json has no {name}")
        for name, kind in kinds.items():
            if name in state and not (name == "score" and state[name] is None) and not _is(state[name], kind):
                raise UserError(f"state.json: {name} is {state[name]!r:.60}, expected a {kind.__name__}")
    except UserError as error:
        raise UserError(f"{path}: damaged ({error}); use another checkpoint of the run") from None
    return state


def _is(value: object, kind: type) -> bool:
    """Whether a value of JSON is a number of the kind: no truth value, finite, and -1 (none yet) at the least."""
    if kind not in (int, float):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return False
    return -1 <= value < 2**53  # false for NaN too


def load_settings(path: Path) -> dict[str, Any]:
    """The configuration a checkpoint was trained with, as the nested dict that `engine.config.load.from_dict` takes.

    Raises:
        UserError: it is no YAML file of settings.
    """
    try:
        settings = files.yaml_values(files.read_text(path / "config.yaml"))
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'}: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path / 'config.yaml'}: holds no settings")
    return settings


def load_model(model: torch.nn.Module, tensors: Tensors, source: Path) -> None:
    """Copies weights into a model, all of them.

    Raises:
        UserError: a name or shape differs, i.e. the checkpoint is of another model.
    """
    own = model.state_dict()
    odd = sorted(set(own) ^ set(tensors)) or [k for k in own if own[k].shape != tensors[k].shape]
    if odd:
        raise UserError(f"{source}: its weights are of another model ({len(odd)} tensors differ, e.g. {odd[0]})")
    model.load_state_dict(tensors)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, source: Path | str = "the checkpoint") -> None:
    """Restores the optimizer's tensors; lr and weight_decay come from the configuration, not from the checkpoint.

    A checkpoint stores no strides, so moments are copied into their parameter's layout: a fused kernel walks both by
    the parameter's own, and with a channels_last weight beside a contiguous moment it takes another's value.

    Raises:
        UserError: a tensor has no parameter here, another shape than it, or is of another kind of optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = MOMENTS["adam" if "betas" in optimizer.defaults else "sgd"]
    state: dict[int, Tensors] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        row = int(index) if index.isascii() and index.isdigit() and len(index) < 9 else len(parameters)
        if row >= len(parameters) or name not in known or tensor.shape not in _shapes(name, parameters[row]):
            raise UserError(f"{source}: its optimizer state is of another model or optimizer (e.g. {key})")
        if name == "step" and not (
            tensor.isreal().item() and 0 <= float(tensor.real) < 2**53
        ):  # beta^step, on the host
            raise UserError(f"{source}: its optimizer state is damaged ({key} is {tensor.item()})")
        state.setdefault(row, {})[name] = tensor
    for row, values in state.items():
        if missing := known - set(values):
            raise UserError(f"{source}: its optimizer state lacks {row}.{min(missing)}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)


def _shapes(name: str, parameter: torch.Tensor) -> tuple[torch.Size, ...]:
    return (torch.Size(()),) if name == "step" else (parameter.shape,)
