"""The space of a search: parameters, their scales, and the unit cube that the surrogate works in.

Every parameter has one coordinate in [0, 1]:

    float, scale log      u = log(x / low) / log(high / low)
    float, scale linear   u = (x - low) / (high - low)
    int                   as float; rounded on the way back
    ordinal (T_max)       its values keep their order: u = place of the value on a log scale (linear if one is <= 0)
    choice                u = index / (n - 1); `features` turns it into n one-hot coordinates of the model

Worked example: lr in [1e-5, 2e-4] log: x = 1e-4 -> u = log(10) / log(20) = 0.769. T_max in {15, 18, 20, 25}:
0, 0.357, 0.563, 1. Values are plain Python types (JSON), floats with 6 significant digits, never outside their bounds.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from pipelines.errors import UserError

KINDS = ("float", "int", "ordinal", "choice")
SCALES = ("linear", "log")
MOST_OPTIONS = 100_000  # ten times the largest budget; a finer range is as good as continuous
LARGEST = 1e300
FINEST = 1e15  # steps from 0 to a bound: a float tells no more apart
DIGITS = 6  # of a float value: short commands, and a change of 1e-6 of a learning rate is nothing


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One searched key.

    Raises:
        UserError: bounds in the wrong order, a log scale that reaches 0, values that repeat or are too few.
    """

    name: str  # key of the configuration, e.g. `models.optimizer.lr`
    kind: str  # float, int, ordinal (numbers with an order, few), choice (texts, booleans)
    low: float = 0.0  # bounds of float and int, included
    high: float = 1.0
    scale: str = "linear"  # or log; of float and int
    step: float = 0.0  # float and int are multiples of it; 0 = free
    values: tuple[Any, ...] = ()  # of ordinal (ascending) and choice

    def __post_init__(self) -> None:
        assert self.kind in KINDS and self.scale in SCALES
        if self.kind in ("ordinal", "choice"):
            if len(self.values) < 2 or len(set(self.values)) != len(self.values):
                raise UserError(f"{self.name}: values {list(self.values)} must be at least two, all different")
            if self.kind == "ordinal":
                object.__setattr__(self, "values", tuple(sorted(self.values)))
            return
        if not -LARGEST <= self.low < self.high <= LARGEST:  # true for NaN; whole numbers have no limit in Python
            raise UserError(f"{self.name}: bounds {_short(self.low)} to {_short(self.high)} are not in ascending order")
        if self.scale == "log" and self.low <= 0:
            raise UserError(f"{self.name}: a log scale needs a lower bound above 0, not {self.low:g}")
        if self.step and max(abs(self.low), abs(self.high)) / self.step > FINEST:
            raise UserError(
                f"{self.name}: a step of {self.step:g} is too fine for {self.low:g} to {self.high:g}; use 0"
            )
        if self.step < 0 or (self.step and self._on_step(self.low) > self.high):
            raise UserError(f"{self.name}: no multiple of {self.step:g} lies between {self.low:g} and {self.high:g}")

    def _on_step(self, value: float) -> float:
        """The nearest multiple of `step` at or above `low` and, where there is one, at or below `high`."""
        least, most = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return self.step * max(least, min(round(value / self.step), most))

    @property
    def places(self) -> np.ndarray:
        """Coordinates of the values of ordinal and choice, float (n,)."""
        if self.kind == "choice":
            return np.linspace(0.0, 1.0, len(self.values))
        numbers = np.asarray(self.values, float)
        numbers = np.log(numbers) if numbers.min() > 0 else numbers
        places: np.ndarray = (numbers - numbers[0]) / (numbers[-1] - numbers[0])
        return places

    def unit(self, value: Any) -> float:
        """Value -> coordinate in [0, 1]; numbers beyond the bounds go to the nearest one.

        Raises:
            UserError: a text that is no value of this choice, or no number where one is needed.
        """
        unit = self.coordinate(value)
        if self.kind == "ordinal":
            return float(self.places[int(np.argmin([abs(value - known) for known in self.values]))])
        return min(max(unit, 0.0), 1.0)

    def coordinate(self, value: Any) -> float:
        """Value -> coordinate on the same scale, not held within [0, 1]: for trials known from a wider space.

        Raises:
            UserError: as `unit`.
        """
        if self.kind == "choice" and value not in self.values:
            raise UserError(f"{self.name}={value}: expected one of {', '.join(map(str, self.values))}")
        if self.kind != "choice" and not is_number(value):
            raise UserError(f"{self.name}={value}: expected a number")
        if value in self.values:
            return float(self.places[self.values.index(value)])
        low, high = (self.values[0], self.values[-1]) if self.values else (self.low, self.high)
        if self.scale == "log" or (self.values and low > 0):
            return math.log(max(value, 1e-3 * low) / low) / math.log(high / low)
        return float((value - low) / (high - low))

    def value(self, unit: float) -> Any:
        """Coordinate -> plain Python value within the bounds."""
        unit = min(max(float(unit), 0.0), 1.0)
        if self.kind in ("ordinal", "choice"):
            return self.values[int(np.argmin(np.abs(self.places - unit)))]
        if self.scale == "log":
            value = self.low * math.exp(unit * math.log(self.high / self.low))
        else:
            value = self.low + unit * (self.high - self.low)
        if self.step:
            value = self._on_step(value)
        if self.kind == "int":
            return int(min(max(round(value), math.ceil(self.low)), math.floor(self.high)))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def options(self) -> list[Any] | None:
        """All values in ascending (choice: given) order; None for a continuous range, or one of over MOST_OPTIONS."""
        if self.values:
            return list(self.values)
        step = self.step or (1.0 if self.kind == "int" else 0.0)
        if not step:
            return None
        least, most = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        if most - least >= MOST_OPTIONS:
            return None
        return list(dict.fromkeys(self.value(self.unit(step * i)) for i in range(least, most + 1)))

    def contains(self, value: Any) -> bool:
        """Whether the value is one this parameter can take (a step is not looked at)."""
        if self.kind in ("ordinal", "choice"):
            return value in self.values
        return is_number(value) and self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Space:
    """Parameters in the order of the sweep file; units are float (N, P) in [0, 1], P = number of parameters."""

    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        names = [p.name for p in self.parameters]
        if not names:
            raise UserError("the space of the search is empty: give at least one parameter more than one value")
        if len(set(names)) != len(names):
            raise UserError(f"a parameter is given twice: {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the configuration."""
        return tuple(p.name for p in self.parameters)

    def unit(self, values: Mapping[str, Any]) -> np.ndarray:
        """Values -> units, float (P,). Keys that are no parameters are passed over; a missing one is a KeyError."""
        return np.array([p.unit(values[p.name]) for p in self.parameters])

    def coordinates(self, values: Mapping[str, Any]) -> np.ndarray:
        """As `unit`, but values beyond the bounds keep their distance: coordinates below 0 or above 1, float (P,)."""
        return np.array([p.coordinate(values[p.name]) for p in self.parameters])

    def values(self, unit: Sequence[float] | np.ndarray) -> dict[str, Any]:
        """Units (P,) -> {key: plain Python value}."""
        return {p.name: p.value(u) for p, u in zip(self.parameters, unit, strict=True)}

    def snap(self, units: np.ndarray) -> np.ndarray:
        """Units (N, P) moved to the nearest ones that a value stands behind (ordinal, choice, int, step)."""
        units = np.clip(np.asarray(units, float), 0.0, 1.0).copy()
        for column, p in enumerate(self.parameters):
            if p.kind in ("ordinal", "choice"):
                nearest = np.abs(units[:, column, None] - p.places).argmin(axis=1)
                units[:, column] = p.places[nearest]
            elif p.kind == "int" or p.step:
                units[:, column] = [p.unit(p.value(u)) for u in units[:, column]]
        return units

    def features(self, units: np.ndarray) -> np.ndarray:
        """Units (N, P) -> what the model sees, float (N, E): a choice of n becomes n columns, 0 or sqrt(1/2)."""
        columns = []
        for column, p in enumerate(self.parameters):
            if p.kind != "choice":
                columns.append(units[:, column : column + 1])
                continue
            nearest = np.abs(units[:, column, None] - p.places).argmin(axis=1)
            columns.append(np.eye(len(p.values))[nearest] * math.sqrt(0.5))  # two values are 1 apart
        return np.hstack(columns)


def space_to_json(space: Space) -> list[dict[str, Any]]:
    """The space as plain JSON; the inverse of `space_from_json`."""
    return [dataclasses.asdict(p) | {"values": list(p.values)} for p in space.parameters]


def space_from_json(items: list[dict[str, Any]]) -> Space:
    """The space that `space_to_json` wrote.

    Raises:
        UserError: it has been changed into something else.
    """
    fields = {field.name: field.type for field in dataclasses.fields(Parameter)}
    for item in items if isinstance(items, list) else [None]:
        if not isinstance(item, dict) or set(item) != set(fields):
            raise UserError("the space of the search is damaged: a parameter lacks a field, or has another")
        plain = isinstance(item["values"], list) and all(isinstance(v, (str, int, float)) for v in item["values"])
        numbers = all(is_number(item[name]) for name in ("low", "high", "step"))
        if not (plain and numbers and isinstance(item["name"], str)):
            raise UserError("the space of the search is damaged: a field of a parameter has another type")
        ordinal = item["kind"] == "ordinal" and not all(map(is_number, item["values"]))
        if ordinal or item["kind"] not in KINDS or item["scale"] not in SCALES:
            raise UserError(f"the space of the search is damaged: kind or scale of {item['name']}")
    return Space(tuple(Parameter(**{**item, "values": tuple(item["values"])}) for item in items))


def _short(value: float) -> str:
    return f"{value:g}" if abs(value) <= LARGEST else "a number beyond 1e300"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that the search can hold: finite, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def fresh(space: Space, units: np.ndarray, tried: Collection[tuple[Any, ...]]) -> dict[str, Any]:
    """The values of the first of `units` (N, P) that are not in `tried`; where all are, `first_untried`."""
    for unit in space.snap(units):
        values = space.values(unit)
        if tuple(values.values()) not in tried:
            return values
    return first_untried(space, tried)  # a space of few configurations


def first_untried(space: Space, tried: Collection[tuple[Any, ...]]) -> dict[str, Any]:
    """The first configuration of the grid, the last parameter changing fastest, that is not in `tried`.

    Raises:
        UserError: all are, or a parameter has a continuous range.
    """
    grid = all_values(space)
    if grid is None:
        name = next(parameter.name for parameter in space.parameters if parameter.options() is None)
        raise UserError(f"{name}: a continuous parameter has no grid; give it `values`, or use another method")
    for values in itertools.product(*grid):
        if values not in tried:
            return dict(zip(space.names, values, strict=True))
    raise UserError(f"the space has {size(space)} configurations and all are tried: lower --budget or widen it")


def size(space: Space) -> float:
    """Number of configurations of a space; infinite with a continuous range."""
    grid = all_values(space)
    return math.inf if grid is None else math.prod(map(len, grid))


def all_values(space: Space) -> list[list[Any]] | None:
    """All values of each parameter; None where one has a continuous range."""
    options = [parameter.options() for parameter in space.parameters]
    known = [values for values in options if values is not None]
    return known if len(known) == len(options) else None
