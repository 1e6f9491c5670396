import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from shapely.geometry import Polygon, box

from pipelines import geometry
from pipelines.augment import AugmentConfig, draw

IDENTITY = np.eye(2, 3)
PLAIN = draw(AugmentConfig(enabled=False), 0, 0, 0)
number = st.floats(-300, 300)


def quad(x, y, w, h):
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], np.float32)


def signed_area(p):
    x, y = p[:, 0], p[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@given(a=st.lists(number, min_size=6, max_size=6), b=st.lists(number, min_size=6, max_size=6), x=number, y=number)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_compose_applies_from_right_to_left(a, b, x, y):
    a, b, p = np.reshape(a, (2, 3)), np.reshape(b, (2, 3)), np.array([[x, y]])
    np.testing.assert_allclose(
        geometry.apply(geometry.compose(a, b), p), geometry.apply(a, geometry.apply(b, p)), rtol=1e-9, atol=1e-4
    )


def test_invert():
    m = geometry.compose(geometry.translation(3, -9), np.array([[0.3, -1.2, 5], [2.0, 0.1, 7]]))
    np.testing.assert_allclose(geometry.compose(m, geometry.invert(m)), IDENTITY, atol=1e-12)
    np.testing.assert_allclose(geometry.compose(geometry.invert(m), m), IDENTITY, atol=1e-12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orient_is_exif(orientation):
    raw = np.arange(5 * 3, dtype=np.uint8).reshape(5, 3)
    image = Image.fromarray(raw)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(image))
    y, x = np.mgrid[:5, :3]
    centres = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], 1)
    moved = geometry.apply(geometry.orient(orientation, (3, 5)), centres) - 0.5
    columns, rows = moved.T.astype(int)
    np.testing.assert_array_equal(moved, np.rint(moved))
    np.testing.assert_array_equal(upright[rows, columns], raw.ravel())


@given(w=st.integers(1, 7000), h=st.integers(1, 7000), side=st.sampled_from([(640, 640), (1280, 640), (96, 320)]))
@settings(max_examples=80, derandomize=True, deadline=None)
def test_letterbox_fits_centres_and_is_whole_pixels(w, h, side):
    corners = geometry.apply(geometry.letterbox((w, h), side), np.array([[0, 0], [w, h]]))
    np.testing.assert_allclose(corners, np.rint(corners), atol=1e-6)
    (x0, y0), (x1, y1) = np.rint(corners)
    assert 0 <= x0 <= x1 <= side[1] and 0 <= y0 <= y1 <= side[0]
    assert x1 - x0 == side[1] or y1 - y0 == side[0]  # one side is filled, also by a small page
    assert 0 <= (side[1] - x1) - x0 <= 1 and 0 <= (side[0] - y1) - y0 <= 1
    scale = min(side[1] / w, side[0] / h)
    assert abs((x1 - x0) - w * scale) <= max(0.5, 1 - w * scale) + 1e-6


def test_a_plain_draw_is_the_letterbox():
    labels = geometry.pack([quad(10, 10, 50, 20)], np.zeros(1, bool))
    np.testing.assert_array_equal(
        geometry.place(PLAIN, (300, 700), (640, 640), labels), geometry.letterbox((300, 700), (640, 640))
    )


