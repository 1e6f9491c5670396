"""The picture of a comparison: curves with their spread, learning rates as they were, and the last values by seed.

    draw(result, folder)                                 # folder/curves.png

A colour is a schedule, the style of a line a warm-up (and learning rate). Learning rates are read from the
metrics.jsonl of the trainings, so they are what was used.
"""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from engine.compare.plan import SCHEDULE
from engine.compare.result import Cell, Result
from engine.run.log import read_metrics
from engine.search.trials import run_folder
from engine.visualization.sheet import BLUE, GREEN, ORANGE, RED, plain, save, sheet
from pipelines.errors import UserError

COLOURS, STYLES = (BLUE, ORANGE, GREEN, RED), ("-", "--", ":", "-.")
LABELS = 12  # combinations that a legend can name


def draw(result: Result, folder: Path) -> Path | None:
    """Writes folder/curves.png; None where no training gave a value."""
    path = folder / "curves.png"
    cells = [cell for cell in result.cells if cell.final]
    if not cells:
        path.unlink(missing_ok=True)  # of an earlier report
        return None
    folder.mkdir(parents=True, exist_ok=True)
    rates = {cell.label: rates_of(result, cell) for cell in cells}
    drawn = any(rates.values())
    figure = sheet(10.5, 5.0)
    spaces = figure.add_gridspec(2, 2, width_ratios=(1.6, 1))
    looks: dict[str, dict[str, Any]] = {}  # colour and style of each combination
    schedules = itertools.groupby(cells, key=lambda cell: cell.values.get(SCHEDULE))
    for number, (_, group) in enumerate(schedules):  # a function may have more schedules than there are colours
        for place, cell in enumerate(group):
            looks[cell.label] = {"color": COLOURS[number % len(COLOURS)], "ls": STYLES[place % len(STYLES)]}
    _curves(figure.add_subplot(spaces[:, 0]), result, cells, looks)
    _finals(figure.add_subplot(spaces[1, 1] if drawn else spaces[:, 1]), result, cells, looks)
    if drawn:
        axes = figure.add_subplot(spaces[0, 1])
        for label, points in rates.items():
            if points:
                axes.plot(*zip(*points), lw=1.3, **looks[label])
        axes.set(xlabel="epoch", title="learning rate, as it was")
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        plain(axes)
    save(figure, path)
    return path


def rates_of(result: Result, cell: Cell) -> list[tuple[float, float]]:
    """(epochs, learning rate) of a combination's first training with a value; empty where it logged none."""
    trial = next(trial for trial in cell.trials if trial.seed in cell.final)
    try:
        records = read_metrics(run_folder(result.study, trial) / "metrics.jsonl")
    except UserError:  # its run folder was removed since
        return []
    points = []
    for record in records:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged since
            if record.get("kind") == "train":
                points.append((int(record["step"]), float(record["lr"])))
    steps = max((step for step, _ in points), default=0)
    return [(result.epochs * step / steps, lr) for step, lr in points]  # the last record is of the last step


def _curves(axes: Any, result: Result, cells: list[Cell], looks: dict) -> None:
    """Mean of each combination by epoch, and from its lowest to its highest seed."""
    ends = []
    for cell in cells:
        curves = [dict(trial.curve) for trial in cell.trials if trial.seed in cell.final]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))
        values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
        label = cell.label if len(cells) <= LABELS else None
        axes.plot(epochs, values.mean(0), lw=1.8, label=label, **looks[cell.label])
        axes.fill_between(epochs, values.min(0), values.max(0), alpha=0.12, lw=0, color=looks[cell.label]["color"])
        ends.append(values[:, len(epochs) // 2 :])
    # The climb of the first epochs would flatten what is compared: the axis shows all of the second half.
    low, high = min(map(np.min, ends)), max(map(np.max, ends))
    margin = 0.08 * (high - low) or 0.01
    axes.set_ylim(low - margin, high + margin)
    axes.set(xlabel="epoch", ylabel=result.study.metric, title="mean of the seeds, and their range")
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
    if len(cells) <= LABELS:
        axes.legend(fontsize=8, loc="lower right")


def _finals(axes: Any, result: Result, cells: list[Cell], looks: dict) -> None:
    """Last epoch's values: a dot a training, a bar the mean; a grey line joins the trainings of one seed."""
    for seed in result.seeds:
        points = [(place, cell.final[seed]) for place, cell in enumerate(cells) if seed in cell.final]
        axes.plot(*zip(*points), color="#C9CED3", lw=0.8, zorder=1)
    for place, cell in enumerate(cells):
        values = list(cell.final.values())
        colour = looks[cell.label]["color"]
        axes.scatter([place] * len(values), values, s=22, color=colour, zorder=3)
        axes.hlines(np.mean(values), place - 0.3, place + 0.3, color=colour, lw=2, zorder=2)
    names = [cell.label.replace("warm-up ", "w ").replace(", ", "\n") for cell in cells]
    axes.set_xticks(range(len(cells)), names if len(cells) <= LABELS else ["" for _ in cells], fontsize=7)
    axes.set(ylabel=result.study.metric, title="last epoch; grey: the same seed")
    plain(axes)
