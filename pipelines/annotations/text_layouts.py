"""Which numbers of a line of text are what: the layouts of text files, and how a whole set of lines tells its own.

    tally = Tally()
    for line in lines: tally.add(line)
    layout = tally.layout("folder")
    region = interpret(line, layout)      # region.points, region.text

    icdar     x1,y1,...,x4,y4[,text]                      polygon   x1,y1,...,xn,yn[,text]
    ltrb      left,top,right,bottom[,text]                xywh      left,top,width,height[,text]
    td500     index difficulty x y w h theta              ctw1500   xmin,ymin,xmax,ymax, then 14 times dx,dy
    yolo      class cx cy w h, or class x1 y1 x2 y2 ...; shares of the page

One line cannot tell (`...,12,000` may be a point or a price), so every line votes. A line that does not fit is a region
all the same: what of it is a number says where nothing may be learnt.
"""

import itertools
import logging
import math
import operator
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipelines.annotations.page import box_corners, rotated_box
from pipelines.errors import UserError, printable

logger = logging.getLogger(__name__)

SHORT_LINE = 4096  # characters
# One field, and what separates it from the next.
_FIELDS = {",": re.compile(r"([^,]*)(?:,|\Z)"), " ": re.compile(r"(\S+)")}
_FIRST_GROUP = operator.itemgetter(1)
# A row of these three is like no row of another layout, so that nine in ten are enough and the rest are bad lines. More
# than half and fewer than that is two layouts in one set: nobody can say which.
SURE, MOST = 0.9, 0.5
# Boxes with right < left or bottom < top: hands make one in thousands. In x,y,width,height every box in the right half
# or lower half of its page is one: a third or more of a page of text.
INVERTED, FEWEST_INVERTED = 0.1, 2


class Line(NamedTuple):
    """One annotation line: its leading numbers (n,) float32, its text, what separates the fields, its number.

    No lists of fields or of Python's numbers: with them a file took 57 times its bytes.
    """

    numbers: np.ndarray
    text: str
    separator: str
    number: int


class Region(NamedTuple):
    """What a line states."""

    points: np.ndarray  # (n, 2) float32; of a line that does not fit, the pairs that there are
    text: str | None
    problem: str = ""  # why it does not fit, then it is ignored
    ignore: bool = False


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _leading(text: str, separator: str) -> np.ndarray:
    """(n,) float32, the fields up to the first that is no number; what float32 cannot hold becomes infinity."""
    numbers = array("f")
    fields: Iterable[str]
    if len(text) < SHORT_LINE:
        fields = text.split("," if separator == "," else None)
    else:  # one by one: a list of a file's only line takes 57 times its bytes
        fields = map(_FIRST_GROUP, _FIELDS[separator].finditer(text))
    try:  # noqa: SIM105 - suppress() takes as long as the rest
        numbers.extend(map(float, fields))
    except ValueError:
        pass
    return np.array(numbers)


def parse_line(text: str, number: int) -> Line:
    """Splits a line at commas (or, without four comma-separated numbers, at blanks, as ICDAR 2013 does)."""
    numbers = _leading(text, ",")
    if len(numbers) >= 4:
        return Line(numbers, text, ",", number)
    return Line(_leading(text, " "), text, " ", number)


def is_text_line(text: str) -> bool:
    """Whether a line could be one: at least four finite leading numbers."""
    numbers = parse_line(text, 0).numbers
    return len(numbers) >= 4 and all(math.isfinite(n) for n in numbers[:4])


def _text_behind(line: Line, count: int) -> str | None:
    """What follows the first `count` fields of a line; None for nothing."""
    if line.separator == ",":
        fields = line.text.split(",", count)
        return fields[count].strip() if len(fields) > count else None
    found = next(itertools.islice(_FIELDS[line.separator].finditer(line.text), count - 1, None))
    return " ".join(line.text[found.end() :].split()) or None


# ---- a line under a layout


