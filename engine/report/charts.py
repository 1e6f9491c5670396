"""Line and bar charts as inline SVG. They need nothing, follow light and dark, and a few lines of script add hovering.

    line_chart("Loss", [Line("total", points, 0)], log=True)        # the figure as HTML

Colours are Okabe and Ito's, told apart by all common kinds of colour blindness, as CSS variables of `style.py`. Series
differ in their dashes as well.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.search.report.words import show
from engine.visualization.document import escaped

# Of the drawing, in its own units: letters of 12 are readable on a phone, where 1 unit is 0.75 px.
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 34
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")

Point = tuple[float, float | None, float | None, float | None]  # x, mean, least, greatest


@dataclass(frozen=True)
class Line:
    """A series; points in file order, None leaves a gap. `colour` is the number of a CSS variable, 0 = ink."""

    name: str
    points: Sequence[Point]
    colour: int
    marks: bool = False


@dataclass(frozen=True)
class Axis:
    """The range of values and its ticks; a logarithmic one has powers of ten times 1, 2, 5."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], log: bool = False, zero: bool = False) -> Axis:
    """A round range around values; `zero` starts it at 0. Logarithmic only where all values are positive."""
    low, high = min(values), max(values)
    if log and low > 0 and high / low > 1.5:
        return _log_axis(low, high)
    low = min(0.0, low) if zero else low
    if high - low <= 1e-9 * max(abs(high), abs(low)):  # one value: a range around it
        pad = abs(high) * 0.1 or 1.0
        low, high = (low, high + pad) if zero and low == 0 else (low - pad, high + pad)
    raw = (high - low) / 5  # ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(k for k in (1, 2, 5, 10) if k * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return Axis(first * step, last * step, ticks)


