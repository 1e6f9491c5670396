"""export.check: what counts as the same network, and what does not."""

from pathlib import Path

import numpy as np
import pytest

from engine.config.load import from_dict
from engine.detection.postprocess import Detections
from engine.export import check
from pipelines.errors import UserError


def test_compare_counts_pixels_that_rounding_decides_and_refuses_other_quads(tmp_path):
    prob = np.zeros((1, 64, 64), np.float32)
    prob[0, 20:30, 10:50] = 0.8
    prob[0, 30, 10:50] = 0.3 + 5e-6
    case = check.Case(np.zeros((1, 3, 64, 64), np.float32), np.eye(2, 3)[None], np.array([[64, 64]]), prob)
    config = from_dict({})
    same = check.compare(lambda image: (prob - np.float32(1e-5) * (prob < 0.5))[:, None], [case], config, Path("f"))
    assert same["undecided_pixels"] == 40 and same["quads"] == 1
    prob[0, 20:31, 10:50] = 0.40003  # the one region's score, and by rounding it falls below box_thresh
    with pytest.raises(UserError, match="other quads"):
        check.compare(lambda image: (prob * np.float32(0.39997 / 0.40003))[:, None], [case], config, Path("f"))
    with pytest.raises(UserError, match="differ"):
        check.compare(lambda image: np.full((1, 1, 64, 64), np.nan, np.float32), [case], config, Path("f"))
    with pytest.raises(UserError, match="it gives float32"):
        check.compare(lambda image: prob, [case], config, Path("f"))


def test_same_ignores_the_order_of_equal_scores_and_nothing_else():
    a, b = (np.array([[x, 0], [x + 9, 0], [x + 9, 5], [x, 5]], np.float32) for x in (0, 20))
    page = Detections([a, b], np.array([0.9, 0.9], np.float32))
    assert check.same(page, Detections([b, a + 0.001], page.scores))
    assert not check.same(page, Detections([a], page.scores[:1]))
    assert not check.same(page, Detections([a, a], page.scores))
    assert not check.same(page, Detections([a, b + 0.5], page.scores))
    assert not check.same(page, Detections([a, b], page.scores - 0.1))
