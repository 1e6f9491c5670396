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

from pipelines.annotations.packed import Texts
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
_QUOTED = re.compile(r'\s*"(.*)"\s*\Z', re.DOTALL)


def is_mark(text: str, fewest: int = 3) -> bool:
    """Whether a text is the sign for "not to be learnt": `fewest` # or more and nothing else."""
    return len(text) >= fewest and not text.strip("#")


def _fewest_signs(pages: list[Page]) -> int:
    """How many # make a mark: receipts have one as a text now and then, CLEval's own test set 2 in 10,532."""
    share = _share(pages, lambda text: is_mark(unquote(text), 1))
    return 1 if share >= SHORT_MARKS and not _share(pages, lambda text: is_mark(unquote(text))) else 3


def unquote(text: str) -> str:
    """A text without the quotes around it."""
    found = _QUOTED.match(text)
    return found[1].replace("\\\\", "\\").replace('\\"', '"') if found else text


def _texts(pages: list[Page]) -> Iterator[str]:
    return (text for page in pages for text in page.texts or [] if text)


def _share(pages: list[Page], holds: Callable[[str], object]) -> float:
    """Share of the texts for which something holds; 0 where there is no text."""
    total = agree = 0
    for text in _texts(pages):
        total += 1
        agree += bool(holds(text))
    return agree / total if total else 0.0


def _has_script(text: str) -> bool:
    return "," in text and text.partition(",")[0] in MLT_SCRIPTS


def settle(pages: list[Page]) -> None:
    """Makes transcriptions of what was read behind the numbers, in place."""
    if _share(pages, ("0", "1").__contains__) == 1 and any(text == "0" for text in _texts(pages)):
        for page in pages:
            for k, text in enumerate(page.texts or []):
                page.ignore[k] |= text == "1"
            page.texts = None
        return
    if _share(pages, _has_script) == 1:
        _change(pages, lambda text: (text.partition(",")[2], False))
    elif _share(pages, _FLAGGED.match) >= SURE:
        _change(pages, _without_flag)
    elif _share(pages, lambda text: text.startswith(CTW_PREFIX)) >= SURE and _share(pages, is_mark) < 1:
        _change(pages, lambda text: (text.removeprefix(CTW_PREFIX), False))
    fewest = _fewest_signs(pages)
    _change(pages, lambda text: (unquote(text), is_mark(unquote(text), fewest)))
    _drop_class(pages)


def _without_flag(text: str) -> tuple[str, bool]:
    found = _FLAGGED.match(text)
    return (found[2], found[1] == "1") if found else (text, False)


def _change(pages: list[Page], change: Callable[[str], tuple[str, bool]]) -> None:
    """Puts text and (new text, whether it says to ignore the region) in place of every text."""
    for page in pages:
        if page.texts is not None:
            made = [change(text) for text in page.texts]
            page.texts = Texts([text for text, _ in made])
            page.ignore = [before or ignore for before, (_, ignore) in zip(page.ignore, made, strict=True)]


def _drop_class(pages: list[Page]) -> None:
    first = next(_texts(pages), "")
    if is_mark(first) or sum(1 for _ in _texts(pages)) < FEWEST_OF_A_CLASS:
        return
    if all(text == first for text in _texts(pages)):
        for page in pages:
            page.texts = None
