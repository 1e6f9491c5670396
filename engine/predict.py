"""Text regions of images with a trained detector.

    python -m engine.predict PATH... --checkpoint RUN --out DIR [--draw] [--csv FILE] [section.key=value ...]

PATH is an image or a folder (searched for images). Writes `DIR/<image>.json` for every image; `--draw` adds an overlay
picture, `--csv` the contest's table `filename,polygons` (at most 500 regions an image, whole pixels). Images that
cannot be read are left out and named; the exit code is then 2.
"""

import argparse
import csv
import errno
import json
import logging
import os
import sys
import time
from pathlib import Path

import torch

from engine import checkpoint, cli, distributed, draw
from engine.config import Config, load_config
from engine.distributed import Ranks
from engine.evaluate import detect_pages, load_detector
from engine.postprocess import Detections
from pipelines.bare_index import BareIndex
from pipelines.errors import Parser, UserError, printable
from pipelines.images import read_rgb
from pipelines.page import IMAGE_SUFFIXES
from pipelines.quarantine import paths_of, refuse_above

logger = logging.getLogger(__name__)

MAX_CSV_REGIONS = 500  # the contest's limit
MEND = "mend them and predict those again: the results of all others are written"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of one


def find_images(paths: list[str]) -> list[tuple[Path, Path]]:
    """(file, name below the path that was given) of every image, in sorted order.

    Raises:
        UserError: a path does not exist, or there is no image at all.
    """
    found = []
    for given in map(Path, paths):
        if given.is_file():
            found.append((given, Path(given.name)))
        elif given.is_dir():
            files = sorted(p for p in given.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            found += [(p, p.relative_to(given)) for p in files]
        else:
            raise UserError(f"{given}: no such file or folder")
    if not found:
        raise UserError(f"{', '.join(paths)}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in it")
    names = [name for _, name in found]
    twice = sorted({str(name) for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{twice[0]}: two of the given paths hold an image of this name; predict them into two folders")
    return found


def as_json(name: Path, size_wh: tuple[int, int], found: Detections) -> dict:
    """One image's result: size in oriented pixels, regions with points (x, y) in pixels and scores, best first."""
    regions = [
        {"points": polygon.round(2).tolist(), "score": round(float(score), 5)}
        for polygon, score in zip(found.polygons, found.scores, strict=True)
    ]
    return {"image": str(name), "width": int(size_wh[0]), "height": int(size_wh[1]), "regions": regions}


def csv_row(name: Path, found: Detections) -> list[str]:
    """The contest's row: file name, polygons `x y x y ...` joined with `|`."""
    polygons = [" ".join(str(round(float(v))) for v in p.reshape(-1)) for p in found.polygons[:MAX_CSV_REGIONS]]
    return [name.name, "|".join(polygons)]


def write_csv(path: Path, results: list[tuple[Path, Detections]]) -> None:
    """The contest's table. Names stay as they are, since they are looked up: bytes that are no UTF-8 too.

    So a name like `=1+1.jpg` stays one that a spreadsheet would run; that is said on stderr.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([["filename", "polygons"], *(csv_row(name, found) for name, found in results)])
    formulas = [name.name for name, _ in results if name.name.startswith(FORMULA)]
    if formulas:
        words = f"WARNING: {path}: a spreadsheet would run names in it as formulas (e.g. {formulas[0]}): import as text"
        print(printable(words), file=sys.stderr)


def predict(
    images: list[tuple[Path, Path]], path: Path, config: Config, ranks: Ranks, out: Path, picture: bool
) -> tuple[list[tuple[Path, Detections]], dict[str, str]]:
    """Detects on images and writes one JSON file each (and a picture).

    Returns:
        (name, detections) in order; path -> what is wrong, of the files that are bad: nothing is written for them.

    Raises:
        UserError: no file is good.
    """
    pages = BareIndex([file for file, _ in images], config.data.limits, tolerate=True)
    for file, reason in paths_of(pages, pages.bad).items():
        logger.warning("%s: %s; left out", file, reason)
    out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    model = load_detector(path, config, ranks)
    results = []
    for row, found in detect_pages(model, pages, config, ranks, "left out", pages.bad):
        if row in pages.bad:
            continue
        file, name = images[row]
        try:
            _write(out, name, as_json(name, pages.size_wh[row], found))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # a full disk ends it all
                raise
            pages.bad[row] = "its name is too long for a result's: shorten it"
            logger.warning("%s: %s; left out", file, pages.bad[row])
            continue
        if picture:
            _draw(file, name, found, out, config)
        results.append((name, found))
    return results, paths_of(pages, pages.bad)


def _write(out: Path, name: Path, result: dict) -> None:
    target = out / name.with_name(name.name + ".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result) + "\n")


def _draw(file: Path, name: Path, found: Detections, out: Path, config: Config) -> None:
    """Writes the overlay picture of an image."""
    try:
        rgb = read_rgb(file, config.data.limits)
    except UserError as error:  # read a second time, and by another decoder, which takes less damage
        logger.warning("no picture: %s", error)
        return
    target = out / name.with_name(name.name + ".overlay.jpg")
    if len(os.fsencode(target.name)) > os.pathconf(out, "PC_NAME_MAX"):
        logger.warning("no picture: %s: its name is too long for a picture's: shorten it", file)
        return
    draw.save_image(target, draw.overlay(rgb, pred=found.polygons, scores=found.scores, title=name.name))


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    parser = Parser(
        prog="python -m engine.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, folders, or settings section.key=value")
    parser.add_argument("--checkpoint", required=True, help="run folder or checkpoint")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    parser.add_argument("--draw", action="store_true", help="write overlay pictures too")
    parser.add_argument("--csv", type=Path, help="also write the contest's table filename,polygons")
    args = parser.parse_intermixed_args(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("engine.predict runs as one process: start it with python -m, one per folder of images")
    settings = [item for item in args.paths if "=" in item and not Path(item).exists()]
    paths = [item for item in args.paths if item not in settings]
    path = checkpoint.locate(args.checkpoint)
    config, _ = load_config(settings, base=checkpoint.load_settings(path))
    if not paths:
        raise UserError("PATH is missing: name images or folders")
    images = find_images(paths)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    start = time.perf_counter()
    results, bad = predict(images, path, config, distributed.start(config.trainer.device), args.out, args.draw)
    if args.csv:
        write_csv(args.csv, results)
    regions, seconds = sum(len(found.polygons) for _, found in results), time.perf_counter() - start
    print(f"{len(results)} images, {regions} regions, {seconds:.1f} s: {printable(args.out)}", file=sys.stderr)
    if bad:
        refuse_above(0.0, len(images), bad, MEND)
    return 0


if __name__ == "__main__":
    cli.run(main)
