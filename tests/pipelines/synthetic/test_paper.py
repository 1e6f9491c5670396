import numpy as np
import pytest

from pipelines.synthetic import paper


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_image_and_polygons_take_the_same_warp(scale):
    """The warped ink of a box has the centroid of the transformed box: half a pixel of drift between pixel centres
    and pixel edges would show, times (scale - 1)."""
    flat = np.zeros((60, 80), np.uint8)
    flat[20:36, 30:58] = 255
    box = np.array([[30, 20], [58, 20], [58, 36], [30, 36]], np.float64)
    turn = np.deg2rad(5)
    matrix = np.array([[np.cos(turn), -np.sin(turn), 9.3], [np.sin(turn), np.cos(turn), 4.7], [0, 0, 1]])
    matrix[:2] *= scale
    seen = paper.warp(flat, matrix, (240, 320)).astype(np.float64)
    y, x = np.mgrid[0:240, 0:320] + 0.5
    centre = paper.transform(matrix, box).mean(0)
    assert seen.sum() / 255 == pytest.approx(28 * 16 * scale**2, rel=0.01)
    assert (x * seen).sum() / seen.sum() == pytest.approx(centre[0], abs=0.02)
    assert (y * seen).sum() / seen.sum() == pytest.approx(centre[1], abs=0.02)


def test_the_paper_lies_inside_the_page():
    for index in range(20):
        rng = np.random.default_rng(index)
        matrix = paper.homography(rng, (256, 320), (256, 320), 1.0)
        corners = paper.transform(matrix, np.array([[0, 0], [256, 0], [256, 320], [0, 320]], np.float64))
        assert (corners >= 1 - 1e-3).all() and (corners <= np.array([255, 319]) + 1e-3).all()
