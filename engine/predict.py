"""Text regions of images with a trained detector.

    python -m engine.predict PATH... --checkpoint RUN --out DIR [--format csv,coco,paddle,json] [--draw] [--resume]
                             [section.key=value ...]

PATH is an image or a folder (searched for images, in all its folders). RUN is a run folder, a checkpoint, or the
ensemble.yaml that engine.ensemble wrote. The command writes `DIR/results.jsonl`: one line an image, in sorted order, as
they are found. Of any number of images only the names are in memory. An interrupted prediction goes on with --resume.
An image that cannot be read has a line with the reason, and is named at the end; the exit code is then 2.

--format adds, when all is found: csv (DIR/results.csv, the contest's table `filename,polygons`, at most 500 regions an
image, whole pixels), coco (DIR/results.coco.json), paddle (DIR/results.paddle.txt, PaddleOCR label lines) and json (one
file DIR/<image>.json each). --resume with other formats makes them from the lines that are there.

From Python: `from engine.predict import Detector`, see `engine.detection.detector`.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import cli
from engine.config import Config
from engine.config.load import keys_and_values
from engine.console import warn
from engine.detection import results
from engine.detection.detector import Detector
from engine.detection.open import Opened, is_detector, open_detector
from engine.detection.pages import detect_pages
from engine.detection.results import LINES, STATE, Journal
from engine.visualization import overlay
from pipelines.bars import progress
from pipelines.errors import Parser, UserError, printable
from pipelines.images.listing import Images, find_images
from pipelines.images.read import SEVERAL_PAGES, pixel_limit, read_rgb
from pipelines.index.bare import BareIndex
from pipelines.quarantine import NAMED, BadPages

__all__ = ["Detector", "main", "predict"]

logger = logging.getLogger(__name__)

MEND = "mend them and predict those again: the results of all others are written"
FORMATS = (*results.FORMATS, "json")


@dataclasses.dataclass
class Tally:
    """What a prediction came to; `bad` names the first NAMED of `bad_images`."""

    images: int = 0
    regions: int = 0
    bad_images: int = 0
    bad: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, image: str, result: dict) -> None:
        """Counts one line of results.jsonl; `image` is the file's path."""
        if "error" in result:
            self.refuse(image, result["error"])
        else:
            self.images, self.regions = self.images + 1, self.regions + len(result["regions"])

    def refuse(self, image: str, reason: str) -> None:
        """Counts an image without a result."""
        self.bad_images += 1
        if len(self.bad) < NAMED:
            self.bad[image] = reason

    def check(self, total: int) -> None:
        """Raises UserError, naming images, when any was bad."""
        if self.bad_images:
            listed = ", ".join(f"{image} ({reason})" for image, reason in self.bad.items())
            more = f" and {self.bad_images - len(self.bad)} more" if self.bad_images > len(self.bad) else ""
            raise UserError(f"{self.bad_images} of {total} images cannot be read: {listed}{more}; {MEND}")


def predict(images: Images, opened: Opened, journal: Journal, pictures: Path | None) -> None:
    """Detects on the images that the journal has no line of, and appends their lines.

    Args:
        images: all of them.
        opened: the detector.
        journal: open.
        pictures: folder for overlay pictures; None = no pictures.
    """
    config, ranks = opened.config, opened.ranks
    first = journal.done
    if first == len(images):
        return
    rest = images.since(first)
    pages = BareIndex(rest, config.data.limits, tolerate=True, refused=rest.refused)
    model = opened.load()
    with progress("predicting") as bar, pixel_limit(config.data.limits.pixels):
        for row, found in detect_pages(model, pages, config, ranks, BadPages("left out", pages.bad)):
            name, reason = rest.name(row), pages.bad.get(row)
            if reason is not None:
                journal.add({"image": name, "error": reason})
            else:
                if row in pages.several:
                    logger.warning("%s: %s", rest[row], SEVERAL_PAGES)
                if pictures is not None:  # before the line, so that a resume makes up for a picture that was cut off
                    _draw(rest[row], name, found, pictures, config)
                journal.add(results.as_json(name, pages.size_wh[row], found))
            bar(journal.done, len(images))


def _draw(file: Path, name: str, found: Any, out: Path, config: Config) -> None:
    """Writes the overlay picture of an image."""
    try:
        rgb = read_rgb(file, config.data.limits)
    except UserError as error:  # read a second time, and by another decoder, which takes less damage
        logger.warning("no picture: %s", error)
        return
    target = out / f"{name}.overlay.jpg"
    if len(os.fsencode(target.name)) > os.pathconf(out, "PC_NAME_MAX"):
        logger.warning("no picture: %s: its name is too long for a picture's: shorten it", file)
        return
    overlay.save_image(target, overlay.overlay(rgb, pred=found.polygons, scores=found.scores, title=name))


def _state(opened: Opened, images: Images, pictures: bool) -> dict[str, Any]:
    """What decides the results: weights (SHA-256), settings, images (their number and names), pictures."""
    names = hashlib.sha256()
    for name in images.names():
        names.update(os.fsencode(name) + b"\0")
    sums = []
    for path in opened.files:
        with path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    state = {"checkpoint": " ".join(sums), "number of images": len(images), "names of images": names.hexdigest()}
    return state | {"--draw": pictures, "device": opened.ranks.device.type} | keys_and_values(opened.config)


