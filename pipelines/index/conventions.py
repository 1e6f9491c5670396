"""Whether a whole set of labels was read as what it is: other people's conventions give regions that no page has.

    line = other_convention(pages, sizes)      # "" or one sentence: what it looks like, and what reads it

A single page cannot tell: a receipt may have one text in its corner. Most regions of a set can.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipelines.annotations.page import Page
from pipelines.index.clean import flat_and_crossing

JUDGED = 2000  # pages, evenly over the set: more of them change no majority
FEWEST = 3  # regions below which nothing is "most"
SIDE_PX = 32  # a page with a shorter side may well have all its texts within 0..1 or in its corner
PERCENT_SIDE_PX = 250  # a page with all sides above this has no reason to keep all its texts within 0..100
CORNER_PX = 2.0  # from the page's top left corner
OUTSIDE = 0.05  # of a page's longer side: labels are drawn that far over the edge by hand


def other_convention(pages: Sequence[Page], sizes: Sequence[tuple[int, int]] | np.ndarray) -> str:
    """What the regions look like, when that is another convention than the one they were read by; "" = nothing odd.

    Args:
        pages: as read, with regions as they were stated.
        sizes: (width, height) of each page's image, oriented pixels; (0, 0) = not known, such a page is not judged.
    """
    widths = np.asarray(sizes).reshape(-1, 2)[:, 0].tolist()
    known = [i for i, width in enumerate(widths) if width and len(pages[i].polygons)]
    known = known[:: max(1, len(known) // JUDGED)]
    polygons, of_page = [], []
    for i in known:
        outlines = [polygon for polygon in pages[i].polygons if len(polygon) >= 3]
        polygons += outlines
        of_page += [i] * len(outlines)
    finite = [bool(ok) for ok in _each(np.logical_and, polygons, lambda xy: np.isfinite(xy).all(1))]
    polygons = [polygon for polygon, ok in zip(polygons, finite, strict=True) if ok]
    if not polygons:
        return ""
    low, high = _each(np.minimum, polygons), _each(np.maximum, polygons)
    page_wh = np.array([sizes[i] for i, ok in zip(of_page, finite, strict=True) if ok], np.float64)
    middle = "x".join(str(int(side)) for side in np.median(page_wh, axis=0))
    return (
        _fractions(low, high, page_wh, middle)
        or _corner(low, page_wh)
        or _outside(polygons, page_wh, middle)
        or _crossing(polygons)
    )


def _each(
    join: np.ufunc, polygons: list[np.ndarray], values: Callable[[np.ndarray], np.ndarray] = lambda xy: xy
) -> np.ndarray:
    """A value for each polygon, joined over its points: numpy's calls for each would take 20 times as long."""
    if not polygons:
        return np.zeros(0)
    starts = np.cumsum([0, *(len(polygon) for polygon in polygons[:-1])])
    return join.reduceat(values(np.concatenate(polygons)), starts, axis=0)


def _fractions(low: np.ndarray, high: np.ndarray, page_wh: np.ndarray, middle: str) -> str:
    """Coordinates that are shares of the page."""
    shortest = page_wh.min()
    if low.min() < 0 or high.max() <= 0:
        return ""
    if high.max() <= 1 and shortest >= SIDE_PX:
        return f"all coordinates lie within 0..1 on pages of {middle} px: shares of the page, as YOLO writes them"
    corners = np.concatenate([low, high])
    broken = np.count_nonzero(corners % 1) * 2 > corners.size  # shares of a page are hardly ever whole
    if len(low) >= FEWEST and broken and high.max() > 10 and high.max() <= 100 and shortest >= PERCENT_SIDE_PX:
        return (
            f"all coordinates lie within 0..100 on pages of {middle} px: per cent of the page, as Label Studio writes "
            "them"
        )
    return ""


def _corner(low: np.ndarray, page_wh: np.ndarray) -> str:
    judged = page_wh.min(1) >= SIDE_PX
    at = (low[judged] <= CORNER_PX).all(1)
    if at.sum() < FEWEST or at.sum() * 2 <= len(at):
        return ""
    return (
        f"{at.sum()} of {len(at)} regions start in the top left corner of their page: the numbers are not x and y of "
        "corners"
    )


def _outside(polygons: list[np.ndarray], page_wh: np.ndarray, middle: str) -> str:
    points = np.concatenate(polygons)
    wh = np.repeat(page_wh, [len(polygon) for polygon in polygons], axis=0)
    slack = OUTSIDE * wh.max(1, keepdims=True)
    outside, total = int(((points < -slack) | (points > wh + slack)).any(1).sum()), len(points)
    if len(polygons) < FEWEST or outside * 2 <= total:
        return ""
    return (
        f"{outside} of {total} points lie outside their pages (of {middle} px): the labels are of images of another "
        "size, or in another order of numbers"
    )


def _crossing(polygons: list[np.ndarray]) -> str:
    judged = [polygon for polygon in polygons if len(polygon) >= 4]
    count = int(flat_and_crossing(judged)[1].sum())
    if count < FEWEST or count * 2 <= len(judged):
        return ""
    return (
        f"{count} of {len(judged)} outlines cross themselves: their points do not go round the text one after the "
        "other (left top, right top, right bottom, left bottom)"
    )
