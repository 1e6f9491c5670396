"""Numbers and names as the report and its pictures write them."""

import re
from typing import Any

from engine.search.study import Trial


def show(value: Any) -> str:
    """A parameter's value: numbers with 3 significant digits, 0.000113 as 1.13e-4."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return str(value)
    text = f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
    text = re.sub(r"\.?0+(?=e|$)", "", text) if "." in text else text
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def number(value: float | None) -> str:
    """A metric's value: 5 significant digits, zeros kept; "" for None."""
    return "" if value is None else f"{value:#.5g}".removesuffix(".")


def rough(value: float | None) -> str:
    """A spread: 2 significant digits; "" for None."""
    return "" if value is None else f"{value:.2g}"


def difference(value: float) -> str:
    """A gain with its sign."""
    return f"{value:+.2g}"


def short(name: str) -> str:
    """Last part of a key."""
    return name.rsplit(".", 1)[-1]


def called(trial: Trial) -> str:
    """A trial by its number, and its name where it has one."""
    return f"trial {trial.number}" + (f" ({trial.name})" if trial.name else "")


def duration(minutes: float) -> str:
    """Minutes, or hours from 90 minutes on; "" for 0, which is not known."""
    if minutes >= 90:
        return f"{minutes / 60:.1f} h"
    return f"{minutes:.1f} min" if minutes else ""
