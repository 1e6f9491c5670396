"""Command line for data sets: `python -m pipelines.dataset build|check|stats|split|synth`."""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from pipelines.annotations import read
from pipelines.bars import progress
from pipelines.check import KINDS, Report, check
from pipelines.errors import OneLine, Parser, UserError, mendable, printable
from pipelines.folders import refuse_full
from pipelines.index.build import Index, build, is_index, load
from pipelines.limits import DEFAULT, Limits
from pipelines.split import SIMILARITY, split
from pipelines.synthetic.fonts import FONT_SETS
from pipelines.synthetic.receipts import write_dataset

LIMITS = (
    ("--max-pixels", DEFAULT.pixels, "refuse larger images"),
    ("--max-scans", DEFAULT.scans, "refuse JPEGs of more scans"),
    ("--max-annotation-mb", DEFAULT.annotation_mb, "refuse larger annotation files, 10^6 bytes"),
    ("--max-polygons", DEFAULT.polygons, "refuse pages of more polygons"),
    ("--max-points", DEFAULT.points, "draw polygons of more points with fewer, at least 16"),
)
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def _size(text: str) -> tuple[int, int]:
    """(height, width) from `1280x960` or `1280`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--size {text}: write HxW, e.g. 1280x960")
    return int(parts[0]), int(parts[-1])


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(args.max_pixels, args.max_scans, args.max_annotation_mb, args.max_polygons, args.max_points)


def _built(args: argparse.Namespace, out: Path, skip_bad: bool) -> Index:
    """The index of args.source, built in a folder."""
    with progress("image headers") as count:
        return build(
            args.source, out, args.format, args.root,
            workers=args.workers, limits=_limits(args), skip_bad=skip_bad, progress=count,
            follow_links=args.follow_links,
        )  # fmt: skip


@contextmanager
def _index(args: argparse.Namespace, skip_bad: bool = False) -> Iterator[Index]:
    """The index that args.source is, or one of it that is gone afterwards."""
    if is_index(args.source):
        yield load(args.source)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _built(args, Path(folder) / "index", skip_bad)


def _build(args: argparse.Namespace) -> int:
    index = _built(args, args.out, args.skip_bad)
    counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in index.counts.items() if value)
    print(printable(f"{args.out}: {index.format}, {counts}"))
    if not index.num_usable:
        print(f"{printable(args.out)}: every region is ignored; it can be predicted on, but not trained on")
    return 0


def print_report(report: Report) -> None:
    """Every finding as `path: kind: detail`, then a table per kind, then what makes training impossible."""
    for finding in report.findings:
        print(printable(f"{finding.path}: {finding.kind}: {finding.detail}"))
    left = report.findings.counts.total() - len(report.findings)
    if left:
        print(f"and {left} more of the kinds below")
    source = printable(report.source)
    print(f"{source}: {report.format}, {report.pages} pages, {report.polygons} regions, {report.usable} usable")
    for kind, count in report.counts.items():
        print(f"{count:8d}  {kind:18s} {KINDS[kind]}")
    if not report.counts:
        print("no fault found")
    for reason in report.fatal:
        print(printable(f"cannot train: {reason}"))


def _check(args: argparse.Namespace) -> int:
    if is_index(args.source):
        raise UserError(f"{args.source}: is a built index; check the annotations it was built from")
    workers = args.workers or os.cpu_count() or 1
    with progress("images") as count:
        report = check(
            args.source, args.format, args.root, workers=workers, limits=_limits(args), progress=count,
            follow_links=args.follow_links,
        )  # fmt: skip
    print_report(report)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n"
        # backslashreplace: half a character, which UTF-8 has not, becomes what JSON writes for it
        args.json.write_text(text, encoding="utf-8", errors="backslashreplace")
    return 2 if report.fatal else 0


def _percentiles(name: str, values: np.ndarray) -> str:
    found = np.percentile(values, PERCENTILES) if len(values) else np.zeros(len(PERCENTILES))
    return f"{name:28s}" + "".join(f"{value:9.1f}" for value in found)


def describe(index: Index) -> str:
    """Pages, polygons, sizes, text heights (short side of the smallest rectangle) and the ignored share, in lines."""
    sizes = np.asarray(index.size_wh)
    counts = np.diff(index.page_offsets)
    short, scaled = [], []
    for i in range(len(index)):
        sides = [min(cv2.minAreaRect(polygon)[1]) for polygon in index.polygons(i)]
        short += sides
        scaled += [side * 1280 / sizes[i].max() for side in sides]
    ignored = len(index.ignore_flags) - index.num_usable
    share = 100 * ignored / max(1, len(index.ignore_flags))
    turned = int(np.count_nonzero(np.asarray(index.orientation) != 1))
    lines = [
        f"format {index.format}, root {printable(index.root)}",
        f"{len(index)} pages, {len(index.ignore_flags)} polygons, {ignored} ignored ({share:.1f} %), "
        f"{turned} pages with EXIF rotation, transcriptions: {'yes' if index.has_texts else 'no'}",
        f"{'percentile':28s}" + "".join(f"{p:9d}" for p in PERCENTILES),
        _percentiles("page width, px", sizes[:, 0]),
        _percentiles("page height, px", sizes[:, 1]),
        _percentiles("polygons a page", counts),
        _percentiles("text height, px", np.array(short)),
        _percentiles("text height, px at 1280", np.array(scaled)),
    ]
    return "\n".join(lines)


def _stats(args: argparse.Namespace) -> int:
    with _index(args, skip_bad=True) as index:
        print(describe(index))
    return 0


def _split(args: argparse.Namespace) -> int:
    with _index(args) as index, progress("images") as count:
        result = split(
            index, args.out, args.folds, args.seed, args.similarity,
            workers=args.workers, limits=_limits(args), progress=count,
        )  # fmt: skip
    print(json.dumps(result) if args.json else describe_split(result, args.out))
    return 0


def describe_split(result: dict, out: Path) -> str:
    """A split in lines: its folds, its groups of copies, and how to train on the first fold."""
    lines = [
        f"fold {k}: {fold['pages']} validation pages, {fold['texts']} texts" for k, fold in enumerate(result["folds"])
    ]
    lines += ["copies, kept in one fold: " + ", ".join(map(printable, names)) for names in result["copies"]]
    where = printable(out)
    return "\n".join([*lines, f"data.train={where}/fold_0/train data.val={where}/fold_0/val, and so on"])


def _synth(args: argparse.Namespace) -> int:
    height, width = _size(args.size)
    refuse_full(args.out)
    with progress("pages") as count:
        path = write_dataset(
            args.out, args.pages, args.seed, height, width, args.workers,
            difficulty=args.difficulty, fonts=args.fonts, progress=count,
        )  # fmt: skip
    print(f"{printable(path)}: {args.pages} pages of {height}x{width}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pipelines.dataset", description=read.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=about, description=f"{about}\n\n{read.__doc__}", formatter_class=argparse.RawTextHelpFormatter
        )
        made.set_defaults(run=run)
        made.add_argument("--workers", type=int, default=0, help="parallel workers; 0 = one a core")
        if name != "synth":
            made.add_argument("source", help="annotation file or folder")
            made.add_argument("--format", default="auto", choices=("auto", *read.FORMATS))
            made.add_argument("--root", help="folder the image paths are relative to")
            for flag, default, meaning in LIMITS:
                made.add_argument(flag, type=type(default), default=default, help=f"{meaning} (default {default})")
            made.add_argument("--follow-links", action="store_true", help="allow symbolic links out of the folder")
        return made

    made = command("build", _build, "Builds the memory-mapped index of a data set (its folder goes into data.train).")
    made.add_argument("--out", type=Path, required=True, help="index folder")
    made.add_argument("--skip-bad", action="store_true", help="leave bad pages out")
    made = command("check", _check, "Decodes every image and checks every polygon; exit code 2 = cannot train.")
    made.add_argument("--json", type=Path, help="also write the report here")
    command("stats", _stats, "Prints sizes, counts and text heights of a data set or a built index.")
    made = command("split", _split, "Splits a data set into k folds; copies of a page stay in one fold.")
    made.add_argument("--folds", type=int, default=5, help="number of folds (default 5)")
    made.add_argument("--seed", type=int, default=0, help="of the order of equal pages (default 0)")
    made.add_argument(
        "--out", type=Path, required=True, help="new folder: fold_0/train, fold_0/val, ... and split.json"
    )
    made.add_argument(
        "--similarity", type=float, default=SIMILARITY,
        help=f"least correlation of thumbnails of copies; above 1: only same bytes (default {SIMILARITY})",
    )  # fmt: skip
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made = command("synth", _synth, "Renders receipts with exact polygons.")
    made.add_argument("--out", type=Path, required=True, help="new folder: images/ and annotations.json")
    made.add_argument("--pages", type=int, required=True)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--size", default="1280x960", help="HxW in pixels")
    made.add_argument("--difficulty", type=float, default=0.5, help="0 clean scan .. 1 crumpled photo")
    made.add_argument("--fonts", default="bundled", choices=FONT_SETS, help="bundled fonts draw the same everywhere")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 0 = done, 2 = the user has something to mend."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    try:
        args = _parser().parse_args(argv)
        if args.workers < 0:
            raise UserError("--workers must be at least 0")
        for flag, _default, _meaning in LIMITS:
            least = 16 if flag == "--max-points" else 1
            if not getattr(args, flag[2:].replace("-", "_"), least) >= least:
                raise UserError(f"{flag} must be at least {least}")
        return args.run(args)
    except UserError as error:
        words = str(error)
    except OSError as error:
        words = mendable(error)
        if not words:
            raise
    print(printable(f"error: {words}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
