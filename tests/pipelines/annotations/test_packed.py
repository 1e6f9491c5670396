import numpy as np
import pytest

from pipelines.annotations.packed import Polygons, Texts, pack
from pipelines.annotations.page import Page


@pytest.mark.parametrize("counts", [[], [4], [0, 4, 1, 12, 0], [3, 3]])
def test_packed_polygons_are_the_polygons(counts):
    polygons = [np.arange(2 * n, dtype=np.float32).reshape(n, 2) + 100 * k for k, n in enumerate(counts)]
    packed = Polygons(polygons)
    assert len(packed) == len(polygons)
    for k in range(-len(polygons), len(polygons)):
        np.testing.assert_array_equal(packed[k], polygons[k])
    for one, other in zip(packed, polygons, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(IndexError):
        packed[len(polygons)]


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "\u00e9\ud800", "bc", ""]])
def test_packed_texts_are_the_texts(texts):
    packed = Texts(texts)
    assert packed == texts and [packed[k] for k in range(-len(texts), len(texts))] == texts + texts
    with pytest.raises(IndexError):
        packed[len(texts)]


def test_nothing_is_added_to_a_packed_page():
    page = pack(Page("a.jpg"))
    with pytest.raises(AssertionError):
        page.add(np.zeros((4, 2), np.float32), False, None)
