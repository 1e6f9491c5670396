"""Values of JSON annotations: numbers, sides, shapes. Each is taken as stated; what is none of its kind is refused."""

import contextlib
import math
from array import array
from typing import Any

import numpy as np

from pipelines.annotations.page import box_corners
from pipelines.errors import UserError

CIRCLE_POINTS = 24  # a circle drawn so loses 1.1 % of its area


def points(value: Any, where: str) -> np.ndarray:
    """(n, 2) float32 from [[x, y], ...] or [x, y, x, y, ...]; NaN and infinity pass, the index masks them.

    Raises:
        UserError: when it is neither.
    """
    if isinstance(value, list):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # pairs, an odd number, or what is none
            return np.array(array("f", value)).reshape(-1, 2)  # a third of the time of numpy's way
    try:
        with np.errstate(over="ignore"):  # 1e300 becomes infinity
            made = np.array(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: points must be numbers [[x, y], ...]") from error
    if made.size == 0:
        return np.zeros((0, 2), np.float32)
    if made.ndim == 1 and len(made) % 2 == 0:
        return made.reshape(-1, 2)
    if made.ndim != 2 or made.shape[1] != 2:
        raise UserError(f"{where}: points must be [[x, y], ...], not of shape {made.shape}")
    return made


def expect(value: Any, kind: type | tuple, where: str, what: str) -> Any:
    """The value.

    Raises:
        UserError: when it is not of the kind.
    """
    if not isinstance(value, kind):
        raise UserError(f"{where}: {what} expected, got {type(value).__name__}")
    return value


def size(value: Any, where: str) -> int:
    """A side in pixels; a missing one is 0 (not stated)."""
    if value is None:
        return 0
    expect(value, (int, float), where, "image size in pixels")
    if not 0 <= value < 2**31:
        raise UserError(f"{where}: image size {value} is not a number of pixels")
    return int(value)


def text(value: Any) -> str | None:
    """A transcription; None for what is none."""
    return value if isinstance(value, str) else None


def number(value: Any) -> float:
    """A coordinate; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def box(value: Any, where: str) -> np.ndarray:
    """(4, 2) corners of [x, y, width, height]; (0, 2) for none. One of no area has two: masked."""
    if value is None or (isinstance(value, (list, dict)) and not value):
        return np.zeros((0, 2), np.float32)
    if not isinstance(value, list) or len(value) != 4:
        return points(value[:2] if isinstance(value, list) else value, where)
    x, y, width, height = map(number, value)
    return sized_box(x, y, width, height)


def sized_box(x: float, y: float, width: float, height: float) -> np.ndarray:
    """(4, 2) corners; (2, 2) with a side that is negative or no number, so that nothing is learnt of it."""
    if width >= 0 and height >= 0:
        return box_corners(x, y, x + width, y + height)
    with np.errstate(over="ignore"):
        return np.array([[x, y], [x + width, y + height]], np.float32)


def sides_box(value: Any, where: str) -> np.ndarray:
    """(4, 2) corners of [left, top, right, bottom]; as `box` for one with a negative side."""
    if not isinstance(value, list) or len(value) != 4:
        return points(value or [], where)
    left, top, right, bottom = map(number, value)
    return sized_box(left, top, right - left, bottom - top)


def spanned(array: np.ndarray) -> np.ndarray:
    """(4, 2) corners of the box of two opposite corners; anything else unchanged."""
    if array.shape != (2, 2):
        return array
    (x0, y0), (x1, y1) = np.minimum(*array), np.maximum(*array)
    return box_corners(x0, y0, x1, y1)


def ellipse(x: float, y: float, rx: float, ry: float, theta: float = 0.0) -> np.ndarray:
    """(24, 2) outline of an ellipse turned by theta (radians, clockwise as y points down); its middle for no radius."""
    if not (rx > 0 and ry > 0):
        with np.errstate(over="ignore"):
            return np.array([[x, y]], np.float32)
    turn = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
    with np.errstate(over="ignore", invalid="ignore"):
        along, across = rx * np.cos(turn), ry * np.sin(turn)
        made = np.stack(
            [x + along * np.cos(theta) - across * np.sin(theta), y + along * np.sin(theta) + across * np.cos(theta)], 1
        )
        return made.astype(np.float32)


def open_line(array: np.ndarray) -> np.ndarray:
    """A line that is not closed, as what it is: no outline (a point that is no number), so the index masks its hull."""
    return np.concatenate([array, np.full((1, 2), np.nan, np.float32)]) if len(array) > 2 else array
