"""What a prediction leaves in its folder: results.jsonl, with one line an image, and the files made from it.

    {"image": "a/1.jpg", "width": 800, "height": 1200, "regions": [{"points": [[x, y], ...], "score": 0.97}, ...]}
    {"image": "a/2.jpg", "error": "empty file"}

Images come in their order, the best region of each first. Points are pixels of the upright image (EXIF applied).

`Journal` appends the lines while the images are predicted, and a prediction that was interrupted goes on from them. The
other formats are made from the lines when all are there. They are written under a temporary name with one line in
memory at a time, so each of them is complete or absent.
"""

import contextlib
import csv
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from engine import files
from engine.console import warn
from engine.detection.postprocess import Detections
from pipelines.errors import UserError, printable
from pipelines.geometry import area

LINES, STATE, DRAFT = "results.jsonl", "results.state.json", ".results."
MAX_CSV_REGIONS = 500  # the contest's limit
UNFIT = re.compile("[\t\r\n\ud800-\udfff]")  # for a label line: its marks, and bytes that are no UTF-8
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the start of one


def as_json(name: str, size_wh: tuple[int, int], found: Detections) -> dict:
    """One image's result: size in upright pixels, regions with points (x, y) in pixels and scores, best first."""
    regions = [
        {"points": np.round(polygon.astype(np.float64), 2).tolist(), "score": round(float(score), 5)}
        for polygon, score in zip(found.polygons, found.scores, strict=True)
    ]
    return {"image": str(name), "width": int(size_wh[0]), "height": int(size_wh[1]), "regions": regions}


def read_lines(path: Path) -> Iterator[dict]:
    """The results of a results.jsonl, in order.

    Raises:
        UserError: naming the line that is none.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield _parsed(line, f"{path}:{number}")


def _parsed(line: bytes, where: str) -> dict:
    try:
        result = json.loads(line)
    except ValueError:
        result = None
    if not isinstance(result, dict) or not isinstance(result.get("image"), str) or not {"regions", "error"} & {*result}:
        raise UserError(f"{where}: no result of a prediction; start again with --overwrite")
    return result


class Journal:
    """results.jsonl while it grows: appended to, flushed line by line, held by one process.

    Args:
        out: folder of the results; made.
        state: JSON-ready, flat: what decides the results. Another state is refused on a resume.
        names: of the images, in order.
        batch: images are detected on by so many; a resume goes back to the start of a batch, since the same image in
            another batch may differ in the last bits.
        mode: "new" refuses a results.jsonl that is there, "resume" goes on with it, "overwrite" deletes it.

    Attributes:
        done: images with a line.

    Raises:
        UserError: see mode; another process is writing; the state or the names are not those of the lines there.
    """

    def __init__(self, out: Path, state: dict[str, Any], names: Iterator[str], batch: int, mode: str) -> None:
        self.path = out / LINES
        out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        self._file = _claimed(self.path)
        size = os.path.getsize(self.path)  # under the lock: what another process has finished meanwhile counts
        if size and mode == "new":
            raise UserError(f"{self.path} exists: go on with it by --resume, or delete it by --overwrite")
        for draft in out.glob(f"{DRAFT}*"):  # of a process that was killed
            draft.unlink(missing_ok=True)
        self.done = 0
        if size and mode == "resume":
            _refuse_other(out / STATE, state)
            self.done, size = _whole(self.path, names, batch)
            self._file.truncate(size)
        else:
            _delete_formats(out, mode == "overwrite")
            self._file.truncate(0)
            with replacing(out / STATE) as file:
                json.dump(state, file, indent=1)
        self._file.seek(0, os.SEEK_END)

    def add(self, result: dict) -> None:
        """Appends one result. Once this returns, a kill does not lose it.

        Raises:
            UserError: it cannot be written. What was of it is a torn line, which a resume takes away.
        """
        rest = memoryview(json.dumps(result).encode() + b"\n")
        try:
            while rest:  # a disk that gets full takes a part
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); make room and go on with --resume"
            ) from None
        self.done += 1

    def close(self) -> None:
        """Makes the lines durable, and lets another process write."""
        os.fsync(self._file.fileno())
        self._file.close()


def _delete_formats(out: Path, asked: bool) -> None:
    """Deletes the formats of an earlier prediction where asked; else refuses: they may be somebody's."""
    for name, _ in FORMATS.values():
        if asked:
            (out / name).unlink(missing_ok=True)
        elif os.path.lexists(out / name):
            raise UserError(f"{out / name} exists, without {LINES}: delete it by --overwrite, or choose another --out")


