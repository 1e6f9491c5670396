"""The report's blocks, in order. Everything from outside goes through `engine.visualization.document`."""

import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from engine.config import Config
from engine.config.load import canvas_hw, keys_and_values, load_config
from engine.console import one_line
from engine.report import charts
from engine.report.heights import HeightRow
from engine.report.history import History, Run, Thinned
from engine.run.progress import duration
from engine.visualization.document import Block, Code, Heading, Items, Link, Markup, Table, Text, escaped
from pipelines.errors import UserError

if TYPE_CHECKING:  # it imports torch and DALI, which a page from the logs does without
    from engine.report.judge import Judgement, PageScore

BARS = 300  # pages in the chart; more are thinner than a pixel
LISTED = 20
SHOWN_INCIDENTS = 40
SECTIONS = (
    ("curves", "Curves"),
    ("incidents", "Incidents"),
    ("heights", "H-mean by text height"),
    ("pages", "H-mean by page"),
    ("worst", "Worst pages"),
    ("settings", "Settings"),
    ("environment", "Environment"),
    ("again", "Reproduction"),
)
TITLES = dict(SECTIONS)


def heading(name: str) -> Heading:
    """A section's heading, where the links at the top lead to."""
    return Heading(TITLES[name], name)


def overview(run: Run, judged: "Judgement | None", notes: list[str]) -> list[Block]:
    """What it is, the figures that matter, notes on what is missing, links to the sections."""
    history, summary = run.history, run.summary
    preset = str(run.settings.get("preset", ""))
    words = [
        f"preset {preset}" if preset else "",
        f"{history.last_step:.0f} steps",
        "finished" if summary else "not finished",  # whether it still runs is not known from outside
    ]
    log = run.folder / "metrics.jsonl"
    if not summary and log.exists():
        words.append(f"last record {datetime.fromtimestamp(log.stat().st_mtime):%Y-%m-%d %H:%M}")
    tiles = _scores(run, judged)
    speed = history.last.get("images_per_second")
    tiles += [(f"{speed:.4g}", "images/s, last window")] if speed is not None else []
    share = history.last.get("data_wait_share")
    tiles += [(f"{100 * share:.1f} %", "waiting for data")] if share is not None else []
    minutes = summary.get("minutes") if summary else None
    if isinstance(minutes, (int, float)) and not isinstance(minutes, bool) and 0 <= minutes < 1e9:
        tiles.append((duration(60 * minutes), "training to the best"))
    shown = "".join(f"<div><b>{escaped(value)}</b><span>{escaped(name)}</span></div>" for value, name in tiles)
    blocks: list[Block] = [Markup(f'<p class="lead">{escaped(", ".join(filter(None, words)))}</p>')]
    blocks.append(Markup(f"<nav>{''.join(f'<a href=#{name}>{title}</a>' for name, title in SECTIONS)}</nav>"))
    blocks += [Markup(f'<div class="tiles">{shown}</div>')] if shown else []
    if notes:
        blocks.append(Markup(f'<div class="notes">{"".join(f"<p>{escaped(note)}</p>" for note in notes)}</div>'))
    return blocks


def _scores(run: Run, judged: "Judgement | None") -> list[tuple[str, str]]:
    if judged is not None:
        s, where = judged.scores, f"{len(judged.pages)} pages, {judged.config.eval.protocol} CLEval"
        epoch = judged.state.get("epoch")
        main = f"H-mean, epoch {epoch}, {where}" if isinstance(epoch, int) else f"H-mean, {where}"
        return [
            (f"{s['hmean']:.4f}", main), (f"{s['precision']:.4f}", "precision"),
            (f"{s['recall']:.4f}", "recall"), (f"{s['hmean_macro']:.4f}", "mean H-mean of pages"),
        ]  # fmt: skip
    best = run.history.best
    names = (("hmean", "best H-mean, as logged"), ("precision", "precision"), ("recall", "recall"))
    return [(f"{best[key]:.4f}", name) for key, name in names if key in best]


LOSSES = (
    ("loss", "total", 0),
    ("prob_loss", "probability", 1),
    ("thresh_loss", "threshold", 2),
    ("binary_loss", "binary", 3),
)
SCORES = (
    ("hmean", "H-mean", 0),
    ("precision", "precision", 1),
    ("recall", "recall", 2),
    ("hmean_macro", "page mean", 4),
)
HEIGHT_HEADER = (
    "canvas px", "source px", "H-mean", "recall", "", "precision", "texts", "missed", "split", "merged", "detections",
    "false",
)  # fmt: skip


def lines_of(
    source: Thinned, names: Sequence[tuple[str, str, int]], marks: bool = False, factor: float = 1.0
) -> list[charts.Line]:
    """Series of records as lines; names = (key, label, colour)."""
    lines = []
    for key, name, colour in names:
        points = []
        for step, *values in source.series(key):
            mean, least, greatest = (None if value is None else factor * value for value in values)
            points.append((step, mean, least, greatest))
        lines.append(charts.Line(name, points, colour, marks))
    return lines


