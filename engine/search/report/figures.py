"""Pictures of a study, as small PNGs: order of trials, learning curves, influence, parallel coordinates, epochs.

States differ in their marks as well as in their colours.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from engine.search.report.effects import Z90, Effect, Range
from engine.search.report.findings import Findings
from engine.search.report.words import number, short, show
from engine.search.space import Parameter
from engine.search.study import Study, Trial
from engine.visualization.sheet import BLACK, BLUE, GREEN, GREY, ORANGE, RED, SKY, plain, save, sheet

MARKS = {"finished": ("o", BLUE), "stopped": ("D", ORANGE), "infeasible": ("X", RED)}
LABELS = {"finished": "finished", "stopped": "stopped early", "infeasible": "infeasible"}
COLOURED = 12  # lines of the parallel coordinates; more cannot be followed by eye


def draw(study: Study, found: Findings, folder: Path, baseline: float | None = None) -> dict[str, Path]:
    """Writes every picture there is something to show in; {name: file}. Makes the folder.

    Args:
        baseline: value of the configuration to beat, for a line; None = no line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "order": _order(study, found, baseline),
        "curves": _curves(study, found),
        "influence": _influence(study, found),
        "parallel": _parallel(study, found),
        "epochs": _epochs(study),
    }
    paths = {}
    for name, figure in pictures.items():
        path = folder / f"{name}.png"
        if figure is None:
            path.unlink(missing_ok=True)  # of an earlier report
            continue
        save(figure, path)
        paths[name] = path
    return paths


