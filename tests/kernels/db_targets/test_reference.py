"""db_targets against clipper, against the definition pixel by pixel in float64, and rule by rule."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.peers.clipper_targets import clipper_targets, offset_distance, offset_polygon
from kernels.db_targets import DBTargets, Rules, db_targets, db_targets_reference, reference

DEFAULTS = {"shrink_ratio": 0.4, "thresh_min": 0.3, "thresh_max": 0.7, "min_text_size_px": 8.0, "mode": "paper"}


def csr(pages, ignore=None):
    polygons = [np.asarray(polygon, np.float32).reshape(-1, 2) for page in pages for polygon in page]
    poly_offsets = torch.tensor([0, *np.cumsum([len(polygon) for polygon in polygons])], dtype=torch.int64)
    page_offsets = torch.tensor([0, *np.cumsum([len(page) for page in pages])], dtype=torch.int64)
    points = torch.from_numpy(np.concatenate([np.zeros((0, 2), np.float32), *polygons]))
    flags = torch.tensor(ignore if ignore is not None else [False] * len(polygons), dtype=torch.bool)
    return points, poly_offsets, page_offsets, flags


def draw(polygons, height, width, ignore=None, **options):
    return DBTargets(
        *(field[0] for field in db_targets(*csr([polygons], ignore), height=height, width=width, **options))
    )


def box(cx, cy, w, h, degrees=0.0):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
    return np.array([(cx + c * u - s * v, cy + s * u + c * v) for u, v in corners], np.float32)


def line_page(seed, lines=12, height=320, width=320, degrees=8.0):
    rng = random.Random(seed)
    page = []
    for row in range(lines):
        w, h = rng.uniform(30, 0.7 * width), rng.uniform(0.5, 0.9) * height / lines
        cy = (row + 0.5) * height / lines
        page.append(box(rng.uniform(w / 2, width - w / 2), cy, w, h, rng.uniform(-degrees, degrees)))
    return page


def blob(rng, cx, cy, radius, vertices):
    """A star-shaped, usually concave polygon."""
    angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(vertices))
    lengths = [radius * rng.uniform(0.5, 1) for _ in angles]
    return np.array([(cx + r * math.cos(a), cy + r * math.sin(a)) for a, r in zip(angles, lengths)], np.float32)


# --- the definition, pixel by pixel ---


def centres(height, width):
    return np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)


def boundary_distance(polygon, points):
    a = np.asarray(polygon, np.float64)
    edge = np.roll(a, -1, 0) - a
    offset = points[..., None, :] - a
    along = (offset * edge).sum(-1) / np.maximum((edge * edge).sum(-1), 1e-300)
    return np.linalg.norm(offset - along.clip(0, 1)[..., None] * edge, axis=-1).min(-1)


def interior(polygon, points):
    a = np.asarray(polygon, np.float64)
    b = np.roll(a, -1, 0)
    y = points[..., 1, None]
    rise = np.where(a[:, 1] == b[:, 1], 1.0, b[:, 1] - a[:, 1])
    crossing = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / rise
    return (((a[:, 1] > y) != (b[:, 1] > y)) & (crossing > points[..., 0, None])).sum(-1) % 2 == 1


def properly_crosses(polygon):
    a = np.asarray(polygon, np.float64)
    b = np.roll(a, -1, 0)

    def side(i, p):
        return np.sign((b[i][0] - a[i][0]) * (p[1] - a[i][1]) - (b[i][1] - a[i][1]) * (p[0] - a[i][0]))

    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return any(side(i, a[j]) * side(i, b[j]) < 0 and side(j, a[i]) * side(j, b[i]) < 0 for i, j in pairs)


def least_extent(polygon):
    a = np.asarray(polygon, np.float64)
    edges = [edge for edge in np.roll(a, -1, 0) - a if edge.any()]
    return min(np.ptp(a @ np.array([-e[1], e[0]]) / np.linalg.norm(e)) for e in edges)


def by_definition(polygons, ignore, height, width, mode, min_size):
    """(shrink_map, shrink_mask, thresh_map, thresh_mask, pixels where rounding decides)."""
    points = centres(height, width)
    shrink, ignored, band, tie = (np.zeros((height, width), bool) for _ in range(4))
    value = np.zeros((height, width))
    for polygon, flagged in zip(polygons, ignore):
        polygon = np.asarray(polygon, np.float32)
        d, inside, distance = boundary_distance(polygon, points), interior(polygon, points), offset_distance(polygon)
        core = inside & (d >= distance)
        x, y = polygon.astype(np.float64).T
        area = 0.5 * abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())
        bad = flagged or area < 1 or least_extent(polygon) < min_size or properly_crosses(polygon)
        if mode == "paper" and (bad or not core.any()):
            ignored |= inside
            tie |= d < 1e-4
            continue
        shrink |= core
        band |= inside | (d <= distance)
        value = np.maximum(value, np.where(inside | (d <= distance), 1 - np.minimum(d / distance, 1), 0))
        tie |= (np.abs(d - distance) < 1e-4) | (d < 1e-4)
    counts = np.full((height, width), True) if mode == "baseline" else ~ignored
    return shrink, counts, 0.3 + 0.4 * value, counts & (band | (mode == "baseline")), tie


@st.composite
def pages(draw):
    height, width = draw(st.sampled_from([(1, 1), (7, 13), (33, 50), (64, 96), (40, 128)]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    polygons = []
    for _ in range(draw(st.integers(0, 6))):
        cx, cy, radius = rng.uniform(-10, width + 10), rng.uniform(-10, height + 10), rng.uniform(3, 45)
        kind = rng.choice(["box", "box", "blob", "scrambled"])
        if kind == "box":
            polygons.append(
                box(cx, cy, 2 * radius, radius * rng.uniform(0.3, 1), rng.choice([0, 0, rng.uniform(0, 90)]))
            )
        else:
            polygons.append(blob(rng, cx, cy, radius, rng.choice([3, 4, 5, 7, 12, 60])))
            if kind == "scrambled":
                polygons[-1] = polygons[-1][rng.sample(range(len(polygons[-1])), len(polygons[-1]))]
    return polygons, [rng.random() < 0.2 for _ in polygons], height, width


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("mode", ["paper", "baseline"])
@given(page=pages())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_the_definition(mode, upcast, page):
    polygons, ignore, height, width = page
    for min_size in (0.0, 8.0):
        options = {**DEFAULTS, "mode": mode, "min_text_size_px": min_size}
        points, *others = csr([polygons], ignore)
        rules = Rules(height=height, width=width, **options)
        got = db_targets_reference(points.double() if upcast else points, *others, rules)
        *want, tie = by_definition(polygons, ignore, height, width, mode, min_size)
        for name, expected in zip(DBTargets._fields, want):
            actual = getattr(got, name)[0].numpy()
            if name == "thresh_map":  # an error of 1e-4 px (float32 at coordinates of 100) in d over the least D
                least = min((offset_distance(polygon) for polygon in polygons), default=1.0)
                allowed = 1e-9 if upcast else 1e-6 + 0.4 * 1e-4 / max(least, 1e-3)
                assert np.abs(actual - expected)[~tie].max(initial=0) <= allowed
            else:
                assert np.array_equal(actual[~tie], expected[~tie].astype(np.uint8)), name


# --- clipper ---


@pytest.mark.parametrize("seed", range(4))
def test_core_matches_clipper_on_a_fine_grid(seed):
    page = line_page(seed)
    rng = random.Random(seed)
    page += [blob(rng, 160, y, 40, 60) for y in (80, 240)] if seed % 2 else []
    got = draw(page, 320, 320, mode="baseline").shrink_map.numpy().astype(bool)
    want = np.zeros_like(got)
    for polygon in page:
        (left, top), (right, bottom) = polygon.min(0).astype(int).clip(0), polygon.max(0).astype(int) + 1
        window = np.s_[top:bottom, left:right]
        for piece in offset_polygon(polygon, -offset_distance(polygon), 1000):
            want[window] |= interior(piece, centres(320, 320)[window])
    assert want.sum() > 1000
    assert (got & want).sum() / (got | want).sum() >= 0.995


@pytest.mark.parametrize("seed", range(4))
def test_differs_from_the_customary_integer_core_only_at_its_border(seed):
    points = centres(320, 320)
    for polygon in line_page(seed):
        got = draw([polygon], 320, 320, mode="baseline").shrink_map.numpy()
        want, _, _ = clipper_targets([polygon], 320, 320)
        (core,) = offset_polygon(polygon, -offset_distance(polygon), 1000)
        differs = got != want
        assert differs.sum() < got.size // 100
        assert boundary_distance(core, points[differs]).max(initial=0) <= 1.5


@pytest.mark.parametrize("seed", range(4))
def test_threshold_map_matches_the_customary_one(seed):
    page = line_page(seed)
    got = draw(page, 320, 320)
    _, value, mask = clipper_targets(page, 320, 320)
    common = (got.thresh_mask.numpy() & mask).astype(bool)
    assert common.mean() > 0.2
    assert np.abs(got.thresh_map.numpy() - value)[common].mean() <= 0.005
    assert (got.thresh_mask.numpy() != mask).mean() < 0.05


# --- rules ---


def test_worked_example():
    got = draw([box(64, 32, 100, 25)], 64, 128)
    rows = torch.arange(64)[got.shrink_map.sum(1) > 0]
    assert (rows.min(), rows.max()) == (28, 35)  # centres within 32 +- 4.1
    assert got.shrink_map.sum(1).max() == 84  # centres within 64 +- 41.6, one column more at the ends' rounding
    assert got.thresh_map[20, 64] == pytest.approx(0.3 + 0.4 * (1 - 1.0 / 8.4))  # centre 1.0 px below the top at 19.5
    assert got.thresh_map[32, 64] == pytest.approx(0.3)
    assert got.thresh_mask[11, 64] == 1 and got.thresh_mask[10, 64] == 0  # 8.0 and 9.0 px above the top


GOOD = box(30, 20, 40, 20)
BAD = {
    "flagged": (box(90, 60, 40, 20), {}),
    "small": (box(90, 60, 40, 7.9), {}),
    "small, turned": (box(90, 60, 40, 7.9, 30), {}),
    "self-intersecting": (np.array([(70, 50), (110, 70), (110, 50), (70, 70)]), {}),
    "sliver": (np.array([(60, 60), (110, 60), (110, 60.01)]), {"min_text_size_px": 0.0}),
    "vanished": (box(90, 62, 1.5, 1.5), {"min_text_size_px": 0.0}),  # D = 0.315, the four centres inside have d = 0.25
    "below one pixel": (
        box(90.5, 60.5, 0.9, 0.9),
        {"min_text_size_px": 0.0},
    ),  # its core holds a centre: d 0.45, D 0.19
    "core off the canvas": (box(146, 60, 40, 20), {}),  # D = 5.6: the core begins at x = 131.6
}


@pytest.mark.parametrize("name", BAD)
def test_ignored_polygons_are_masked_out_of_both_maps(name):
    polygon, options = BAD[name]
    height, width = 80, 128
    got = draw([GOOD, polygon], height, width, [False, name == "flagged"], **options)
    alone = draw([GOOD], height, width)
    inside = interior(polygon, centres(height, width))
    assert np.array_equal(got.shrink_mask.numpy(), 1 - inside.astype(np.uint8))
    assert np.array_equal(got.thresh_mask.numpy(), alone.thresh_mask.numpy() * ~inside)
    assert torch.equal(got.shrink_map, alone.shrink_map)
    assert torch.equal(got.thresh_map, alone.thresh_map)
    assert inside.any() or name == "sliver"


@pytest.mark.parametrize(
    "polygon",
    [
        np.zeros((0, 2)),
        np.array([(90.0, 60.0)]),
        np.array([(70.0, 60.0), (110.0, 60.0)]),
        np.array([(70, 50), (110, np.nan), (110, 70), (70, 70)]),
        np.array([(70, 50), (np.inf, 50), (110, 70), (70, 70)]),
        box(90, 60, 0, 0),
        box(500, 60, 40, 20),
        box(90, -50, 40, 20),
    ],
    ids=["empty", "point", "segment", "nan", "inf", "collapsed", "right of the canvas", "above the canvas"],
)
@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_polygons_without_interior_on_the_canvas_leave_no_trace(polygon, mode):
    with_it, alone = (draw(page, 80, 128, mode=mode) for page in ([GOOD, polygon], [GOOD]))
    for a, b in zip(with_it, alone):
        assert torch.equal(a, b)


def test_minimum_size_is_inclusive_and_follows_the_turned_box():
    for degrees, size, text in ((0, 8.0, True), (0, 7.99, False), (45, 8.01, True), (45, 7.99, False)):
        assert bool(draw([box(64, 40, 60, size, degrees)], 80, 128).shrink_map.any()) == text


def test_masks_win_over_a_text_polygon_below():
    got = draw([GOOD, GOOD + 2], 80, 128, [False, True])
    assert got.shrink_map.any() and not (got.shrink_map * got.shrink_mask)[18:22, 20:40].any()


def test_baseline_masks_nothing_and_draws_everything():
    page = [GOOD, box(90, 60, 40, 4), box(60, 70, 1.5, 1.5), np.array([(70, 20), (110, 40), (110, 20), (70, 45)])]
    got = draw(page, 80, 128, [True, False, False, False], mode="baseline")
    assert got.shrink_mask.all() and got.thresh_mask.all()
    assert got.shrink_map[20, 30] == 1  # flagged, and drawn
    assert got.shrink_map[60, 90] == 1 or got.thresh_map[58:63, 90].max() > 0.5  # below the minimum size, and drawn
    assert got.thresh_map[68:73, 58:63].max() > 0.3 and not got.shrink_map[68:73, 58:63].any()  # core gone, band kept


def test_no_polygons_no_pages_and_empty_pages():
    blank = draw([], 7, 13)
    assert not blank.shrink_map.any() and blank.shrink_mask.all() and not blank.thresh_mask.any()
    assert (blank.thresh_map == 0.3).all()
    assert db_targets(*csr([]), height=7, width=13).shrink_map.shape == (0, 7, 13)
    got = db_targets(*csr([[], [GOOD], [], [], [GOOD, GOOD]]), height=80, width=128)
    assert got.shrink_map.flatten(1).any(1).tolist() == [False, True, False, False, True]


def test_duplicate_points_and_orientation_change_nothing():
    doubled = np.repeat(GOOD, 2, 0)
    closed = np.concatenate([GOOD, GOOD[:1]])
    for variant in (doubled, closed, GOOD[::-1], np.roll(GOOD, 1, 0)):
        for a, b in zip(draw([variant], 80, 128), draw([GOOD], 80, 128)):
            assert torch.allclose(a.float(), b.float(), atol=1e-6)


def test_types_and_custom_range():
    got = draw([GOOD], 80, 128, thresh_min=0.1, thresh_max=0.9, shrink_ratio=0.5)
    assert [field.dtype for field in got] == [torch.uint8, torch.uint8, torch.float32, torch.uint8]
    assert got.thresh_map.min() == pytest.approx(0.1) and 0.8 < got.thresh_map.max() <= 0.9
    assert all(field.is_contiguous() for field in got)


def test_pages_and_batches_cut_anywhere_give_the_same(monkeypatch):
    rng = random.Random(5)
    layout = [line_page(seed, height=160, width=200) + [blob(rng, 90, 80, 60, 30)] for seed in range(3)]
    arguments = {"height": 160, "width": 200}
    whole = db_targets(*csr(layout), **arguments)
    for index, page in enumerate(layout):
        for a, b in zip(whole, db_targets(*csr([page]), **arguments)):
            assert torch.equal(a[index], b[0])
    for name, value in (("MAX_STRIPS", 64), ("BLOCK", 19), ("MAX_MEASURED", 1)):
        monkeypatch.setattr(reference, name, value)
    for a, b in zip(whole, db_targets(*csr(layout), **arguments)):
        assert torch.equal(a, b)


def test_a_thousand_large_overlapping_outlines():
    rng = random.Random(0)
    page = [blob(rng, rng.uniform(0, 160), rng.uniform(0, 160), rng.uniform(5, 90), 60) for _ in range(1000)]
    got = draw(page, 160, 160)
    assert got.shrink_map.float().mean() > 0.9 and got.thresh_map.max() <= 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points_xy": torch.zeros(4, 3)}, "points_xy"),
        ({"points_xy": torch.zeros(4, 2, dtype=torch.float64)}, "points_xy"),
        ({"poly_offsets": torch.tensor([0, 4], dtype=torch.int32)}, "poly_offsets"),
        ({"poly_offsets": torch.tensor([0, 3])}, "poly_offsets must rise from 0 to 4"),
        ({"page_offsets": torch.tensor([0, 2])}, "page_offsets must rise from 0 to 1"),
        ({"ignore": torch.zeros(2, dtype=torch.bool)}, "ignore"),
        ({"ignore": torch.zeros(1)}, "ignore"),
        ({"height": 0}, "height"),
        ({"shrink_ratio": 1.0}, "shrink_ratio"),
        ({"thresh_min": 0.7}, "thresh_min"),
        ({"min_text_size_px": -1.0}, "min_text_size_px"),
        ({"min_text_size_px": math.nan}, "min_text_size_px"),
        ({"mode": "papers"}, "mode"),
        ({"implementation": "cuda"}, "implementation"),
        ({"thresh_dtype": torch.float64}, "thresh_dtype"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("points_xy", "poly_offsets", "page_offsets", "ignore")
    arguments = dict(zip(names, csr([[GOOD]])), height=80, width=128) | change
    with pytest.raises(ValueError, match=message):
        db_targets(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    tensors = csr([line_page(seed) for seed in range(2)])
    cpu = db_targets(*tensors, height=320, width=320)
    gpu = db_targets(*(tensor.cuda() for tensor in tensors), height=320, width=320, thresh_dtype=torch.float32)
    for name, a, b in zip(DBTargets._fields, cpu, gpu):
        if name == "thresh_map":
            assert (a - b.cpu()).abs().max() < 1e-4
        else:
            assert (a != b.cpu()).sum() <= 4, name
