"""What others write for "don't care", and whether a label is a class or a transcription."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines.annotations.page import Finding, Page

FLAGS = ("ignore", "ignored", "difficult", "illegible", "illegibility", "iscrowd", "dont_care", "dontcare")
_ABOUT_LEARNING = frozenset((*FLAGS, "legible"))
# Names of classes that are not to be learnt, letters only: `don't care`, `DO_NOT_CARE`.
IGNORE_NAMES = frozenset(("ignore", "ignored", "illegible", "dontcare", "donotcare", "difficult", "unreadable"))
NO = ("", "0", "false", "no", "none", "n", "null")
# A label of so many of all shapes is a class; so are labels when there are so few of them.
MOST_SHAPES, FEW_LABELS = 0.9, 0.05
FEWEST_SHAPES = 10  # a page may say the same word twice, ten regions do not
CLASS_NAMES = frozenset(("text", "texts", "word", "words", "line", "lines", "textline", "textregion", "region", "ocr"))


def ignored_text(text: str | None) -> bool:
    """Whether a transcription is a mark: `###` (ICDAR), `####`, but for `#`, see `settle`. `####HOTEL` is a text."""
    return text is not None and text[:1] == "#" and len(text) > 1 and not text.strip("#")


def ignored_name(name: Any) -> bool:
    """Whether a class is one of those that are not to be learnt."""
    return isinstance(name, str) and _letters(name) in IGNORE_NAMES


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalpha())


def yes(value: Any) -> bool:
    """Whether a flag is set: 1, true, "1", "true", "yes", but not "0" or "false"."""
    return value.strip().casefold() not in NO if isinstance(value, str) else bool(value)


def flagged(item: Any) -> bool:
    """Whether an object says of itself that it is not to be learnt, by any of FLAGS or by `legible: false`."""
    if not isinstance(item, dict) or _ABOUT_LEARNING.isdisjoint(item):
        return False
    return any(yes(item[key]) for key in FLAGS if key in item) or ("legible" in item and not yes(item["legible"]))


def are_classes(labels: "Counter[str]") -> bool:
    """Whether labels of shapes name what a shape is, not what it says."""
    total = labels.total()
    usual = sum(count for label, count in labels.items() if _letters(label) in CLASS_NAMES or ignored_name(label))
    if total < FEWEST_SHAPES or usual >= MOST_SHAPES * total:
        return usual >= MOST_SHAPES * total
    return max(labels.values()) >= MOST_SHAPES * total or len(labels) <= FEW_LABELS * total


def settle(pages: list[Page]) -> None:
    """What only the whole set tells, in place: whether `#` is a mark, and whether texts are texts.

    `#` is one for Total-Text, which has no `###`; who writes `###` means the sign itself.
    """
    signs = {text for page in pages for text in page.texts or () if text[:1] == "#" and not text.strip("#")}
    if "#" in signs and max(map(len, signs)) <= 2:
        for page in pages:
            for k, text in enumerate(page.texts or ()):
                page.ignore[k] |= text == "#"
    if share_a_text(pages):
        for page in pages:
            page.texts = None


def share_a_text(pages: list[Page]) -> bool:
    """Whether nearly all texts are the same: a class, or what PPOCRLabel writes before anybody has typed (待识别)."""
    likely, votes, total = "", 0, 0  # the majority, by one count up and down (Boyer and Moore): a table costs memory
    for text in _said(pages):
        total += 1
        votes += 1 if text == likely else -1
        if votes < 0:
            likely, votes = text, 1
    if total < FEWEST_SHAPES or votes < (2 * MOST_SHAPES - 1) * total - 1:  # which a text of so many is left with
        return False
    return sum(text == likely for text in _said(pages)) >= MOST_SHAPES * total


def _said(pages: list[Page]) -> Iterator[str]:
    return (text for page in pages for text in page.texts or () if text.strip("#"))


def named_classes(where: str, classes: "Counter[str]") -> list[Finding]:
    """One line of what is read as text, when there is more than one class; none else."""
    if len(classes) < 2:
        return []
    read = ", ".join(f"{name} ({count})" for name, count in sorted(classes.items()) if not ignored_name(name))
    left = ", ".join(f"{name} ({count})" for name, count in sorted(classes.items()) if ignored_name(name))
    detail = f"read as text: {read or 'nothing'}" + (f"; ignored: {left}" if left else "")
    return [Finding(where, "categories", detail)]