def curves(history: History) -> list[Block]:
    """Losses, scores, learning rate, speed, data wait, gradient norm."""
    train, marks = history.train, [step for step, _ in history.incidents[:SHOWN_INCIDENTS]]
    speed, share = ("images_per_second", "images a second", 3), ("data_wait_share", "data wait", 2)
    rate, norm = ("lr", "learning rate", 1), ("grad_norm", "gradient norm", 4)
    figures = [
        charts.line_chart("Loss", lines_of(train, LOSSES), log=True, marks=marks),
        charts.line_chart("Validation", lines_of(history.validation, SCORES, marks=True)),
        charts.line_chart("Learning rate", lines_of(train, (rate,)), zero=True),
        charts.line_chart("Throughput", lines_of(train, (speed,)), "images a second", zero=True),
        charts.line_chart("Waiting for data", lines_of(train, (share,), factor=100), "% of the time", zero=True),
        charts.line_chart("Gradient norm", lines_of(train, (norm,)), log=True, marks=marks),
    ]
    figures = [figure for figure in figures if figure]
    if not figures:
        return [heading("curves"), Text("Nothing was recorded yet.")]
    told = []
    if history.train.size > 1:
        told.append(
            f"{history.train.count} records: every point is the mean of {history.train.size}, the band behind a line "
            "reaches from the least to the greatest."
        )
    if history.nonfinite:
        told.append(f"{history.nonfinite} records have a loss that is no number (NaN or infinite): gaps in the lines.")
    if history.num_incidents:
        told.append("Upright dotted lines are incidents.")
    blocks: list[Block] = [heading("curves"), *([Text(" ".join(told))] if told else [])]
    return [*blocks, Markup(f'<div class="charts">{"".join(figures)}</div>')]


def incidents(history: History) -> list[Block]:
    """What went wrong and was dealt with."""
    if not history.num_incidents:
        return [heading("incidents"), Text("None was recorded.")]
    rows = [[str(step), text] for step, text in history.incidents[:SHOWN_INCIDENTS]]
    rest = history.num_incidents - len(rows)
    more = [Text(f"And {rest} more in metrics.jsonl.")] if rest else []
    return [heading("incidents"), Table(["step", "what"], rows), *more]


