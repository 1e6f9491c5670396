"""pipelines.index.conventions: labels of another convention are told by the whole set, honest ones pass."""

import numpy as np
import pytest

from pipelines.annotations.page import Page, box_corners
from pipelines.index.conventions import other_convention

SIZE = (640, 480)


def judged(boxes, size=SIZE, pages=2):
    """What is said of pages with these regions, (4, 2) each."""
    made = [Page(f"{number}.jpg") for number in range(pages)]
    for page in made:
        for box in boxes:
            page.add(np.array(box, np.float32), False, None)
    return other_convention(made, [size] * pages)


BOXES = [box_corners(40 + 60 * k, 30 + 50 * k, 90 + 60 * k, 60 + 50 * k) for k in range(8)]


def test_honest_labels_pass():
    assert judged(BOXES) == ""
    assert judged([np.round(box / 7) + 3 for box in BOXES]) == "", "whole pixels: a small receipt in a large scan"
    assert judged([box - 8 for box in BOXES]) == "", "a little outside"
    assert judged([]) == "" and judged([BOXES[0]]) == ""


def test_one_region_in_the_corner_is_no_convention():
    assert judged([box_corners(0, 0, 50, 20), *BOXES]) == ""


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([box / np.array(SIZE) for box in BOXES], "within 0..1 on pages of 640x480 px: shares of the page, as YOLO"),
        ([box / np.array(SIZE) * 100 for box in BOXES], "within 0..100 on pages of 640x480 px: per cent"),
        ([box_corners(0, k % 2, 60 + k, 40) for k in range(8)], "16 of 16 regions start in the top left corner"),
        ([box * 9 for box in BOXES], "points lie outside their pages"),
        ([box[[0, 1, 3, 2]] for box in BOXES], "16 of 16 outlines cross themselves"),
    ],
)
def test_another_convention_is_named(boxes, words):
    assert words in judged(boxes)


def test_pages_of_unknown_size_are_not_judged():
    assert judged([box * 9 for box in BOXES], (0, 0)) == ""


def test_what_cannot_be_read_is_not_judged():
    nothing = np.full((4, 2), np.nan)
    assert judged([nothing, BOXES[0][:2], *BOXES]) == ""