def test_the_parts_of_a_placement():
    labels = geometry.pack([], np.zeros(0, bool))
    flip = geometry.place(PLAIN._replace(hflip=True), (640, 640), (640, 640), labels)
    np.testing.assert_allclose(geometry.apply(flip, [[10, 20]]), [[630, 20]])
    turn = geometry.place(PLAIN._replace(angle_deg=90.0), (640, 640), (640, 640), labels)
    np.testing.assert_allclose(geometry.apply(turn, [[320, 0]]), [[640, 320]], atol=1e-9)  # top goes right: clockwise
    half = geometry.place(PLAIN._replace(scale=0.5), (640, 640), (640, 640), labels)
    np.testing.assert_allclose(geometry.apply(half, [[0, 0], [640, 640]]), [[160, 160], [480, 480]])
    wide = geometry.place(PLAIN._replace(scale=0.5, aspect=4.0), (640, 640), (640, 640), labels)
    np.testing.assert_allclose(np.ptp(geometry.apply(wide, [[0, 0], [640, 640]]), axis=0), [640, 160])
    moved = geometry.place(PLAIN._replace(scale=0.5, shift=np.array([0.1, -1.0])), (640, 640), (640, 640), labels)
    np.testing.assert_allclose(geometry.apply(moved, [[0, 0]]), [[160 + 64, 0]])  # y stops at the canvas border


def lines(size_wh, count=20):
    """Text lines over most of the page's width, with as much white between them."""
    pitch = size_wh[1] / count
    return [quad(0.1 * size_wh[0], (i + 0.25) * pitch, 0.8 * size_wh[0], 0.5 * pitch) for i in range(count)]


def count_cut(labels, matrix, canvas):
    low, high = geometry._boxes(geometry.apply(matrix, labels.points), labels.offsets)
    limit = np.array(canvas[::-1])
    inside = np.all((low >= 0) & (high <= limit), axis=1)
    return int((np.all((high > 0) & (low < limit), axis=1) & ~inside).sum()), int(inside.sum())


def test_crops_avoid_cutting_text():
    size, canvas = (600, 1200), (640, 640)
    labels = geometry.pack(lines(size), np.zeros(20, bool))
    clean = {}
    for tries in (1, 20):
        config = AugmentConfig(scale_min=1.6, scale_max=2.2, rotate_p=0.0, crop_tries=tries)
        placed = [geometry.place(draw(config, 0, 0, i), size, canvas, labels) for i in range(40)]
        counts = [count_cut(labels, matrix, canvas) for matrix in placed]
        assert all(shown > 0 for _, shown in counts)
        clean[tries] = sum(cut == 0 for cut, _ in counts)
    # a try is clean with probability 0 to 0.5, by how many lines and half lines the canvas is high
    assert clean[20] >= 36 and clean[1] < 30


def test_a_window_without_text_is_the_last_choice():
    low, high = np.array([[0.0, 0.0]]), np.array([[50.0, 20.0]])
    shifts = np.array([[500.0, 0.0], [-10.0, 5.0], [10.0, 5.0], [20.0, 5.0]])
    assert geometry._least_cutting(shifts, low, high, (100, 100)) == 2
    assert geometry._least_cutting(shifts[:2], low, high, (100, 100)) == 0  # nothing whole in either: the first


def test_ignored_text_may_be_cut():
    labels = geometry.pack([quad(0, 0, 1000, 1000)], np.ones(1, bool))
    low, high = geometry._boxes(labels.points, labels.offsets)
    assert len(low[~labels.ignore]) == 0 and geometry._least_cutting(np.zeros((3, 2)), low[:0], high[:0], (10, 10)) == 0


def test_border_policy():
    polygons = [
        quad(10, 10, 20, 10),  # inside
        quad(-3, 10, 10, 10),  # 70 % inside: kept whole
        quad(-5, 10, 10, 10),  # half inside: ignored
        quad(-10, 10, 10, 10),  # touches the border from outside: dropped
        quad(200, 200, 10, 10),  # far outside: dropped
        quad(95, 95, 5, 5),  # touches the border from inside
    ]
    given_labels = geometry.pack(polygons, np.array([0, 0, 0, 0, 0, 1], bool))
    labels = geometry.transform(given_labels, IDENTITY, (100, 100))
    assert all(np.array_equal(a, polygons[b]) for a, b in zip(labels.polygons(), [0, 1, 2, 5], strict=True))
    assert labels.ignore.tolist() == [False, False, True, True]
    assert labels.offsets.tolist() == [0, 4, 8, 12, 16] and labels.points.dtype == np.float32
    np.testing.assert_array_equal(labels.points[4:8], polygons[1])  # not clipped