def _claimed(path: Path) -> FileIO:
    """The file opened for writing, unbuffered, locked for as long as it is open."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    file = open(handle, "r+b", buffering=0)  # noqa: SIM115 - the journal closes it
    locked = files.flock(handle)
    if locked is None:
        warn(f"WARNING: {path}: this file system has no locks; start no second prediction into the same folder")
    if locked is False:
        file.close()
        raise UserError(f"{path}: another process is writing it; wait for it, or choose another --out") from None
    return file


def _refuse_other(path: Path, state: dict[str, Any]) -> None:
    before = files.owner_record(path)
    if not before:
        raise UserError(f"{path}: missing or damaged, so what made the results is not known; use --overwrite")
    for key in {**before, **state}:
        if before.get(key) != state.get(key):
            was, now = (printable(values.get(key))[:60] for values in (before, state))
            raise UserError(f"--resume: {key} was {was} and is now {now}; use the same again, or --overwrite")


def _whole(path: Path, names: Iterator[str], batch: int) -> tuple[int, int]:
    """Number of lines that stand, and their bytes: all if every image has one, else whole batches. A torn line goes."""
    expected = list(names)
    done = end = kept = size = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            if done == len(expected) or _parsed(line, f"{path}:{done + 1}")["image"] != expected[done]:
                raise UserError(f"{path}:{done + 1}: not the image in this place now; use --overwrite")
            done, end = done + 1, end + len(line)
            if done % batch == 0 or done == len(expected):
                kept, size = done, end
    return kept, size


@contextlib.contextmanager
def replacing(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """A text file (UTF-8, line ends as written) that takes its name when the block ends well, and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with files.replacing(path, errors, DRAFT) as file:
            yield file
    except OSError as error:
        words = f"{path}: cannot be written ({error.strerror}); make room and go on with --resume"
        raise UserError(words) from None


def csv_row(result: dict) -> list[str]:
    """The contest's row: file name, polygons `x y x y ...` joined with `|`, whole pixels."""
    regions = result["regions"][:MAX_CSV_REGIONS]
    polygons = [" ".join(str(round(v)) for point in region["points"] for v in point) for region in regions]
    return [os.path.basename(result["image"]), "|".join(polygons)]


def write_csv(path: Path, results: Callable[[], Iterator[dict]]) -> None:
    """The contest's table `filename,polygons`, at most 500 regions an image; images with an error are left out.

    Names stay as they are, bytes that are no UTF-8 too, since they are looked up. So a name like `=1+1.jpg` stays too,
    which a spreadsheet would run: that is said on stderr. So is a file name that images of two folders share.
    """
    formula, seen, twice = "", set(), ""
    with replacing(path, "surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "polygons"])
        for result in _good(results):
            row = csv_row(result)
            formula = formula or (row[0] if row[0].startswith(FORMULA) else "")
            twice = twice or (row[0] if row[0] in seen else "")
            seen.add(row[0])
            rows.writerow(row)
    if formula:
        warn(f"WARNING: {path}: a spreadsheet would run names in it as formulas (e.g. {formula}): import as text")
    if twice:
        warn(f"WARNING: {path}: rows with one file name (e.g. {twice}): the table has no folders, the other formats do")


def write_coco(path: Path, results: Callable[[], Iterator[dict]]) -> None:
    """COCO: images, one category `text`, annotations with segmentation, bbox, area and score.

    An image's id is its line in results.jsonl. `annotations` alone is the list of a COCO results file. Images with an
    error are left out: without annotations they would be pages without text.
    """
    with replacing(path) as file:
        file.write('{"categories": [{"id": 1, "name": "text"}],\n"images": [')
        images = (
            {"id": number, "file_name": result["image"], "width": result["width"], "height": result["height"]}
            for number, result in enumerate(results(), 1)
            if "regions" in result
        )
        _stream(file, images)
        file.write('],\n"annotations": [')
        _stream(file, _annotations(results()))
        file.write("]}\n")


def _stream(file: TextIO, items: Iterator[dict]) -> None:
    for k, item in enumerate(items):
        file.write((",\n" if k else "\n") + json.dumps(item))


def _annotations(results: Iterator[dict]) -> Iterator[dict]:
    number = 0
    for image, result in enumerate(results, 1):
        for region in result.get("regions", ()):
            number += 1
            points = np.array(region["points"])
            (x, y), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
            yield {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "segmentation": [points.reshape(-1).tolist()],
                "bbox": [x, y, round(right - x, 2), round(bottom - y, 2)],
                "area": round(area(points), 2),
                "iscrowd": 0,
                "score": region["score"],
            }


def write_paddle(path: Path, results: Callable[[], Iterator[dict]]) -> None:
    """PaddleOCR label lines: name, tab, a list of `transcription` (empty), `points` and `score`.

    Left out: images with an error, and with a warning those whose names such a line cannot hold.
    """
    unfit = []
    with replacing(path) as file:
        for result in _good(results):
            name = result["image"]
            if name != name.strip() or UNFIT.search(name):
                unfit.append(name)
                continue
            words = [{"transcription": "", **region} for region in result["regions"]]
            file.write(f"{name}\t{json.dumps(words)}\n")
    if unfit:
        warn(f"WARNING: {path}: {len(unfit)} names with tabs, line ends or foreign bytes left out (e.g. {unfit[0]!r})")


def _good(results: Callable[[], Iterator[dict]]) -> Iterator[dict]:
    return (result for result in results() if "regions" in result)


def write_each(out: Path, results: Callable[[], Iterator[dict]]) -> dict[str, str]:
    """One JSON file an image, `out/<image>.json`, without those with an error.

    Returns:
        image -> why there is no file: its name is too long for one.
    """
    bad = {}
    for result in _good(results):
        target = out / f"{result['image']}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.write_text(json.dumps(result) + "\n")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # a full disk ends it all
                raise
            bad[result["image"]] = "its name is too long for a result's: shorten it"
    return bad


# Name of a format -> file in the folder of the results, and what writes it from the lines.
FORMATS = {
    "csv": ("results.csv", write_csv),
    "coco": ("results.coco.json", write_coco),
    "paddle": ("results.paddle.txt", write_paddle),
}
