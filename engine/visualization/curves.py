"""The curves of a run as one picture: losses, learning rate, scores, speed.

    curves("runs/mine/metrics.jsonl", "curves.png")

Needs matplotlib and no display.
"""

from pathlib import Path
from typing import Any

import numpy as np

from engine.run.log import read_metrics
from engine.visualization.sheet import sheet
from pipelines.errors import UserError


def curves(metrics_path: Path | str, out_png: Path | str) -> Path:
    """Draws a run's metrics.jsonl: losses, learning rate, H-mean with precision and recall, speed and data wait.

    Raises:
        UserError: metrics.jsonl cannot be read, or holds no record yet.
    """
    records = read_metrics(Path(metrics_path))
    train = [r for r in records if r.get("kind") == "train"]
    validation = [r for r in records if r.get("kind") == "validation"]
    if not train and not validation:
        raise UserError(f"{metrics_path}: no records to draw yet")
    figure = sheet(13, 8)
    (losses, rate), (hmean, speed) = figure.subplots(2, 2)
    _losses(losses, train)
    _lines(rate, train, "step", {"lr": "learning rate"})
    rate.set(title="learning rate", xlabel="step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _scores(hmean, validation)
    _speed(speed, train)
    for axes in (losses, rate, hmean, speed):
        axes.grid(alpha=0.25)
    out = Path(out_png)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    return out


def _lines(axes: Any, records: list[dict], x: str, names: dict[str, str], marker: str = "", **style: Any) -> None:
    """One line for each key that has numbers; null (NaN) leaves a gap. A single point is shown as one."""
    for key, label in names.items():
        points = [(r[x], np.nan if r[key] is None else r[key]) for r in records if key in r and x in r]
        if points:
            axes.plot(*zip(*points), label=label, marker=marker or ("o" if len(points) == 1 else ""), ms=3, **style)


def _losses(axes: Any, train: list[dict]) -> None:
    from matplotlib.ticker import LogLocator

    parts = {"prob_loss": "probability", "thresh_loss": "threshold", "binary_loss": "binary"}
    _lines(axes, train, "step", {"loss": "total"}, color="black", lw=1.6)
    _lines(axes, train, "step", parts, lw=1)
    axes.set(title="loss", xlabel="step")
    values = [r[k] for r in train for k in ("loss", *parts) if r.get(k) is not None]
    if values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if axes.lines:
        axes.legend(fontsize=8)


def _scores(axes: Any, validation: list[dict]) -> None:
    _lines(axes, validation, "epoch", {"hmean": "H-mean"}, marker="o", color="black", lw=1.8)
    names = {"hmean_macro": "page mean", "precision": "precision", "recall": "recall"}
    _lines(axes, validation, "epoch", names, marker=".", lw=1)
    known = [(r["hmean"], r["epoch"]) for r in validation if r.get("hmean") is not None and "epoch" in r]
    title = "validation"
    if known:
        best, epoch = max(known)
        title += f": best H-mean {best:.4f} in epoch {epoch}"
    axes.set(title=title, xlabel="epoch")
    if axes.lines:
        axes.legend(fontsize=8, loc="lower right")


def _speed(axes: Any, train: list[dict]) -> None:
    _lines(axes, train, "step", {"images_per_second": "images per second"}, color="tab:blue")
    axes.set(title="speed and data wait", xlabel="step")
    axes.set_ylabel("images per second", color="tab:blue")
    axes.set_ylim(bottom=0)
    wait = axes.twinx()
    shares = [{**r, "wait": 100 * r["data_wait_share"]} for r in train if r.get("data_wait_share") is not None]
    _lines(wait, shares, "step", {"wait": "data wait"}, color="tab:orange")
    wait.set_ylabel("time spent waiting for data, %", color="tab:orange")
    wait.set_ylim(0, max([10.0, *(r["wait"] for r in shares)]) * 1.05)
