"""The configuration of every entry point: `preset=NAME section.key=value ...`, later wins.

OmegaConf parses and merges (YAML presets, then the dotlist); the result becomes the frozen dataclasses of
`engine.config.settings`. Unknown keys, wrong types and values out of range end in one line naming key, value and mend.
Interpolation is off: a value with `${` is refused, so no file can read the environment. Imports no torch.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from omegaconf import OmegaConf

from engine.config.settings import Config
from engine.config.words import elsewhere, hydra, undashed
from engine.console import did_you_mean, nearest
from engine.files import FAULTS, read_text, yaml_values
from pipelines.errors import UserError
from pipelines.options import allowed

PRESET_FOLDER = Path(__file__).parent / "presets"
DEFAULT_PRESET = "hrnet_w44_1280"
EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list[int]: "a list of whole numbers, e.g. [1280,1280]",
    list[float]: "a list of numbers, e.g. [1,0.5]",
    list[str]: "a list of texts, e.g. [a,b]",
}


@functools.cache
def _types(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def _is_section(kind: object) -> TypeGuard[type]:
    """Whether a field of this type holds keys of its own."""
    return dataclasses.is_dataclass(kind)


@functools.cache
def keys(section: type = Config, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """All settable keys with their fields, in the order of the file: {"models.optimizer.lr": Field, ...}."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for field in dataclasses.fields(section):
        kind = _types(section)[field.name]
        if _is_section(kind):
            found |= keys(kind, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = field
    return found


def _type_of(key: str) -> Any:
    section: Any = Config
    *path, leaf = key.split(".")
    for part in path:
        section = _types(section)[part]
    return _types(section)[leaf]


def _unknown(key: str, extra: Mapping[str, str] | None = None) -> UserError:
    """The refusal of a key that does not exist, with the nearest one that does."""
    names = [*keys(), *(extra or {})]
    if any(name.startswith(key + ".") for name in names):
        inside = ", ".join(name for name in names if name.startswith(key + "."))
        return UserError(f"{key} is a section; set one of its keys: {inside}")
    leaf, leaves = key.rsplit(".", 1)[-1], {name.rsplit(".", 1)[-1]: name for name in names}
    same_leaf = [name for name in names if name.rsplit(".", 1)[-1] == leaf]
    near = (
        " or ".join(same_leaf[:3])
        or elsewhere(key, extra or {})
        or nearest(key, names)
        or leaves.get(nearest(leaf, leaves), "")
    )
    return UserError(f"unknown key {key}; {f'did you mean {near}?' if near else '--help lists all keys'}")


def _refuse_interpolation(key: str, value: Any) -> None:
    if "${" in str(value) or str(value) == "???":
        what = f"{key}={value}: interpolation is switched off"
        raise UserError(f"{what}; write the value itself, and rename (or link to) a file with ${{ in its name")


def _scalar(value: Any, kind: type) -> Any:
    """The value as `kind`; TypeError when it is something else (a bool is no number, 2.5 is no int)."""
    if kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
        raise TypeError
    if kind is int and isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if kind is float and isinstance(value, (int, float)):
        return float(value)
    if kind is str and isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, kind):
        return value
    raise TypeError


def _convert(key: str, value: Any, kind: Any) -> Any:
    """The value as the type of its field; one item stands for a list of one."""
    _refuse_interpolation(key, value)
    choices = keys()[key].metadata.get("choices") or ()
    if isinstance(value, bool) and str(value).lower() in choices:  # YAML's true, of a setting that knows auto as well
        value = str(value).lower()
    try:
        if typing.get_origin(kind) is not list:
            return _scalar(value, kind)
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return [_scalar(item, typing.get_args(kind)[0]) for item in items]
    except (TypeError, OverflowError):
        words = allowed(keys()[key].metadata)
        raise UserError(f"{key}={value}: expected {EXPECTED[kind]}{f' ({words})' if words else ''}") from None


def _build(section: type, values: Mapping[str, Any], prefix: str) -> Any:
    known: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in _types(section):
            raise _unknown(key)
        kind = _types(section)[name]
        if not _is_section(kind):
            known[name] = _convert(key, value, kind)
        elif isinstance(value, Mapping):
            known[name] = _build(kind, value, key + ".")
        else:
            raise UserError(f"{key}={value}: {key} is a section; it needs keys of its own below it")
    return section(**known)