def _log_axis(low: float, high: float) -> Axis:
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ladder = [k * 10.0**p for p in powers for k in (1, 2, 5)]
    start = max(t for t in ladder if t <= low * 1.0001)
    end = min(t for t in ladder if t >= high * 0.9999)
    ticks = [t for t in ladder if start <= t <= end]
    if len(ticks) > 7:  # then powers of ten alone, thinned
        tens = [t for t in ticks if abs(math.log10(t) - round(math.log10(t))) < 1e-9]
        ticks = tens[:: -(-len(tens) // 7)]
    return Axis(start, end, ticks, log=True)


def line_chart(
    title: str,
    lines: Sequence[Line],
    unit: str = "",
    log: bool = False,
    zero: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """A figure with title, legend and lines over steps; "" where no line has a point.

    Args:
        unit: after the title, e.g. "images a second".
        log: logarithmic where all values are positive.
        zero: the axis starts at 0.
        marks: steps of incidents, as upright lines.
    """
    lines = [line for line in lines if any(point[1] is not None for point in line.points)]
    if not lines:
        return ""
    known = [value for line in lines for point in line.points for value in point[1:] if value is not None]
    steps = [point[0] for line in lines for point in line.points]
    y, low, high = axis(known, log, zero), min(steps), max(steps)
    x = Axis(low, high, [t for t in axis([low, high]).ticks if low <= t <= high]) if high > low else axis([low])
    upright = "".join(
        f'<line class="mark" x1="{_x(x, at)}" x2="{_x(x, at)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for at in marks
        if x.low <= at <= x.high
    )
    parts = [_frame(x, y, "step"), upright, *[_drawn(line, i, x, y) for i, line in enumerate(lines)]]
    parts.append(f'<line class="hair" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>')
    values = [[[round(x, 2), None if y is None else float(f"{y:.5g}")] for x, y, _, _ in line.points] for line in lines]
    names = [line.name for line in lines]
    data = {"x": [LEFT, WIDTH - RIGHT, x.low, x.high], "lines": [list(pair) for pair in zip(names, values)]}
    body = f'<svg role="img" aria-label="{escaped(title)}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
    head = f"<figcaption><b>{escaped(title)}</b>{escaped(f' ({unit})' if unit else '')}{_legend(lines)}</figcaption>"
    return f'<figure class="chart" data-chart="{escaped(json.dumps(data))}">{head}{body}<output></output></figure>'


def _legend(lines: Sequence[Line]) -> str:
    if len(lines) < 2:
        return ""
    samples = (
        f'<span><svg viewBox="0 0 26 8" width="26" height="8" aria-hidden="true"><line x1="0" x2="26" y1="4" y2="4" '
        f'class="line c{line.colour}" stroke-dasharray="{DASHES[i % len(DASHES)]}"/></svg> {escaped(line.name)}</span>'
        for i, line in enumerate(lines)
    )
    return f'<div class="legend">{"".join(samples)}</div>'


def _x(x: Axis, value: float) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * x.place(value), 1)


def _y(y: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y.place(value), 1)


def _frame(x: Axis, y: Axis, name: str) -> str:
    parts = []
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{escaped(show(float(f"{tick:.6g}")))}</text>'
        )
    for tick in x.ticks:
        at = _x(x, tick)
        anchor = "end" if at > WIDTH - 40 else "middle"
        shown = f"{tick:g}" if abs(tick) < 1e5 else f"{tick / 1e6:g}M" if abs(tick) >= 1e6 else f"{tick / 1e3:g}k"
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{shown}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join([*parts, f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escaped(name)}</text>'])


def _drawn(line: Line, number: int, x: Axis, y: Axis) -> str:
    """The line with gaps where there is no number and where steps go back; a band of least to greatest behind it."""
    runs: list[list[tuple[float, float, float, float]]] = [[]]
    for step, mean, least, greatest in line.points:
        if mean is None or least is None or greatest is None:
            runs.append([])
            continue
        if runs[-1] and step < runs[-1][-1][0]:
            runs.append([])
        runs[-1].append((step, mean, least, greatest))
    parts = []
    for run in filter(None, runs):
        places = [(_x(x, step), _y(y, mean)) for step, mean, _, _ in run]
        if any(least != greatest for _, _, least, greatest in run):
            upper = [f"{_x(x, step)},{_y(y, greatest)}" for step, _, _, greatest in run]
            lower = [f"{_x(x, step)},{_y(y, least)}" for step, _, least, _ in reversed(run)]
            parts.append(f'<polygon class="band c{line.colour}" points="{" ".join(upper + lower)}"/>')
        dash = DASHES[number % len(DASHES)]
        points = " ".join(f"{a},{b}" for a, b in places)
        parts.append(f'<polyline class="line c{line.colour}" stroke-dasharray="{dash}" points="{points}"/>')
        if line.marks or len(run) == 1:
            parts += [f'<circle class="dot c{line.colour}" cx="{a}" cy="{b}" r="2.6"/>' for a, b in places]
    return "".join(parts)


@dataclass(frozen=True)
class Bar:
    """One bar: its height (0..1), what it says when pointed at, and where it leads ("" = nowhere)."""

    value: float
    words: str
    link: str = ""


FLOORS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def page_bars(title: str, bars: Sequence[Bar], total: int) -> str:
    """Bars of H-mean, worst first, up to 1; `total` pages there are, of which `bars` are the worst.

    They start at 0, or where all are higher at one of FLOORS, which is said.
    """
    if not bars:
        return ""
    width, height = 1180, 220
    x0, y0, across = 40, height - 22, width - 46
    floor = max(low for low in FLOORS if low == 0 or low < min(bar.value for bar in bars))
    parts = []
    for tick in (floor + (1 - floor) * k / 5 for k in range(6)):
        at = round(y0 - (y0 - 8) * (tick - floor) / (1 - floor), 1)
        parts.append(f'<line class="grid" x1="{x0}" x2="{width - 6}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{x0 - 6}" y="{at + 4}" text-anchor="end">{tick:.4g}</text>')
    step = min(across / len(bars), 40.0)
    for i, bar in enumerate(bars):
        tall = round((y0 - 8) * min(1.0, max((bar.value - floor) / (1 - floor), 0.004)), 1)
        place = f'x="{x0 + i * step:.2f}" width="{max(0.5, step - min(1.0, 0.2 * step)):.2f}"'
        hit = f'<rect class="hit" {place} y="8" height="{y0 - 8}"/>'  # a short bar is hard to point at
        shown = f'{hit}<rect class="bar" {place} y="{round(y0 - tall, 1)}" height="{tall}"/>'
        shown = f"<g><title>{escaped(bar.words)}</title>{shown}</g>"
        parts.append(f'<a href="{escaped(bar.link)}">{shown}</a>' if bar.link else shown)
    what = f"the worst {len(bars)} of {total} pages" if len(bars) < total else f"{total} pages, worst first"
    what += f"; the axis starts at {floor:g}" if floor else ""
    parts.append(f'<text x="{x0}" y="{height - 5}">{what}</text>')
    body = f'<svg role="img" aria-label="{escaped(title)}" viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
    return f'<figure class="bars"><div class="roll">{body}</div></figure>'
