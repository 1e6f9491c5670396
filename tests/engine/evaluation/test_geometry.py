"""Areas, overlaps and point tests of one page's polygons, beside shapely's."""

import numpy as np
import pytest
import shapely

from engine.evaluation.geometry import Shapes, inside, near_pairs, overlap_areas, without


def _shapes(*polygons, exact=False):
    points = np.concatenate([np.array(polygon, float) for polygon in polygons])
    return Shapes(points, np.array([len(polygon) for polygon in polygons]), exact)


SQUARE, SHIFTED = [(0, 0), (10, 0), (10, 10), (0, 10)], [(4, 4), (14, 4), (14, 14), (4, 14)]
FAR, ROOF = [(50, 50), (60, 50), (60, 60), (50, 60)], [(0, 0), (10, 0), (12, 6), (5, 9), (-2, 6)]


@pytest.mark.parametrize("exact", [False, True])
def test_overlaps_are_shapelys(exact):
    one, other = _shapes(SQUARE, FAR, exact=exact), _shapes(SHIFTED, ROOF, exact=exact)
    rows, columns = near_pairs(one, other)
    assert list(zip(rows.tolist(), columns.tolist())) == [(0, 0), (0, 1)], "a pair that cannot meet is none"
    wanted = [shapely.Polygon(SQUARE).intersection(shapely.Polygon(p)).area for p in (SHIFTED, ROOF)]
    np.testing.assert_allclose(overlap_areas(one, other, rows, columns), wanted)


def test_a_bow_ties_lobes_count_against_each_other_in_its_own_area_only():
    tie = _shapes([(0, 0), (10, 10), (10, 0), (0, 10)])
    assert tie.areas() == 0
    assert overlap_areas(tie, _shapes(SQUARE), np.array([0]), np.array([0])) == 50


def test_the_left_and_upper_side_are_inside():
    points = np.array([(0, 5), (5, 0), (10, 5), (5, 10), (5, 5), (-1, 5)], float)
    held = inside(_shapes(SQUARE), np.zeros(6, int), points)
    assert held.tolist() == [True, True, False, False, True, False]


def test_what_is_cut_out_overlaps_no_more():
    shapes = _shapes(SQUARE, SHIFTED)
    without(shapes, 0, np.array([1]))
    assert shapes.cut.tolist() == [True, False]
    assert overlap_areas(shapes, _shapes(SHIFTED), np.array([0]), np.array([0])) == 0
