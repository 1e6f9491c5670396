"""A finished study from elsewhere, as a CSV table with one row a trial: what `--import` reads.

    name,order,models.optimizer.lr,weight_decay,T_max,eta_min,val/hmean,epochs
    exp_1403,4,9.09e-05,3.24e-05,15,1.21e-05,0.97431,15

A column is a searched key, whole or its last part; the metric (`val/hmean`, `hmean`, `Val H-mean`; without a column of
page means, val/hmean_macro, a column of H-means is taken for them, and said to be); optionally name,
order (or number), epochs, minutes, precision, recall, state, reason. Capitals, blanks and hyphens in a header do not
matter, other columns are passed over. Without a state a row that trained less than the longest one counts as stopped
early, a row without a value as infeasible. Trials keep the order of the rows, or that of the column `order`.

A row stopped early is carried on to the epochs of the longest one by the learning-curve model, as every stopped trial
is, but from a single point: its uncertainty is large (0.0035 of H after 5 of 15 epochs).
"""

import csv
import math
from pathlib import Path
from typing import Any

from engine.search import study
from engine.search.model import curves
from engine.search.space import Parameter, Space
from engine.search.study import ENDED, Trial, field_of
from pipelines.errors import UserError

ORDERS = ("order", "number", "trial", "run")
MOST_EPOCHS = 100_000  # as of a training; the curve's model keeps a number for each
SCORES = ("precision", "recall")


def read(
    path: Path | str, space: Space, metric: str = "val/hmean", goal: str = "maximize", notices: list[str] | None = None
) -> list[Trial]:
    """Rows of a table -> ended trials of kind "imported", numbered from 0 in the study's own order.

    Args:
        path: a CSV file in UTF-8, first line the header.
        space: every parameter needs a column; values outside its bounds are kept as they are.
        metric: of the study; its column may be headed by the whole name or its last part.
        notices: what the user should know of the reading is added, a line each.

    Raises:
        UserError: no file, a column missing or given twice, a row (counted from 1 below the header) with a wrong cell.
    """
    header, rows = _cells(Path(path))
    columns = _columns(Path(path), header, space, metric)
    title = header[columns["metric"]]
    if notices is not None and field_of(metric) != "hmean" and _plain(title) in _spellings("hmean"):
        notices.append(f"note: {path} has no column {metric}: its column {title} is taken for it")
    trials = [_trial(f"{path}: row {n}", row, columns, space, metric) for n, row in enumerate(rows, 1)]
    in_h = field_of(metric) in study.SCORES and all(
        0 <= trial.value <= 1 for trial in trials if trial.value is not None
    )
    longest = max((trial.epochs for trial in trials), default=0)
    for trial in trials:
        if not trial.state:
            early = trial.epochs < longest and trial.epochs > 0
            trial.state = "infeasible" if trial.value is None else "stopped" if early else "finished"
        if trial.state == "stopped" and trial.value is not None and 0 < trial.epochs < longest:
            # One point of its curve: what training curves do in general is all that carries it on.
            sign = 1.0 if goal == "maximize" else -1.0
            trial.estimate = curves.forecast([(trial.epochs, trial.value)], [], longest, sign, score=in_h).estimate
    if "order" in columns:
        trials.sort(key=lambda trial: trial.number)  # stable: equal places keep the order of the rows
    for number, trial in enumerate(trials):
        trial.number = number
    return trials