def test_a_corner_beyond_the_box_test_is_dropped():
    diamond = np.array([[-6, 2], [2, -6], [-6, -14], [-14, -6]], np.float32)  # its box meets the canvas, it does not
    labels = geometry.transform(geometry.pack([diamond], np.zeros(1, bool)), IDENTITY, (50, 50))
    assert len(labels.ignore) == 0 and labels.points.shape == (0, 2) and labels.offsets.tolist() == [0]


def test_a_mirror_keeps_the_sense_of_rotation():
    polygons = [quad(10, 10, 20, 10), np.array([[50, 50], [70, 55], [75, 70], [60, 80], [45, 65]], np.float32)]
    labels = geometry.pack(polygons, np.zeros(2, bool))
    mirror = geometry.compose(geometry.translation(100, 0), geometry.scaling(-1, 1))
    moved = geometry.transform(labels, mirror, (100, 100))
    for a, b, before in zip(moved.offsets[:-1], moved.offsets[1:], polygons):
        assert signed_area(moved.points[a:b]) == pytest.approx(signed_area(before))
        assert {tuple(p) for p in moved.points[a:b]} == {(100 - x, y) for x, y in before}


@given(seed=st.integers(0, 10_000), corners=st.integers(3, 9))
@settings(max_examples=80, derandomize=True, deadline=None)
def test_inside_share_is_shapelys(seed, corners):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(5, 60, corners)  # star-shaped, mostly concave
    polygon = rng.uniform(-20, 120, 2) + np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    shape = Polygon(polygon)
    if not shape.is_valid or shape.area < 1:
        return
    expected = shape.intersection(box(0, 0, 100, 80)).area / shape.area
    assert geometry.inside_share(polygon, (80, 100)) == pytest.approx(expected, abs=1e-6)


def test_polygons_without_area_are_left_to_the_targets():
    assert geometry.inside_share(np.array([[-5.0, 3.0], [5.0, 3.0], [8.0, 3.0]]), (10, 10)) == 1.0


@given(scale=st.floats(0.05, 4), angle=st.floats(-180, 180), w=st.integers(8, 6000), h=st.integers(8, 6000))
@settings(max_examples=80, derandomize=True, deadline=None)
def test_resize_and_warp_make_up_the_matrix(scale, angle, w, h):
    t = np.radians(angle)
    matrix = scale * np.array([[np.cos(t), -np.sin(t), 3.0], [np.sin(t), np.cos(t), -8.0]])
    warp = geometry.plan_warp(matrix, (w, h))
    new_h, new_w = (float(side) for side in warp.size_hw)
    assert warp.resize == (scale * geometry.ANTIALIAS < 1)
    whole = geometry.compose(geometry.invert(warp.inverse.astype(np.float64)), geometry.scaling(new_w / w, new_h / h))
    corners = np.array([[0, 0], [w, 0], [w, h]])
    np.testing.assert_allclose(geometry.apply(whole, corners), geometry.apply(matrix, corners), atol=0.01 + 1e-6 * w)
    assert warp.resize or (new_h, new_w) == (h, w)
    if warp.resize:
        step = np.linalg.norm(warp.inverse[:, :2], axis=0).max()
        assert step < 1 + 0.51 / min(w * scale, h * scale) or min(new_w, new_h) == 1  # the warp no longer shrinks


def test_a_strong_shrink_to_a_letterbox_is_a_resize_and_a_whole_pixel_shift():
    warp = geometry.plan_warp(geometry.letterbox((5000, 7000), (1280, 1280)), (5000, 7000))
    assert warp.size_hw.tolist() == [1280, 914]
    np.testing.assert_allclose(warp.inverse, [[1, 0, -183], [0, 1, 0]], atol=1e-6)
