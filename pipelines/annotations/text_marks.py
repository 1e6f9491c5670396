"""What stands behind the numbers of a line of text and is no transcription: marks, flags, scripts, quotes.

    settle(pages)      # texts become transcriptions, marked regions are ignored

Only the whole set tells: one text `1` is a number, a set of nothing but 0 and 1 is a column of flags.

    ###, #######        no transcription: neither to be found nor wrong to find (ICDAR)
    #                   the same (Total-Text), in a set that does not write ### and has many of them
    ####TEXT            SCUT-CTW1500 writes four signs before every text; #### and ### is one to be ignored
    0,"TEXT"            RCTW-17: a flag, 1 = difficult, before the quoted text
    0                   MSRA-TD500 as MhLiao/DB keeps it: nothing but the flag
    Latin,TEXT          ICDAR-MLT: the script
    "TEXT"              quoted, with \\" and \\\\ inside, as the contests' own scripts read it
    text, text, text    the same word behind every region is a class
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.annotations.packed import Shelf, Texts
from pipelines.annotations.page import Page

# ICDAR-MLT writes the script before the text: `x1,...,y4,Latin,text`.
MLT_SCRIPTS = frozenset(
    ("Latin", "Arabic", "Bangla", "Chinese", "Hindi", "Japanese", "Korean", "Mixed", "None", "Symbols", "Devanagari")
)
SURE = 0.9  # of the texts: the rest are lines that somebody wrote by hand
CTW_PREFIX = "####"
SHORT_MARKS = 0.01  # of the texts; Total-Text has one # in eight
FEWEST_OF_A_CLASS = 10  # a page may say the same word twice, a set of ten regions does not
_FLAGGED = re.compile(r'([01])\s*,\s*(".*")\s*\Z', re.DOTALL)
Change = Callable[[str], tuple[str, bool]]  # text -> new text, and whether it says to ignore the region
_QUOTED = re.compile(r'\s*"(.*)"\s*\Z', re.DOTALL)


def is_mark(text: str, fewest: int = 3) -> bool:
    """Whether a text is the sign for "not to be learnt": `fewest` # or more and nothing else."""
    return len(text) >= fewest and not text.strip("#")


def unquote(text: str) -> str:
    """A text without the quotes around it."""
    found = _QUOTED.match(text) if '"' in text else None
    return found[1].replace("\\\\", "\\").replace('\\"', '"') if found else text


def _texts(pages: list[Page]) -> Iterator[str]:
    return (text for page in pages for text in page.texts or [] if text)


@dataclass
class _Tally:
    """How many of a set's texts are what."""

    total: int = 0
    zeros: int = 0  # 0
    ones: int = 0  # 1
    flagged: int = 0  # 0,"TEXT"
    scripts: int = 0  # Latin,TEXT
    prefixed: int = 0  # ####TEXT
    marks: int = 0  # ###
    signs: int = 0  # # or more, quoted or not
    long_signs: int = 0  # of these, ### or more

    @property
    def fewest_signs(self) -> int:
        """How many # make a mark: receipts have one as a text now and then, CLEval's own test set 2 in 10,532."""
        return 1 if self.signs and self.signs / self.total >= SHORT_MARKS and not self.long_signs else 3


def _tally(pages: list[Page]) -> _Tally:
    """Counts of all texts, in one pass: of 60 million each takes 20 s."""
    made = _Tally()
    for text in _texts(pages):
        made.total += 1
        if text[0] in "01":
            made.zeros += text == "0"
            made.ones += text == "1"
            made.flagged += _FLAGGED.match(text) is not None
        if "," in text:
            made.scripts += text.partition(",")[0] in MLT_SCRIPTS
        if "#" in text:
            said = unquote(text)
            made.prefixed += text.startswith(CTW_PREFIX)
            made.marks += is_mark(text)
            made.signs += is_mark(said, 1)
            made.long_signs += is_mark(said)
    return made


def settle(pages: list[Page], shelf: Shelf) -> None:
    """Makes transcriptions of what was read behind the numbers, in place."""
    tally = _tally(pages)
    if tally.zeros and tally.zeros + tally.ones == tally.total:
        for page in pages:
            for k, text in enumerate(page.texts or []):
                page.ignore[k] |= text == "1"
            page.texts = None
        return
    change: Change | None = None
    if tally.total and tally.scripts == tally.total:
        change = _without_script
    elif tally.flagged and tally.flagged / tally.total >= SURE:
        change = _without_flag
    elif tally.prefixed and tally.prefixed / tally.total >= SURE and tally.marks < tally.total:
        change = _without_prefix
    if change is not None:
        _change(pages, change, shelf)
        tally = _tally(pages)
    fewest = tally.fewest_signs
    _change(pages, lambda text: _unquoted(text, fewest), shelf)
    _drop_class(pages)


def _without_script(text: str) -> tuple[str, bool]:
    return text.partition(",")[2], False


def _without_prefix(text: str) -> tuple[str, bool]:
    return text.removeprefix(CTW_PREFIX), False


def _unquoted(text: str, fewest: int) -> tuple[str, bool]:
    said = unquote(text)
    return said, is_mark(said, fewest)


def _without_flag(text: str) -> tuple[str, bool]:
    found = _FLAGGED.match(text)
    return (found[2], found[1] == "1") if found else (text, False)


def _change(pages: list[Page], change: Change, shelf: Shelf) -> None:
    """Puts the new text in place of every text, and ignores the regions whose text says so."""
    for page in pages:
        before = list(page.texts or [])
        made = [change(text) for text in before]
        texts = [text for text, _ in made]
        if texts != before:
            page.texts = Texts(texts, shelf)
        for k, (_, ignore) in enumerate(made):
            page.ignore[k] |= ignore


def _drop_class(pages: list[Page]) -> None:
    first, count = next(_texts(pages), ""), 0
    for text in _texts(pages):
        if text != first:
            return
        count += 1
    if count >= FEWEST_OF_A_CLASS and not is_mark(first):
        for page in pages:
            page.texts = None