def by_height(rows: list[HeightRow], judged: "Judgement") -> list[Block]:
    """Scores by text height: a table with a gauge, and what exactly is counted."""
    text = (
        "Height: the short side of a text, in pixels of the canvas that the network sees "
        f"({' x '.join(map(str, canvas_hw(judged.config)))}, height first). "
        "Recall goes by the height of the ground truth and is exact; precision goes by the height of the detection, "
        "which has its own errors, so H-mean joins two slightly different sets."
    )
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in HEIGHT_HEADER) + "</tr>"]
    for row in rows:
        bounds = f"{row.low:g} – {row.high:g}" if row.high < 1e9 else f"{row.low:g} and more"
        source = f"{row.source[0]:.0f} – {row.source[1]:.0f}" if row.texts else ""
        gauge = "" if row.recall is None else f'<meter min="0" max="1" value="{row.recall:.4f}"></meter>'
        scores = ["" if v is None else f"{v:.4f}" for v in (row.hmean, row.recall, row.precision)]
        counts = [row.texts, row.missed, row.split, row.merged, row.detections, row.false]
        cells = [bounds, source, *scores[:2], gauge, scores[2], *map(str, counts)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return [heading("heights"), Text(text), Markup(f'<div class="wide"><table>{"".join(lines)}</table></div>')]


def link_to(path: Path, out: Path) -> str:
    """An image's address relative to the report's folder, quoted for an href."""
    return quote(os.path.relpath(path, out.parent), errors="surrogateescape")  # names that are no UTF-8


def by_page(judged: "Judgement", out: Path) -> list[Block]:
    """Sorted bars, and the worst pages as a table; names lead to the picture below, or to the image."""
    drawn = {page.score.row: number for number, page in enumerate(judged.worst, 1)}

    def link(page: "PageScore") -> str:
        return f"#page-{drawn[page.row]}" if page.row in drawn else link_to(page.path, out)

    bars = [charts.Bar(p.hmean, f"{p.name}: H-mean {p.hmean:.4f}", link(p)) for p in judged.pages[:BARS]]
    rows: list[list[str | Link]] = []
    for page in judged.pages[:LISTED]:
        place = ("", f"page-{drawn[page.row]}") if page.row in drawn else (os.path.relpath(page.path, out.parent), "")
        numbers = [f"{value:.4f}" for value in (page.hmean, page.precision, page.recall)]
        keys = ("missed", "split", "merged", "pred false_positive")
        rows.append([Link(page.name, *place), *numbers, *(str(page.counts[key]) for key in keys)])
    header = ["page", "H-mean", "precision", "recall", "missed", "split", "merged", "false"]
    values = sorted(page.hmean for page in judged.pages)
    middle = f"Half of the pages are at {values[len(values) // 2]:.4f} or above; {sum(v == 1 for v in values)} have 1. "
    text = middle + "A bar leads to the page's picture below, or to its image."
    chart = Markup(charts.page_bars("H-mean by page", bars, len(judged.pages)))
    return [heading("pages"), Text(text), chart, Table(header, rows)]


def settings(run: Run) -> list[Block]:
    """What differs from the preset, and all settings."""
    if not run.settings:
        return [heading("settings"), Text("Not known: config.yaml is not there or damaged.")]
    blocks: list[Block] = [heading("settings")]
    if run.config is not None:
        base, called = _base(run.config)
        own = keys_and_values(run.config)
        own_place = {"preset", "name", "run_root"}
        rows = [[k, _shown(base[k]), _shown(v)] for k, v in own.items() if v != base[k] and k not in own_place]
        blocks.append(Text(f"Other than in {called}:" if rows else f"As in {called}."))
        blocks += [Table(["setting", "there", "this run"], rows)] if rows else []
    lines = "\n".join(escaped(f"{key}: {_shown(value)}") for key, value in run.settings.items())
    whole = f"<details><summary>all {len(run.settings)} settings</summary><pre>{lines}</pre></details>"
    return [*blocks, Markup(whole)]


def _base(config: Config) -> tuple[dict[str, Any], str]:
    """The settings of the run's preset; the defaults where the preset is no longer there."""
    try:
        return keys_and_values(load_config([f"preset={config.preset}"])[0]), f"preset {config.preset}"
    except UserError as error:
        return keys_and_values(Config()), f"the defaults (preset {config.preset} is gone: {one_line(error, 100)})"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else str(value)


def environment(run: Run) -> list[Block]:
    """Machine, versions and git state of the last session, and when each session started."""
    if not run.sessions:
        return [heading("environment"), Text("Not known: run.json is not there or damaged.")]
    last = run.sessions[-1]
    names = ("device", "world_size", "cpus", "host", "platform", "folder")
    rows = [[name.replace("_", " "), str(last[name])] for name in names if name in last]
    git = last.get("git")
    if isinstance(git, dict):
        rows.append(["git", f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}"])
    versions = last.get("versions") if isinstance(last.get("versions"), dict) else {}
    variables = last.get("environment") if isinstance(last.get("environment"), dict) else {}
    rows += [["versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v is not None)]] if versions else []
    rows += [["variables", ", ".join(f"{k}={v}" for k, v in variables.items())]] if variables else []
    starts = [f"started {one.get('started', '?')} at step {one.get('first_step', 0)}" for one in run.sessions[-20:]]
    more = [f"{len(run.sessions) - 20} sessions before these"] if len(run.sessions) > 20 else []
    return [heading("environment"), Table(["", ""], rows), Items([*more, *starts])]


def reproduction(run: Run) -> list[Block]:
    """The command that trains the same again, into a folder of its own."""
    blocks: list[Block] = [heading("again")]
    commands = [again(one, run.folder.name) for one in run.sessions[:1]]
    if commands and commands[0]:
        blocks += [Text("The first session's command, into a folder of its own:"), Markup('<div class="code">')]
        blocks += [Code(commands[0]), Markup("</div>")]
    config = os.path.join(run.folder, "config.yaml")
    settings = [f"preset={config}", f"name={run.folder.name}-again", "resume=none"]
    command = shlex.join(["python", "-m", "engine.train", *settings])
    blocks += [Text("From the merged settings:"), Markup('<div class="code">'), Code(command), Markup("</div>")]
    return blocks


def again(session: dict[str, Any], name: str) -> str:
    """A session's command for a shell: its commit, its folder, and its settings with another name and no resume."""
    command = session.get("command")
    if not isinstance(command, list) or len(command) < 2 or not all(isinstance(word, str) for word in command):
        return ""
    settings = [word for word in command[2:] if not word.startswith(("resume=", "name=", "run_root="))]
    ranks = session.get("world_size")
    start = ["python", "-m"]
    if isinstance(ranks, int) and ranks > 1:
        start = ["torchrun", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    git = session["git"] if isinstance(session.get("git"), dict) else {}
    lines = [f"cd {shlex.quote(session['folder'])}"] if isinstance(session.get("folder"), str) else []
    if isinstance(git.get("commit"), str):
        dirty = "  # it had changes that are not committed" if git.get("dirty") else ""
        lines.append(f"git checkout {shlex.quote(git['commit'])}{dirty}")
    return "\n".join([*lines, shlex.join([*start, "engine.train", *settings, f"name={name}-again"])])