def _order(study: Study, found: Findings, baseline: float | None) -> Any | None:
    """Value against the order of trials, with the best so far."""
    trials = _ended(study)
    if not trials:
        return None
    figure = sheet(8.5, 3.8)
    axes = figure.subplots()
    _values(axes, trials)
    guessed = [(t.number + 0.12, *t.estimate) for t in trials if t.estimate is not None]
    if guessed:
        places, means, sds = zip(*guessed)
        style = {"fmt": "none", "ecolor": ORANGE, "alpha": 0.6, "capsize": 3, "lw": 1}
        label = "what the whole training would give (90 %)"
        axes.errorbar(places, means, Z90 * np.array(sds), label=label, **style)
    if found.incumbents:
        numbers, best = zip(*found.incumbents)
        last = max(t.number for t in trials) + 0.4
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=GREEN, lw=1.6, label="best so far", zorder=2)
    if baseline is not None:
        axes.axhline(baseline, color=GREY, ls="--", lw=1, label="baseline configuration")
    if baseline is not None and found.noise.sd:
        half = Z90 * found.noise.sd
        axes.axhspan(baseline - half, baseline + half, color=GREY, alpha=0.13, lw=0, label="its noise (90 %)")
    axes.set(xlabel="trial, in order", ylabel=study.metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
    _legend_beside(axes)
    return figure


def _ended(study: Study) -> list[Trial]:
    return [trial for trial in study.trials if trial.kind != "confirm" and trial.state in MARKS]


def _values(axes: Any, trials: list[Trial]) -> None:
    """A mark for every trial at its value; those without one lie below all others."""
    heights = [trial.value for trial in trials if trial.value is not None]
    if heights:
        floor = min(heights) - 0.08 * (np.ptp(heights) or 0.01 * abs(heights[0]) or 1.0)
    else:
        floor = 0.0
        axes.set_yticks([])
    for state, (mark, colour) in MARKS.items():
        points = [(t.number, floor if t.value is None else t.value) for t in trials if t.state == state]
        if points:
            label = "infeasible (no value)" if state == "infeasible" else LABELS[state]
            face = "white" if state == "stopped" else colour
            axes.scatter(*zip(*points), marker=mark, s=46, color=colour, facecolor=face, label=label, zorder=3)


def _legend_beside(axes: Any) -> None:
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _curves(study: Study, found: Findings) -> Any | None:
    """Learning curves of all trials, the best one bold."""
    trials = [t for t in study.trials if t.curve and t.kind != "confirm"]
    if not any(len(t.curve) > 1 for t in trials):  # of imported trials only the last point is known
        return None
    figure = sheet(8.5, 4.2)
    axes = figure.subplots()
    winner = found.ranked[0].number if found.ranked else None
    for trial in trials:
        if trial.number == winner:
            continue
        mark, colour = MARKS.get(trial.state, ("o", SKY))
        style = {"color": colour, "alpha": 0.6, "lw": 1.1, "markevery": [-1], "ms": 5}
        axes.plot(*zip(*trial.curve), marker=mark, **style)
    for trial in trials:
        if trial.number == winner:
            axes.plot(*zip(*trial.curve), color=BLACK, lw=2.6, marker="o", ms=4, label=f"trial {winner}, the best")
    for state, (mark, colour) in MARKS.items():
        if any(t.state == state and t.number != winner for t in trials):
            axes.plot([], [], color=colour, marker=mark, lw=1.1, ms=5, label=LABELS[state])
    values = np.array([value for t in trials for _, value in t.curve])
    # The climb of the first epochs would flatten everything that matters: the axis starts at the worst quarter's end.
    ends = np.array([t.value for t in trials if t.value is not None])
    if len(ends) and np.ptp(values) > 0:
        good, bad = (values.max(), min(ends)) if study.sign > 0 else (values.min(), max(ends))
        margin = 0.6 * abs(good - bad) + 0.1 * np.ptp(values)
        limits = sorted([good + 0.06 * (good - bad + study.sign * margin), bad - study.sign * margin])
        axes.set_ylim(max(limits[0], values.min() - 0.05 * np.ptp(values)), limits[1])
    axes.set(xlabel="epoch", ylabel=study.metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain(axes)
    axes.legend(fontsize=8, loc="lower right" if study.sign > 0 else "upper right")
    return figure


def _influence(study: Study, found: Findings) -> Any | None:
    """One panel a parameter: partial dependence with its band, the slice at the optimum, raw points, the safe range."""
    if not found.effects:
        return None
    columns = min(2, len(found.effects))
    rows = -(-len(found.effects) // columns)
    figure = sheet(4.6 * columns, 3.1 * rows + 0.35)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    pairs = zip(panels, found.effects, found.ranges, study.space.parameters, strict=False)
    for axes, effect, spread, parameter in pairs:
        _panel(axes, study, effect, spread, parameter)
    for axes in panels[len(found.effects) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(study.metric)
    # Bands reach far down where nothing was tried; what matters is between the trials and the expected values.
    heights = [t.reached for t in study.measured] + [h for e in found.effects for h in (*e.mean, *e.slice)]
    margin = 0.12 * np.ptp(heights) or 1e-3 * max(1.0, abs(heights[0]))
    panels[0].set_ylim(min(heights) - margin, max(heights) + margin)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axes: Any, study: Study, effect: Effect, spread: Range, parameter: Parameter) -> None:
    trials = study.measured
    share = (
        f"{100 * effect.share[0]:.0f} % of the variance ({100 * effect.share[1]:.0f} to {100 * effect.share[2]:.0f})"
    )
    axes.set_title(f"{short(effect.name)}: {share}", fontsize=9)
    discrete = parameter.kind in ("ordinal", "choice")
    if discrete:
        error = np.abs(np.array([effect.mean - effect.low, effect.high - effect.mean]))
        style = {"fmt": "s", "color": BLUE, "ms": 5, "capsize": 4, "lw": 1.4}
        axes.errorbar(effect.units, effect.mean, error, label="partial dependence, 90 %", **style)
        axes.plot(
            effect.units, effect.slice, ls="none", marker="_", ms=16, mew=2, color=GREEN, label="others as recommended"
        )
        for value in spread.safe:
            axes.axvspan(parameter.unit(value) - 0.035, parameter.unit(value) + 0.035, color=GREEN, alpha=0.14, lw=0)
    else:
        axes.fill_between(effect.units, effect.low, effect.high, color=SKY, alpha=0.3, lw=0)
        axes.plot(effect.units, effect.mean, color=BLUE, lw=1.6, label="partial dependence, 90 %")
        axes.plot(effect.units, effect.slice, color=GREEN, lw=1.3, ls="--", label="others as recommended")
        low, high = (parameter.unit(value) for value in spread.safe)
        axes.axvspan(low, high, color=GREEN, alpha=0.14, lw=0, label="safe range")
    for state, (mark, _) in MARKS.items():
        same = [(parameter.coordinate(t.values[parameter.name]), t.reached) for t in trials if t.state == state]
        if same:
            face = "white" if state == "stopped" else BLACK
            label = "trials stopped early, as extrapolated" if state == "stopped" else "trials"
            axes.scatter(*zip(*same), marker=mark, s=22, color=BLACK, facecolor=face, lw=0.9, zorder=4, label=label)
    ticks = ticks_of(parameter)
    axes.set_xticks([parameter.unit(value) for value in ticks], [show(value) for value in ticks], fontsize=8)
    axes.tick_params(axis="y", labelsize=8, labelleft=True)
    axes.set_xlim(-0.05, 1.05)
    plain(axes)


def ticks_of(parameter: Parameter) -> list[Any]:
    """Values to label on an axis in units: round ones (1, 2, 5) between the bounds of a number, all others' own."""
    if parameter.kind in ("ordinal", "choice"):
        return list(parameter.values)
    if parameter.scale == "linear":
        places = MaxNLocator(5, integer=parameter.kind == "int").tick_values(parameter.low, parameter.high)
        return [float(f"{t:.6g}") for t in places if parameter.low <= t <= parameter.high]
    decades = range(int(np.floor(np.log10(parameter.low))), int(np.ceil(np.log10(parameter.high))) + 1)
    for leads in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{lead}e{decade}") for decade in decades for lead in leads]
        ticks = [t for t in ticks if parameter.low * 0.999 <= t <= parameter.high * 1.001]
        if len(ticks) <= 7:
            break
    return ticks if len(ticks) > 1 else [parameter.low, parameter.high]


def _parallel(study: Study, found: Findings) -> Any | None:
    """Parallel coordinates: one line a trial over all parameters, coloured by its value, the best one thick."""
    trials, space = found.ranked, study.space
    if len(trials) < 3 or len(space.parameters) < 2:
        return None
    figure = sheet(8.5, 3.6)
    axes = figure.subplots()
    shown = trials[:COLOURED]
    worst = shown[min(len(shown) - 1, max(3, int(0.75 * len(shown))))].result  # colours for the better ones
    low, high = sorted([worst, trials[0].result])
    norm = Normalize(low, high, clip=True)
    # Light = poor, dark = good, so that the best stands out on white; the palest fifth would not be seen.
    shades = colormaps["YlGnBu"](np.linspace(0.22, 1.0, 256))
    colours = ListedColormap(shades if study.sign > 0 else shades[::-1])
    places = np.arange(len(space.parameters))
    for rank, trial in reversed(list(enumerate(trials))):
        style = {"lw": 3.2 if rank == 0 else 1.3, "alpha": 1.0 if rank == 0 else 0.8, "marker": "o", "ms": 4}
        if rank >= COLOURED:
            axes.plot(places, space.coordinates(trial.values), color="#DFE3E7", lw=0.9, zorder=1)
            continue
        axes.plot(places, space.coordinates(trial.values), color=colours(norm(trial.result)), **style)
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    style = {"fontsize": 7.5, "color": "#333"}
    for place, parameter in zip(places, space.parameters, strict=True):
        axes.axvline(place, color=GREY, lw=0.8, zorder=0)
        for value in ticks_of(parameter):
            height = parameter.unit(value)
            axes.text(place - 0.03, height, show(value), ha="right", va="center", bbox=paper, zorder=5, **style)
            axes.plot([place - 0.02, place], [height, height], color=GREY, lw=0.8, zorder=5)
    axes.set_xticks(places, [short(name) for name in space.names])
    axes.set(yticks=[], xlim=(-0.3, places[-1] + 0.15), ylim=(-0.06, 1.06))
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=study.metric, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    return figure


def _epochs(study: Study) -> Any | None:
    """Epochs trained by each trial, against all of them."""
    trials = [trial for trial in _ended(study) if trial.epochs > 0]
    if not trials:
        return None
    few = len(trials) <= 24  # that many have room for a line of text each
    figure = sheet(8.5, 1.2 + (0.24 if few else 0.09) * min(len(trials), 200))
    axes = figure.subplots()
    places = np.arange(len(trials))
    for state, (_, colour) in MARKS.items():
        rows = [i for i, t in enumerate(trials) if t.state == state]
        if rows:
            hatch = {"stopped": "//", "infeasible": "xx"}.get(state, "")
            style = {"color": colour, "height": 0.66, "edgecolor": "white", "lw": 0}
            axes.barh(places[rows], [trials[i].epochs for i in rows], label=LABELS[state], hatch=hatch, **style)
    whole = max(study.whole_epochs(t) for t in trials)
    most = max(whole, max(t.epochs for t in trials))
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    for place, trial in zip(places, trials, strict=True):
        if few and trial.value is not None:
            axes.text(trial.epochs + 0.008 * most, place, number(trial.value), va="center", fontsize=8, bbox=paper)
    axes.axvline(whole, color=GREY, ls="--", lw=1, zorder=0)
    every = 1 if few else 8
    axes.set_yticks(places[::every], [f"trial {t.number}" for t in trials[::every]], fontsize=8)
    axes.set(xlabel=f"epochs trained (a whole training has {whole})", xlim=(0, most * 1.12))
    axes.invert_yaxis()
    plain(axes)
    _legend_beside(axes)
    return figure
