"""engine.detection.postprocess: regions in source pixels, polygons, and shapes that must not break it."""

import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import shapely
import torch

from bench.peers.classic_postprocess import text_like_map
from engine.config import PostConfig
from engine.detection.postprocess import detect
from pipelines.geometry import apply, letterbox

IDENTITY = np.array([[[1.0, 0, 0], [0, 1, 0]]])


def settings(**changes) -> SimpleNamespace:
    """The default settings with changes, unchecked."""
    return SimpleNamespace(**{**PostConfig().__dict__, **changes})


def on_canvas(prob: np.ndarray, **changes):
    """Detections of one map whose page is the canvas itself."""
    height, width = prob.shape
    probs = torch.from_numpy(prob.astype(np.float32))[None]
    (found,) = detect(probs, IDENTITY, np.array([[width, height]]), settings(**changes))
    return found


def shrink_like_map(quad: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float]:
    """(H, W) map with 0.9 in a shrunken quad (distance 0.84 A / L from its sides), and the ratio that undoes it."""
    text = shapely.Polygon(quad)
    distance = 0.84 * text.area / text.length
    core = text.buffer(-distance)
    y, x = np.mgrid[:height, :width] + 0.5
    inside = shapely.contains_xy(core, x, y)
    return np.where(inside, 0.9, 0.02).astype(np.float32), distance * core.length / core.area


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two polygons."""
    a, b = shapely.make_valid(shapely.Polygon(a)), shapely.make_valid(shapely.Polygon(b))
    return a.intersection(b).area / a.union(b).area


@pytest.mark.parametrize("shape", ["quad", "polygon"])
@pytest.mark.parametrize("size_wh", [(1000, 700), (180, 420), (333, 335)])
@pytest.mark.parametrize("angle", [0.0, 7.0, -35.0])
def test_a_known_quad_comes_back_through_the_letterbox(shape, size_wh, angle):
    matrix = letterbox(size_wh, (320, 352))
    scale = matrix[0, 0]
    centre = np.array(size_wh) * (0.5, 0.45)
    quad = cv2.boxPoints((centre, (140 / scale, 34 / scale), angle)).astype(np.float64)
    prob, ratio = shrink_like_map(apply(matrix, quad), 320, 352)
    post = settings(shape=shape, unclip_ratio=ratio)
    (found,) = detect(torch.from_numpy(prob)[None], matrix[None], np.array([size_wh]), post)
    assert len(found.polygons) == 1 and found.scores[0] == pytest.approx(0.9, abs=0.03)
    assert found.polygons[0].dtype == np.float32
    assert overlap(found.polygons[0], quad) >= 0.9


@pytest.mark.parametrize("shape", ["quad", "polygon"])
def test_regions_in_the_padding_go_and_others_are_clipped_to_the_page(shape):
    matrix = letterbox((100, 200), (200, 200))  # page at x 50..150 of the canvas
    prob = np.zeros((200, 200), np.float32)
    prob[20:32, 5:45] = 0.95  # padding
    prob[60:72, 40:90] = 0.9  # mostly on the page
    prob[100:112, 120:148] = 0.8
    prob[2:12, 70:130] = 0.7  # grows over the top
    (found,) = detect(torch.from_numpy(prob)[None], matrix[None], np.array([[100, 200]]), settings(shape=shape))
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7], atol=1e-3)
    for polygon in found.polygons:
        assert np.all(polygon >= 0) and np.all(polygon <= (100, 200))
    assert found.polygons[0][:, 0].min() == 0 and found.polygons[2][:, 1].min() == 0


def test_pages_keep_their_order_and_empty_ones_are_empty():
    prob = np.zeros((3, 64, 96), np.float32)
    prob[0, 10:20, 10:60] = 0.8
    prob[2, 30:45, 20:90] = 0.7
    for shape in ("quad", "polygon"):
        found = detect(
            torch.from_numpy(prob), IDENTITY.repeat(3, 0), np.full((3, 2), (96, 64)), PostConfig(shape=shape)
        )
        assert [len(page.polygons) for page in found] == [1, 0, 1]
        assert found[1].scores.shape == (0,) and found[1].scores.dtype == np.float32
        assert found[2].polygons[0][:, 1].min() > 20
    assert detect(torch.zeros(0, 32, 32), np.zeros((0, 2, 3)), np.zeros((0, 2)), PostConfig()) == []


def test_polygon_of_a_block_is_the_quad_with_round_corners():
    prob = np.zeros((80, 160), np.float32)
    prob[30:44, 30:120] = 0.9
    quad, polygon = (on_canvas(prob, shape=shape).polygons[0] for shape in ("quad", "polygon"))
    np.testing.assert_allclose(polygon.min(0), quad.min(0), atol=0.01)
    np.testing.assert_allclose(polygon.max(0), quad.max(0), atol=0.01)
    assert len(polygon) > 8


def test_polygons_follow_a_bent_line_and_quads_do_not():
    y, x = np.mgrid[:200, :300]
    bent = np.abs(y - 60 - 0.004 * (x - 150.0) ** 2) < 8
    bent &= np.abs(x - 150) < 120
    polygon = on_canvas(bent * 0.9, shape="polygon", unclip_ratio=0.0).polygons[0]
    area = shapely.Polygon(polygon).area
    assert area == pytest.approx(bent.sum(), rel=0.05)
    box = on_canvas(bent * 0.9, unclip_ratio=0.0, score_mode="slow").polygons[0]
    assert shapely.Polygon(box).area > 2 * area


@pytest.mark.parametrize("connectivity", [4, 8])
def test_polygons_take_text_in_a_frame_but_not_the_frames_hole(connectivity):
    prob = np.zeros((120, 200), np.float32)
    prob[6:114, 6:194] = 0.9
    prob[14:106, 14:186] = 0.0
    prob[50:66, 50:150] = 0.8
    found = on_canvas(prob, shape="polygon", score_mode="slow", connectivity=connectivity)
    assert len(found.polygons) == 2
    # The filled frame holds the line's pixels too.
    frame, line = (prob == np.float32(v) for v in (0.9, 0.8))
    expected = (0.9 * frame.sum() + 0.8 * line.sum()) / (frame | line).sum()
    np.testing.assert_allclose(found.scores, [expected, 0.8], atol=1e-3)


def test_connectivity_counts_for_polygons_too():
    prob = np.zeros((60, 60), np.float32)
    prob[5:25, 5:25] = prob[25:45, 25:45] = 0.9
    assert len(on_canvas(prob, shape="polygon", connectivity=8).polygons) == 1
    parted = on_canvas(prob, shape="polygon", connectivity=4)
    assert len(parted.polygons) == 2
    assert parted.polygons[0].mean() < parted.polygons[1].mean(), "equal scores keep raster order"


@pytest.mark.parametrize("mode", ["fast", "slow"])
def test_polygon_scores_are_means_over_their_pixels(mode):
    prob = np.zeros((60, 100), np.float32)
    prob[20:40, 20:80] = np.linspace(0.5, 1.0, 60, dtype=np.float32)
    prob[25:35, 40:60] = 0.1  # a hole
    text = prob > 0.3
    expected = prob[text].mean() if mode == "slow" else prob[20:40, 20:80].mean()
    assert on_canvas(prob, shape="polygon", score_mode=mode).scores[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shape", ["quad", "polygon"])
def test_best_scores_survive_the_cap(shape):
    prob = np.zeros((120, 80), np.float32)
    for k, level in enumerate([0.6, 0.9, 0.7, 0.8]):
        prob[30 * k + 5 : 30 * k + 17, 15:65] = level
    found = on_canvas(prob, shape=shape, max_candidates=2)
    np.testing.assert_allclose(found.scores, [0.9, 0.8], atol=1e-6)
    assert [int(p[:, 1].mean() // 30) for p in found.polygons] == [1, 3]


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", ["quad", "polygon"])
@pytest.mark.parametrize("unclip_ratio", [0.0, 1.5])
def test_degenerate_shapes_never_raise(shape, connectivity, unclip_ratio):
    rng = np.random.default_rng(0)
    pages = np.zeros((8, 48, 56), np.float32)
    pages[0, 5, 5] = 1  # a pixel
    pages[1, 5, 5:40] = pages[1, 10:40, 8] = 1  # lines
    pages[2][np.arange(30), np.arange(30)] = 1  # a diagonal
    pages[3] = 1
    pages[4] = rng.random((48, 56))
    pages[5, ::2, ::2] = 1
    pages[6] = np.nan
    pages[7, 0, :] = pages[7, :, 0] = pages[7, -1, :] = 1  # along the border
    pages = np.concatenate([pages, 0.2 + 0.3 * rng.random((1, 48, 56), np.float32)])
    post = settings(
        shape=shape,
        connectivity=connectivity,
        unclip_ratio=unclip_ratio,
        min_size_px=0.0,
        min_unclipped_px=0.0,
        box_thresh=0.0,
    )
    sizes = np.full((9, 2), (56, 48))
    found = detect(torch.from_numpy(pages), IDENTITY.repeat(9, 0), sizes, post)
    assert len(found[3].polygons) == 1 and not found[6].polygons
    if unclip_ratio:
        assert len(found[0].polygons) == 1 and len(found[2].polygons) == (30 if connectivity == 4 else 1)
    for page in found:
        assert all(len(p) >= 3 and np.isfinite(p).all() for p in page.polygons)
        assert len(page.polygons) == len(page.scores) and np.all(np.diff(page.scores) <= 0)


def test_quads_and_polygons_of_a_page_of_text_agree():
    prob = text_like_map(0, 480, 640, 40)
    quads, polygons = (on_canvas(prob, shape=shape, score_mode="slow") for shape in ("quad", "polygon"))
    assert len(quads.polygons) == len(polygons.polygons) > 10
    np.testing.assert_allclose(quads.scores, polygons.scores, atol=1e-5)
    best = [max(overlap(q, p) for q in quads.polygons) for p in polygons.polygons]
    assert np.mean(best) > 0.85, "round corners and rounded cores"


def test_overflow_is_logged(caplog):
    prob = np.zeros((300, 700), np.float32)
    prob[::4, ::4] = prob[1::4, ::4] = prob[::4, 1::4] = prob[1::4, 1::4] = 1
    with caplog.at_level(logging.WARNING):
        on_canvas(prob, min_size_px=0.0, min_unclipped_px=0.0)
    assert "1 of 1 probability maps have more than 4096 regions" in caplog.text


def test_mismatched_shapes_are_refused():
    for matrices, sizes in ((IDENTITY.repeat(2, 0), [[8, 8]]), (IDENTITY, [8, 8]), (np.eye(3)[None], [[8, 8]])):
        with pytest.raises(ValueError, match="1 maps need"):
            detect(torch.zeros(1, 8, 8), matrices, np.array(sizes), PostConfig())
    with pytest.raises(ValueError, match="prob_maps must be"):
        detect(torch.zeros(8, 8), IDENTITY, np.array([[8, 8]]), PostConfig())
