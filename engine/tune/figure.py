"""One picture of a tuning: H-mean against each setting around the best."""

from pathlib import Path
from typing import Any

from engine.config import PostConfig
from engine.visualization.sheet import BLUE, GREEN, GREY, RED, plain, save, sheet

COLUMNS = 3
BELOW = 0.02  # H-mean under the start that is still shown: a threshold far off falls to 0 and would flatten the rest
WORDS = {"max_candidates": "max_candidates (log scale)"}


def draw(
    path: Path, curves: list[tuple[str, list, list[float]]], best: PostConfig, start: PostConfig, old: float
) -> None:
    """Writes the picture.

    Args:
        path: PNG file.
        curves: of `search.slices`. best, start: settings.
        old: H-mean of all pages with the start's settings.
    """
    rows = -(-len(curves) // COLUMNS)
    figure = sheet(3.4 * COLUMNS, 2.3 * rows + 0.35)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, (name, values, heights) in zip(panels, curves):
        _panel(axes, name, values, heights, getattr(best, name), getattr(start, name))
        axes.axhline(old, color=GREY, ls="--", lw=1, label="H-mean with the start's settings")
        if min(heights) < old - BELOW:
            axes.set_ylim(old - BELOW, max(*heights, old) + BELOW / 10)
        axes.set_title(WORDS.get(name, name), fontsize=9)
        axes.tick_params(labelsize=8)
        plain(axes)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("H-mean", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4, frameon=False)
    save(figure, path)


def _panel(axes: Any, name: str, values: list, heights: list[float], best: Any, start: Any) -> None:
    discrete = isinstance(best, str) or name == "connectivity"
    places = list(range(len(values))) if discrete else values
    if discrete:
        axes.set_xticks(places, [str(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    elif name == "max_candidates":
        axes.set_xscale("log")
        axes.set_xticks(places, [str(value) for value in values], minor=False)
        axes.minorticks_off()
    style = {"color": BLUE, "lw": 1.4, "ls": "none" if discrete else "-", "marker": "o", "ms": 3.5}
    axes.plot(places, heights, label="others as in the best", **style)
    at = places[values.index(start)]
    axes.axvline(at, color=RED, lw=1, ls=":")
    axes.plot([at], [heights[values.index(start)]], color=RED, marker="D", ms=6, ls="none", label="start's value")
    at = places[values.index(best)]
    axes.plot([at], [heights[values.index(best)]], color=GREEN, marker="*", ms=11, ls="none", label="best")