def _misfit(line: Line, layout: str, most: int, skip: int = 0) -> Region:
    """A line that does not fit: the pairs of its first `most` fields, after `skip`, NaN for what is no number."""
    fields = line.text.split("," if "," in line.text else None, skip + most)[skip : skip + most]
    values = [_number(text) for text in fields[: len(fields) // 2 * 2]]
    pairs = np.array(array("f", [math.nan if value is None else value for value in values]), np.float32).reshape(-1, 2)
    return Region(pairs, None, f"{len(line.numbers)} leading numbers do not fit {layout}", True)


def _box(line: Line, layout: str) -> Region:
    if len(line.numbers) < 4:
        return _misfit(line, layout, 4)
    left, top, right, bottom = line.numbers[:4].tolist()
    text = _text_behind(line, 4)
    if layout == "xywh":
        right, bottom = left + right, top + bottom
    if right < left or bottom < top:
        box = box_corners(min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        return Region(box, text, "right < left or bottom < top" if layout == "ltrb" else "a negative side", True)
    return Region(box_corners(left, top, right, bottom), text)


def _outline(line: Line, layout: str) -> Region:
    count = 8 if layout == "icdar" else len(line.numbers) // 2 * 2
    if len(line.numbers) < max(count, 6):
        return _misfit(line, layout, 8)
    # a view would keep the line's array as well
    return Region(line.numbers[:count].reshape(-1, 2).copy(), _text_behind(line, count))


def _td500(line: Line, layout: str) -> Region:
    """MSRA-TD500: x, y, w, h of the box before it is turned by theta (radians, clockwise) around its middle."""
    if len(line.numbers) == 9 and line.numbers[8] in (0, 1):  # as MhLiao/DB keeps it: four points and the difficulty
        return Region(line.numbers[:8].reshape(-1, 2).copy(), None, "", bool(line.numbers[8]))
    if len(line.numbers) != 7:
        return _misfit(line, layout, 4, skip=2)
    _, difficulty, x, y, w, h, theta = line.numbers.tolist()
    return Region(rotated_box(x + w / 2, y + h / 2, w, h, theta), None, "", difficulty == 1)


def _ctw1500(line: Line, layout: str) -> Region:
    if len(line.numbers) < 32:
        return _misfit(line, layout, 4)
    numbers = line.numbers[:32].reshape(-1, 2)
    return Region(numbers[2:] + numbers[0], _text_behind(line, 32))


def _yolo(line: Line, layout: str) -> Region:
    count = len(line.numbers)
    if count == 5:
        cx, cy, w, h = line.numbers[1:].tolist()
        return Region(box_corners(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), None)
    if count < 7 or count % 2 == 0:
        return _misfit(line, layout, max(4, count - 1), skip=1)
    return Region(line.numbers[1:].reshape(-1, 2).copy(), None)


_READERS = {
    "icdar": _outline, "polygon": _outline, "ltrb": _box, "xywh": _box,
    "td500": _td500, "ctw1500": _ctw1500, "yolo": _yolo,
}  # fmt: skip
LAYOUTS = tuple(_READERS)


def interpret(line: Line, layout: str) -> Region:
    """What a line states under a layout of LAYOUTS; also a line that does not fit states a region."""
    return _READERS[layout](line, layout)


# ---- what a set of lines is


def _looks_like_polygon(numbers: np.ndarray) -> bool:
    """Whether 10 or more numbers go round one outline, instead of being a box and a text such as `12,000`.

    In an outline no step from the fourth point on, back to the start included, is far longer than what the first
    four points span; a number of the text lands anywhere on the page.
    """
    count = len(numbers) // 2 * 2
    outline = numbers[:count].astype(np.float64).reshape(-1, 2)
    if not np.isfinite(outline).all():
        return False
    span = float(np.hypot(*np.ptp(outline[:4], axis=0)))
    steps = np.roll(outline, -1, axis=0)[3:] - outline[3:]
    return bool(np.hypot(steps[:, 0], steps[:, 1]).max() <= 1.5 * max(span, 1.0))


def _is_yolo(numbers: np.ndarray) -> bool:
    """A class and shares of the page. In pixels such a region would be smaller than one."""
    shares = numbers[1:]
    paired = len(numbers) == 5 or (len(numbers) >= 7 and len(numbers) % 2 == 1)
    number = float(numbers[0])
    return paired and number >= 0 and number % 1 == 0 and shares.min() >= -0.01 and 0 < shares.max() <= 1.01


def _is_td500(numbers: np.ndarray) -> bool:
    """A count, 0 or 1, a box with sides, and an angle within half a turn."""
    index, difficulty, _, _, w, h, theta = numbers.tolist()
    return index >= 0 and index % 1 == 0 and difficulty in (0, 1) and w > 0 and h > 0 and abs(theta) <= math.pi


def _is_ctw1500(numbers: np.ndarray) -> bool:
    """A box, and 14 offsets that all lie within its sides (2 px for rounding)."""
    low, high = numbers[:2], numbers[2:4]
    offsets = numbers[4:].reshape(-1, 2)
    return bool((high > low).all() and (offsets >= -2).all() and (offsets <= high - low + 2).all())


def _is_letter(numbers: np.ndarray) -> bool:
    """A colour, and a centre that lies in the box behind it."""
    centre, low, high = numbers[3:5], numbers[5:7], numbers[7:9]
    colour = numbers[:3]
    return bool((colour >= 0).all() and (colour <= 255).all() and (low <= centre).all() and (centre <= high).all())


def _own_layout(line: Line) -> str:
    """A layout that nothing but this line's numbers tell; "" for none."""
    numbers, count = line.numbers, len(line.numbers)
    if (
        not (count == 32 or (line.separator == " " and count >= 5 and count % 2))
        or _text_behind(line, count) is not None
    ):
        return ""
    if count == 32:
        return "ctw1500" if _is_ctw1500(numbers) else ""
    if _is_yolo(numbers):
        return "yolo"
    return "td500" if count == 7 and _is_td500(numbers) else ""


@dataclass
class Tally:
    """Counts of a whole data set's lines."""

    total: int = 0
    usable: int = 0  # 4 or more leading numbers
    short: int = 0  # 4 to 7
    long: int = 0  # 10 or more
    outlines: int = 0  # of these, those that go round one outline
    inverted: int = 0  # right < left or bottom < top, were they boxes
    letters: int = 0  # of ICDAR's text segmentation
    own: dict[str, int] = field(default_factory=dict)  # layouts that a line alone tells

    def add(self, line: Line) -> None:
        """Counts a line."""
        count = len(line.numbers)
        self.total += 1
        if count >= 4:
            self.usable += 1
            self.short += count < 8
            left, top, right, bottom = line.numbers[:4].tolist()
            self.inverted += right < left or bottom < top
        if count >= 10:
            self.long += 1
            self.outlines += _looks_like_polygon(line.numbers)
        self.letters += count == 9 and line.separator == " " and _is_letter(line.numbers)
        own = _own_layout(line)
        if own:
            self.own[own] = self.own.get(own, 0) + 1

    def _owned(self, where: str) -> str:
        layout = max(self.own, key=lambda name: self.own[name], default="")
        count = self.own.get(layout, 0)
        if count <= self.total * MOST:
            return ""
        if count < self.total * SURE:
            raise UserError(
                f"{where}: {count} of {self.total} lines look like {layout}, the others do not; mend or part them, or "
                f"name the layout: data.format={layout} (--format {layout})"
            )
        return layout

    def layout(self, where: str) -> str:
        """The layout of the set.

        Raises:
            UserError: most lines start with fewer than 4 numbers, or two layouts are mixed.
        """
        if not self.total:
            return "icdar"
        owned = self._owned(where)
        if owned:
            return owned
        if self.usable * 2 <= self.total:
            raise UserError(f"{where}: most lines do not start with 4, 8 or 2n numbers; not a text-line annotation")
        if self.short * 2 > self.usable:
            return "ltrb"
        layout = "polygon" if self.outlines * 2 > self.long else "icdar"
        if self.long:
            reading = "further points" if layout == "polygon" else "a numeric text behind 4 points"
            logger.warning(
                "%s: %d of %d lines have 10 or more leading numbers, read as %s; data.format (--format) decides",
                printable(where), self.long, self.total, reading,
            )  # fmt: skip
        return layout

    def refuse_other(self, layout: str, where: str) -> None:
        """Holds the layout that the lines were read by, named or voted for, against what they look like.

        Raises:
            UserError: naming the layout that reads them.
        """
        if self.letters > self.total * MOST:
            raise UserError(
                f"{where}: {self.letters} of {self.total} lines are letters of ICDAR's text segmentation (R G B x y "
                "left top right bottom), no texts; take the labels of its text localization"
            )
        for own, count in self.own.items():
            if own != layout and count > self.total * MOST:
                raise UserError(
                    f"{where}: {count} of {self.total} lines look like {own}, not {layout}; data.format={own} "
                    f"(--format {own}) reads them"
                )
        if layout != "ltrb" or self.inverted < FEWEST_INVERTED or self.inverted <= self.total * INVERTED:
            return
        likely, words = ("xywh", "x,y,w,h") if self.short * 2 > self.usable else ("icdar", "x1,y1,...,x4,y4")
        raise UserError(
            f"{where}: {self.inverted} of {self.total} lines have right < left or bottom < top: looks like {words}; "
            f"data.format={likely} (--format {likely}) reads it"
        )


def choose_layout(lines: Iterable[Line], where: str) -> str:
    """The layout of a whole data set, as `Tally.layout`."""
    tally = Tally()
    for line in lines:
        tally.add(line)
    return tally.layout(where)
