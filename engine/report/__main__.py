"""One HTML page about a training, finished or still running. It needs nothing beside it and no network.

    python -m engine.report RUN [--out FILE.html] [--pages N] [--no-eval] [--json] [section.key=value ...]

RUN is a run's folder. The page shows the curves, incidents, settings and environment of the run, and the command to
train the same again. Its best checkpoint is run over the validation pages (the run's own, or data.val=PATH): H-mean by
text height and by page, and pictures of the worst pages with what was missed, split and merged.

With --no-eval the page is made from the logs alone. So it is, with a note, if the run has no checkpoint yet or its
pages are gone.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from engine import cli
from engine.console import one_line, warn
from engine.files import replace_text
from engine.report.history import Run, read_run
from engine.visualization.document import Block, Markup, Text, to_html
from pipelines.bars import progress
from pipelines.errors import UserError, printable

if TYPE_CHECKING:
    from engine.report.judge import Judgement

MOST_PAGES = 100  # with pictures: 0.6 MB each in the page, and 13 MB of maps each in memory until they are drawn


def arguments(argv: list[str]) -> tuple[argparse.Namespace, Path, list[str]]:
    """(flags, run folder, settings).

    Raises:
        UserError: no run or several, settings without an evaluation, an unknown flag.
    """
    parser = cli.parser("engine.report", __doc__)
    parser.add_argument("items", nargs="+", metavar="RUN", help="run folder, and settings section.key=value")
    parser.add_argument("--out", type=Path, help="the page; RUN/report.html by default")
    parser.add_argument("--pages", type=int, default=8, help="worst pages to show (8)")
    parser.add_argument("--no-eval", action="store_true", help="from the logs alone: no checkpoint is run")
    args = parser.parse_intermixed_args(cli.checkpoints(argv))
    settings, runs = cli.split_settings(args.items)
    if len(runs) != 1:
        raise UserError(f"expected one run folder, got {len(runs)}: {' '.join(runs) or 'none'}")
    if not 0 <= args.pages <= MOST_PAGES:
        raise UserError(f"--pages {args.pages}: expected 0 to {MOST_PAGES}")
    if args.no_eval and settings:
        raise UserError(f"{settings[0]}: settings are the evaluation's; leave --no-eval out")
    return args, Path(runs[0]), settings


def target(out: Path | None, folder: Path) -> Path:
    """Where the page goes; its folder is made, and tried, before the work.

    Raises:
        UserError: it is no .html file, or cannot be written.
    """
    out = out or folder / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: expected a name that ends in .html")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise UserError(f"--out {out}: is a folder; name a file")
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another with --out FILE.html") from None
    return out


def evaluation(folder: Path, settings: list[str], pages: int, notes: list[str]) -> "Judgement | None":
    """The run's best checkpoint, judged; None, with a note, where there is nothing to judge.

    Raises:
        UserError: the user named settings, and it cannot be done.
    """
    from engine.report.judge import judge  # torch, DALI: a page from the logs needs neither

    try:
        with progress("pages") as tell:
            return judge(folder, settings, pages, tell)
    except (UserError, OSError) as error:
        if settings:
            raise
        note = f"No pages were judged: {one_line(error, 400)}"
        warn(f"WARNING: {note} (the page is made from the logs)")
        notes.append(note)
        return None


def blocks_of(run: Run, judged: "Judgement | None", notes: list[str], out: Path) -> list[Block]:
    """The whole page as blocks."""
    from engine.report import sections

    parts = [sections.overview(run, judged, notes), sections.curves(run.history), sections.incidents(run.history)]
    if judged is None:
        missing = Text("No pages were judged.")
        parts += [[sections.heading(name), missing] for name in ("heights", "pages", "worst")]
    else:
        from engine.report import pictures

        parts += [sections.by_height(judged.heights, judged), sections.by_page(judged, out)]
        cards = []
        for number, page in enumerate(judged.worst, 1):
            link = sections.link_to(page.score.path, out)
            cards.append(Markup(pictures.card(page, number, link, judged.config.data.limits)))
        parts.append([sections.heading("worst"), Markup(pictures.legend()), *cards])
    parts += [sections.settings(run), sections.environment(run), sections.reproduction(run)]
    return [block for part in parts for block in part]


def figures(run: Run, judged: "Judgement | None", notes: list[str], out: Path) -> dict:
    """What `--json` prints."""
    result = {"report": str(out), "bytes": out.stat().st_size, "run": str(run.folder), "finished": bool(run.summary)}
    result |= {"notes": notes, "incidents": run.history.num_incidents, "logged_best": run.history.best}
    if judged is not None:
        heights = [vars(row) | {"high": row.high if row.high < 1e9 else None} for row in judged.heights]
        pages = [{"page": p.name, "hmean": p.hmean, "precision": p.precision, "recall": p.recall} for p in judged.pages]
        result |= {"checkpoint": str(judged.checkpoint), "scores": judged.scores, "bad_pages": judged.bad}
        result |= {"by_height": heights, "by_page": pages}
    return result


def main(argv: list[str]) -> int:
    args, folder, settings = arguments(argv)
    with progress("megabytes of metrics") as tell:
        run = read_run(folder, tell)
    out = target(args.out, folder)
    notes = list(run.notes)
    judged = None if args.no_eval else evaluation(folder, settings, args.pages, notes)
    if judged is not None and judged.bad:
        names = ", ".join(list(judged.bad)[:5])
        notes.append(f"{len(judged.bad)} pages cannot be read and count as pages without detections: {names}")
    other = ""
    if judged is not None:
        from engine.report.judge import origin

        other = origin(run, judged)
        notes += [other] if other else []
    name = folder.resolve().name
    style, script = (Path(__file__).with_name(file).read_text() for file in ("page.css", "page.js"))
    replace_text(out, to_html(f"Report of {name}", blocks_of(run, judged, notes, out), style, script))
    if args.json:
        print(json.dumps(figures(run, judged, notes, out)))
        return 0
    scores = judged.scores if judged is not None else run.history.best
    if "hmean" in scores:
        of = f"{len(judged.pages)} pages" if judged is not None else "as logged"
        print(
            "  ".join(f"{key} {scores[key]:.4f}" for key in ("hmean", "precision", "recall") if key in scores),
            f" ({of})",
        )
    if other:
        print(f"note: {printable(other)}")
    print(f"{printable(out)}  {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    cli.run(main)
