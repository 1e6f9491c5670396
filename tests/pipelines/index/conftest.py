"""Fixtures that the tests of this room share."""

import pytest
from indexed_pages import SQUARE, data_set


@pytest.fixture
def source(tmp_path):
    triangle = [[0, 0], [50, 0], [0, 50]]
    pages = {
        "a.jpg": [(SQUARE, "가나"), (triangle, "###")],
        "empty.jpg": [],
        "b.jpg": [(SQUARE + [[0, 30]], ""), (SQUARE, "B, C"), (triangle, "D")],
    }
    return data_set(tmp_path / "set", pages)