def _refuse_if_none_is_good(images: Images, config: Config) -> None:
    """Before anything is made; of more than the first look's images the results say it."""
    pages = BareIndex(images, config.data.limits, tolerate=True, refused=images.refused)
    if len(pages.bad) == len(images):
        raise UserError(f"{images[0]}: {pages.bad[0]}")


def _parser() -> Parser:
    parser = cli.parser("engine.predict", __doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, folders, or settings section.key=value")
    parser.add_argument("--checkpoint", metavar="RUN", help="run folder, checkpoint or ensemble.yaml")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--format", default="", help=f"also: {', '.join(FORMATS)}; several with commas")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the contest's table to this file")
    parser.add_argument("--draw", action="store_true", help="write overlay pictures too, DIR/<image>.overlay.jpg")
    before = parser.add_mutually_exclusive_group()
    before.add_argument("--resume", action="store_true", help="go on with the results that are in DIR")
    before.add_argument("--overwrite", action="store_true", help="delete the results that are in DIR")
    parser.add_argument("--follow-links", action="store_true", help="take links that lead out of a folder")
    return parser


def _detector(args: argparse.Namespace) -> tuple[str, list[str], list[str]]:
    """(what names the detector, settings, paths of images): by --checkpoint, checkpoint=, or as one of the paths.

    Raises:
        UserError: none or several are named.
    """
    settings, paths = cli.split_settings([item for item in args.paths if not item.startswith(cli.NAMED)])
    named = [item.removeprefix(cli.NAMED) for item in args.paths if item.startswith(cli.NAMED)]
    named += [args.checkpoint] if args.checkpoint else []
    if not named:
        named = [path for path in paths if is_detector(path)]
        paths = [path for path in paths if path not in named]
    if len(named) != 1:
        raise UserError(
            f"name one detector, not {' and '.join(named)}" if named
            else "--checkpoint RUN is missing: name a run folder (runs/NAME), a checkpoint or an ensemble.yaml"
        )  # fmt: skip
    return named[0], settings, paths


def _formats(given: str) -> list[str]:
    chosen = [name for name in given.split(",") if name and name != "jsonl"]  # those are always written
    for name in chosen:
        if name not in FORMATS:
            raise UserError(f"--format {name}: expected some of jsonl, {', '.join(FORMATS)}, with commas between")
    return chosen


def _check_places(args: argparse.Namespace, paths: list[str]) -> None:
    """What could not be written, or would be in the way, is refused before the work and not after it."""
    for path in paths:
        if args.draw and os.path.isdir(path) and args.out.resolve().is_relative_to(Path(path).resolve()):
            raise UserError(f"--out {args.out}: lies in {path}, where its pictures would be taken for pages; move it")
    if args.csv:
        if args.csv.is_dir() or args.csv.resolve() in [(args.out / name).resolve() for name in (LINES, STATE)]:
            raise UserError(f"--csv {args.csv}: is a folder or the results themselves; name another file")
        args.csv.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.csv.parent).close()


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    args = _parser().parse_intermixed_args(argv)
    formats = _formats(args.format)
    named, settings, paths = _detector(args)
    if not paths:
        raise UserError("PATH is missing: name images or folders")
    opened = open_detector(named, settings)
    config = opened.config
    images = find_images(paths, args.follow_links)
    _refuse_if_none_is_good(images, config)
    _check_places(args, paths)
    start = time.perf_counter()
    mode = "resume" if args.resume else "overwrite" if args.overwrite else "new"
    journal = Journal(args.out, _state(opened, images, args.draw), images.names(), config.eval.batch_size, mode)
    before = journal.done
    try:
        predict(images, opened, journal, args.out if args.draw else None)
        seconds = time.perf_counter() - start
        tally = _finish(images, journal.path, formats, args.csv)
    except KeyboardInterrupt:
        warn(f"{journal.done} of {len(images)} images are in {journal.path}; go on with --resume")
        raise
    finally:
        journal.close()
    _say(tally, len(images) - before, seconds, journal.path, args.json)
    tally.check(len(images))
    return 0


def _finish(images: Images, lines: Path, formats: list[str], csv: Path | None) -> Tally:
    """Makes the other formats from the lines, and counts."""
    tally, out = Tally(), lines.parent
    for row, result in enumerate(results.read_lines(lines)):
        tally.add(str(images[row]), result)
    files = [(out / results.FORMATS[name][0], results.FORMATS[name][1]) for name in formats if name != "json"]
    for target, write in [*files, *([(csv, results.write_csv)] if csv else [])]:
        write(target, lambda: results.read_lines(lines))
    if "json" in formats:
        for name, reason in results.write_each(out, lambda: results.read_lines(lines)).items():
            logger.warning("%s: %s; left out", name, reason)
            tally.images -= 1
            tally.refuse(name, reason)
    return tally


def _say(tally: Tally, predicted: int, seconds: float, lines: Path, as_json: bool) -> None:
    """The summary on stdout: one JSON object, or a line."""
    if as_json:
        found = dataclasses.asdict(tally) | {"predicted": predicted, "seconds": seconds}
        print(json.dumps(found | {"images_per_second": predicted / seconds, "results": str(lines)}))
    else:
        counts = f"{tally.images} images, {tally.regions} regions"
        counts += f", {tally.bad_images} images that cannot be read" if tally.bad_images else ""
        print(f"{counts}: {printable(lines)} ({predicted} of them in {seconds:.1f} s)")


if __name__ == "__main__":
    cli.run(main)
