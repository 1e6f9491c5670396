"""pipelines.index.clean: the one rule of what a region is, and that training's targets agree with it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.db_targets import db_targets
from pipelines.annotations.page import Page, box_corners
from pipelines.index.clean import clean

BOX = box_corners(20, 20, 80, 50)


def cleaned(*regions, box=None, size=(100, 80)):
    page = Page("a.jpg")
    for region in regions:
        page.add(np.array(region, np.float32).reshape(-1, 2), False, "text", box)
    return clean(page, *size)


def test_a_box_beside_it_stands_for_an_outline_that_is_none():
    for region in ([], [[3, 4]], [[1, 1], [9, 9]], [[np.nan, 1], [2, 2], [3, 5]], [[5, 5], [9, 5], [7, 5]]):
        made = cleaned(region, box=BOX)
        assert made.problems == {"boxed": [0]} and made.page.ignore == [False]
        np.testing.assert_array_equal(made.page.polygons[0], BOX)
    assert cleaned(BOX, box=box_corners(0, 0, 9, 9)).problems == {}


def test_what_is_finite_is_spanned_and_ignored():
    made = cleaned([[10, 10], [np.nan, 5], [60, 10], [60, 40]], [[30, 30]])
    assert made.problems == {"masked": [0, 1]} and made.page.ignore == [True, True]
    assert made.page.polygons[0].min(0).tolist() == [10, 10] and made.page.polygons[0].max(0).tolist() == [60, 40]
    assert made.page.polygons[1].min(0).tolist() == [22, 22] and made.page.polygons[1].max(0).tolist() == [38, 38]


def test_what_lies_nowhere_is_left_out_and_named():
    made = cleaned(BOX, [[np.nan, np.inf]], [], BOX + 5)
    assert made.problems == {"nowhere": [1, 2]} and len(made.page.polygons) == 2 and made.page.texts == ["text"] * 2


def test_a_page_whose_size_is_not_known_clamps_nothing():
    assert cleaned(BOX * 50, size=(0, 0)).problems == {}


CORNER = st.tuples(st.integers(-20, 120), st.integers(-20, 100))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(CORNER, min_size=3, max_size=7))
def test_the_targets_mask_by_themselves_what_is_ignored_here(corners):
    """Flat and crossing outlines: so nothing that training can use is ignored, whichever of the two decides."""
    made = cleaned(corners, size=(100, 80)).page
    points, offsets = torch.from_numpy(np.ascontiguousarray(made.polygons[0])), torch.tensor([0, len(made.polygons[0])])
    drawn = [
        db_targets(
            points, offsets, torch.tensor([0, 1]), torch.tensor([flag]), height=80, width=128, min_text_size_px=0
        )
        for flag in (made.ignore[0], False)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_points_too_far_away_for_a_hull_are_masked():
    far = np.array([[np.inf, -1.6e16], [7, 33], [-1.6e16, -5.5e16]], np.float32)
    made = clean(Page("a.jpg", polygons=[far], ignore=[False]), 100, 50)
    assert made.problems["masked"] == [0] and made.page.ignore == [True]