def from_dict(values: Mapping[str, Any]) -> Config:
    """A nested mapping, as `to_dict` makes it, -> Config; keys that are missing take their defaults.

    Raises:
        UserError: unknown key, wrong type, value out of range, settings that cannot work together.
    """
    config: Config = _build(Config, values, "")
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Config (or a section) -> nested dict of plain Python types; the inverse of `from_dict`."""
    return dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """Config (or a section) -> YAML text; as a file it is a valid `preset=FILE.yaml`."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def preset_names() -> list[str]:
    """Names of the presets that come with the engine."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def _read_preset(name: str) -> dict[str, Any]:
    """Nested dict of a preset: a name of `engine/config/presets`, or the path of a YAML file."""
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in preset_names():
        hint = did_you_mean(name, preset_names())
        there_are = f"there are {', '.join(preset_names())}, or a FILE.yaml"
        raise UserError(f"preset={name}: no such preset; {f'{hint} ' if hint else ''}{there_are}")
    path = Path(name) if own else PRESET_FOLDER / f"{name}.yaml"
    try:
        text = read_text(path)
        if "${" in text:
            raise UserError("interpolation (a dollar sign and a brace) is switched off")
        values = yaml_values(text)
        if not isinstance(values, dict):
            raise UserError("not a YAML file of settings (expected keys and values)")
    except UserError as error:
        raise UserError(f"preset={name}: {error}") from None
    return {"preset": name} | values


def _split(item: str, extra: Mapping[str, str]) -> tuple[str, str]:
    if instead := hydra(item):
        raise UserError(f"unexpected argument {item!r}: {instead}")
    key, equals, text = item.partition("=")
    if not equals:
        raise UserError(
            f"unexpected argument {item!r}: settings are written key=value (flags: --help, --print-config, --dry-run)"
        )
    if key.startswith("-"):
        raise UserError(f"unexpected argument {item!r}: write it without dashes, {item.lstrip('-')}")
    if key not in keys() and key not in extra:
        raise _unknown(key, extra)
    return key, text


def split_extra(argv: list[str], extra: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Separates an entry point's own keys from the settings, e.g. to find the checkpoint whose settings are the base.

    Returns:
        values: {key: text} for every key of `extra`, defaults filled in, later wins.
        rest: the other items, in order.

    Raises:
        UserError: an item that is no `key=value`, or an unknown key.
    """
    values, rest = dict(extra), []
    for item in argv:
        key, text = _split(undashed(item), extra)
        if key in extra:
            values[key] = text
        else:
            rest.append(f"{key}={text}")
    return values, rest


def _parse(key: str, text: str) -> Any:
    """The value of one `key=text`: parsed by OmegaConf, except that texts stay as they were typed."""
    kind = _type_of(key)
    if kind is str or (kind == list[str] and not text.startswith("[")):
        return text
    _refuse_interpolation(key, text)
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except FAULTS:
        raise UserError(f"{key}={text}: expected {EXPECTED[kind]}") from None
    value = parsed["value"]
    return text if value is None or isinstance(value, dict) else value


def load_config(
    argv: list[str], *, extra: Mapping[str, str] | None = None, base: Mapping[str, Any] | None = None
) -> tuple[Config, dict[str, str]]:
    """The configuration of a command line.

    Args:
        argv: items `a.b=c`, without the program name. `preset=NAME` is applied first wherever it stands; of the
            others the later wins.
        extra: the entry point's own keys and their defaults, e.g. {"checkpoint": ""}; their values stay text.
        base: nested dict that replaces the preset, e.g. the settings of a checkpoint.

    Returns:
        config, {key: text} of the extra keys.

    Raises:
        UserError: in one line, whatever is wrong.
    """
    extras, items = split_extra(argv, extra or {})
    pairs = [_split(item, {}) for item in items]
    presets = [text for key, text in pairs if key == "preset"]
    if base is not None and presets:
        raise UserError(f"preset={presets[-1]}: the settings come from the checkpoint here; set single keys instead")
    start = dict(base) if base is not None else _read_preset(presets[-1] if presets else DEFAULT_PRESET)
    merged = to_dict(from_dict(start))  # checked first: an error in the preset is the preset's, not the command's
    for key, text in pairs:
        if key != "preset":
            _set(merged, key, _convert(key, _parse(key, text), _type_of(key)))
    return from_dict(merged), extras


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for part in path:
        values = values[part]
    values[leaf] = value


def help_text(extra: Mapping[str, str] | None = None, config: Config | None = None) -> str:
    """All keys, one a line, with the value they have now and their meaning."""
    values = keys_and_values(config or Config())
    width = max(len(f"{key}={shown(value)}") for key, value in values.items() if len(shown(value)) < 24)
    lines = []
    for key, field in keys().items():
        words = allowed(field.metadata)
        meaning = field.metadata["help"] + (f" ({words})" if words else "")
        lines.append(f"  {f'{key}={shown(values[key])}':<{width}}  {meaning}")
    own = [f"  {key}={value}" for key, value in (extra or {}).items()]
    head = ["keys of this command:", *own, ""] if own else []
    return "\n".join([*head, "settings:", *lines])


def keys_and_values(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flat {key: value} of a configuration, in the order of `keys()`."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name
        flat |= keys_and_values(value, name + ".") if dataclasses.is_dataclass(value) else {name: value}
    return flat


def canvas_hw(config: Config) -> tuple[int, int]:
    """Height and width in pixels of the canvas that pages are judged on."""
    height, width = config.eval.image_size or config.data.image_size
    return height, width


def shown(value: Any) -> str:
    """A value as `key=value` has it."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(shown(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
