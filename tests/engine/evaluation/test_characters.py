"""Characters of a box: how many, and where."""

import numpy as np

from engine.evaluation.cleval import evaluate_page


def rectangle(left, top, width, height):
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]], float)


def test_contest_lengths_by_hand():
    """A 120 x 24 box is five characters long and costs as many when false: its rectangle starts on a long side."""
    page = evaluate_page([rectangle(500, 0, 120, 24)], [rectangle(0, 0, 120, 24)], protocol="contest")
    assert page.counts["chars_gt"] == 5
    assert page.counts["chars_false"] == 5
    line = evaluate_page([np.array([[0.0, 0], [5, 0], [9, 0], [3, 0]])], [], protocol="contest")
    assert line.counts["chars_false"] == 100
