"""Fields of the configuration: a default, a one-line meaning and the allowed values, kept in one place.

A configuration class is a frozen dataclass whose fields are made by `option`; its `__post_init__` calls
`check_options(self)`. `--help` and the range errors are both made from the same metadata.
"""

import dataclasses
import math
from typing import Any

from pipelines.errors import UserError


def option(
    default: Any, help: str, low: float | None = None, high: float | None = None, choices: tuple | None = None
) -> Any:
    """A dataclass field with its meaning (one line, with the unit) and allowed values.

    Lists are copied for every instance; low and high are inclusive bounds of a number, or of every number of a list.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def allowed(metadata: Any) -> str:
    """The allowed values of an option in words, e.g. `0 to 1`, `at least 1`, `paper, baseline`; "" for any."""
    low, high, choices = metadata.get("low"), metadata.get("high"), metadata.get("choices")
    if choices:
        return ", ".join(str(c) for c in choices)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return f"at most {high:g}" if high is not None else ""


def check_options(config: Any, prefix: str = "") -> None:
    """Refuses values outside their allowed range, NaN and infinity, by a UserError that names the key (with `prefix`,
    e.g. `augment.`), the value and what is allowed."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, bool) or not isinstance(item, (int, float, str)):
                continue
            low, high, choices = (field.metadata.get(k) for k in ("low", "high", "choices"))
            bad = choices is not None and item not in choices
            if not isinstance(item, str):
                bad = bad or not abs(item) < (math.inf if isinstance(item, float) else 2**63)  # true for NaN
                bad = bad or (low is not None and item < low) or (high is not None and item > high)
            if bad:
                words = allowed(field.metadata) or "a finite number"
                raise UserError(f"{prefix}{field.name}={value}: allowed is {words}")
