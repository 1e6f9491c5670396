"""What is read from a checkpoint or a weights file, none of it trusted: safetensors, JSON, YAML, never a pickle."""

import dataclasses
import stat
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from engine import reading
from pipelines.errors import UserError

PARTS = ("model", "ema", "optimizer")
STATE_BYTES = 1 << 24  # a bad page takes 100 bytes in it, 600 with the longest name: 28,000 of those
# What each kind of optimizer keeps of a parameter; a step counter is a scalar, the others have the parameter's shape.
MOMENTS = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}


def load_part(path: Path, part: str) -> dict[str, torch.Tensor]:
    """Tensors of one part (`model`, `ema`, `optimizer`) on the CPU; {} where the checkpoint has no such part.

    Raises:
        UserError: the file is not readable safetensors.
    """
    assert part in PARTS
    return read_safetensors(path / f"{part}.safetensors") if (path / f"{part}.safetensors").exists() else {}


def load_judged(path: Path, ema: bool) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint that are judged: with `ema` (eval.ema) the averaged ones if there are any."""
    return (load_part(path, "ema") if ema else {}) or load_part(path, "model")


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
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


def load_state(path: Path, position: type | None = None) -> dict:
    """The JSON state of a checkpoint, checked: no trust in its types.

    Args:
        path: the checkpoint.
        position: dataclass of numbers whose fields the state holds (`engine.resume.Position`), for a resume, which
            needs `global_batch` and `stream` too.

    Raises:
        UserError: unreadable, a value of the wrong type, negative or not finite, or one missing.
    """
    try:
        state = reading.json_object(path / "state.json", STATE_BYTES)
        kinds = {"step": int, "global_batch": int, "score": float}
        if position is not None:
            kinds |= {"bad_pages": list} | {field.name: field.type for field in dataclasses.fields(position)}
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


def load_settings(path: Path) -> dict:
    """The configuration a checkpoint was trained with, as the nested dict that `engine.config.from_dict` takes.

    Raises:
        UserError: it is no YAML file of settings.
    """
    try:
        settings = reading.yaml_values(reading.read_text(path / "config.yaml"))
    except UserError as error:
        raise UserError(f"{path / 'config.yaml'}: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path / 'config.yaml'}: holds no settings")
    return settings


def load_model(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Copies weights into a model, all of them.

    Raises:
        UserError: a name or shape differs, i.e. the checkpoint is of another model.
    """
    own = model.state_dict()
    odd = sorted(set(own) ^ set(tensors)) or [k for k in own if own[k].shape != tensors[k].shape]
    if odd:
        raise UserError(f"{source}: its weights are of another model ({len(odd)} tensors differ, e.g. {odd[0]})")
    model.load_state_dict(tensors)


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], source: Path | str = "the checkpoint"
) -> None:
    """Restores the optimizer's tensors; lr and weight_decay come from the configuration, not from the checkpoint.

    A checkpoint stores no strides, so moments are copied into their parameter's layout: a fused kernel walks both by
    the parameter's own, and with a channels_last weight beside a contiguous moment it takes another's value.

    Raises:
        UserError: a tensor has no parameter here, another shape than it, or is of another kind of optimizer.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = MOMENTS["adam" if "betas" in optimizer.defaults else "sgd"]
    state: dict[int, dict] = {}
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