def _cells(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no UTF-8 text; save the table as CSV") from None
    try:
        lines = [line for line in csv.reader(text.splitlines(), strict=True) if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV table ({error})") from None
    if len(lines) < 2:
        raise UserError(f"{path}: needs a header and at least one row")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(lines[0]):
            raise UserError(f"{path}: row {number} has {len(line)} cells, the header {len(lines[0])}")
    return lines[0], lines[1:]


def _plain(text: str) -> str:
    return text.strip().lower().replace(" ", "_").replace("-", "_")


def _columns(path: Path, header: list[str], space: Space, metric: str) -> dict[str, int]:
    """{parameter's name, "metric", "order", "name", "epochs", ...: column}; the optional ones only where present."""
    last = _plain(field_of(metric))
    titles, columns = [_plain(title) for title in header], {}
    wanted = {p.name: [_plain(p.name), _plain(p.name.rsplit(".", 1)[-1])] for p in space.parameters}
    wanted["metric"] = [_plain(metric), *_spellings(last)]
    if last == "hmean_macro" and not set(titles) & set(wanted["metric"]):
        wanted["metric"] = _spellings("hmean")
    needed = len(wanted)
    wanted |= {"order": list(ORDERS)} | {name: [name] for name in ("name", "epochs", "minutes", "state", "reason")}
    wanted |= {name: [name, f"val_{name}", f"val/{name}"] for name in SCORES}
    for place, (key, spellings) in enumerate(wanted.items()):
        found = [column for column, title in enumerate(titles) if title in spellings]
        if len(found) > 1:
            both = " and ".join(header[column] for column in found)
            raise UserError(f"{path}: the columns {both} mean the same; keep one")
        if found:
            columns[key] = found[0]
        elif place < needed:
            name = metric if key == "metric" else key
            raise UserError(f"{path}: no column {name}; the header has {', '.join(header)}")
    return columns


def _spellings(field: str) -> list[str]:
    """How a column of a metric may be headed."""
    names = ["hmean", "h_mean"] if field == "hmean" else [field]
    return [start + name for name in names for start in ("", "val_", "val/")]


def _trial(where: str, row: list[str], columns: dict[str, int], space: Space, metric: str) -> Trial:
    cells = {key: row[column].strip() for key, column in columns.items()}
    values = {p.name: _value(where, p, cells[p.name]) for p in space.parameters}
    value = _number(where, metric, cells["metric"]) if cells["metric"] else None
    state = cells.get("state", "")
    if state and state not in ENDED:
        raise UserError(f"{where}: state {state} is none of {', '.join(ENDED)}")
    if state in ("finished", "stopped") and value is None:
        raise UserError(f"{where}: a {state} trial needs a value of {metric}")
    epochs = _number(where, "epochs", cells.get("epochs") or "0")
    if not 0 <= epochs <= MOST_EPOCHS:
        raise UserError(f"{where}: epochs {epochs:g} is not between 0 and {MOST_EPOCHS}")
    order = _number(where, "order", cells.get("order") or "0")
    scores = {name: _number(where, name, cells[name]) for name in SCORES if cells.get(name)}
    key = field_of(metric)
    return Trial(
        number=round(order),
        values=values,
        kind="imported",
        seed=0,
        state=state,
        attempts=1,
        value=None if state == "infeasible" else value,
        scores={key: value, **scores} if value is not None else {},
        epochs=round(epochs),
        minutes=_number(where, "minutes", cells.get("minutes") or "0"),
        reason=cells.get("reason", ""),
        name=cells.get("name", ""),
    )


def _number(where: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise UserError(f"{where}: {name} {text} is no number") from None
    if not math.isfinite(number):
        raise UserError(f"{where}: {name} {text} is not finite")
    return number


def _value(where: str, parameter: Parameter, text: str) -> Any:
    """A cell as the parameter's own type: ordinal and choice as the value of the space it stands for."""
    if parameter.kind == "choice":
        known = {str(value).lower(): value for value in parameter.values}
        if text.lower() not in known:
            allowed = ", ".join(map(str, parameter.values))
            raise UserError(f"{where}: {parameter.name} {text or 'is empty'} is none of {allowed}")
        return known[text.lower()]
    if not text:
        raise UserError(f"{where}: {parameter.name} is empty")
    number = _number(where, parameter.name, text)
    same = [value for value in parameter.values if value == number]
    if same:
        return same[0]
    return round(number) if number == round(number) and (parameter.kind in ("int", "ordinal")) else number
