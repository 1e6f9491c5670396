"""The Triton kernels of db_targets against their reference and the float64 definition; without a GPU interpreted."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from no_sync import no_sync
from target_pages import drawn

from kernels import runtime
from kernels.db_targets import Rules, db_targets, db_targets_reference, kernel
from tests.conftest import DEVICE
from tests.kernels.db_targets.test_reference import (
    BAD,
    DEFAULTS,
    GOOD,
    blob,
    boundary_distance,
    box,
    by_definition,
    centres,
    csr,
    interior,
    offset_distance,
)
from tests.kernels.db_targets.test_reference import pages as random_pages

RNG = random.Random(7)
STAR = np.array([(20 + 18 * math.cos(k * 4 * math.pi / 5), 18 + 16 * math.sin(k * 4 * math.pi / 5)) for k in range(5)])
U_SHAPE = np.array([(4, 4), (46, 3), (45, 30), (33, 30), (33, 16), (17, 16), (17, 29), (4, 30)], np.float32)
WAVE_X = np.linspace(5, 125, 38)
WAVE = np.concatenate(
    [np.stack([x, 20 + s * 8 + 5 * np.sin(x / 15)], -1)[::s] for s, x in ((-1, WAVE_X), (1, WAVE_X))]
).astype(np.float32)  # a curved line of 76 points


# Half an ulp of values in [0.5, 1), which the map lies below; Triton's interpreter cuts bfloat16 off instead: an ulp.
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0 ** (-8 if runtime.INTERPRETED else -9), torch.float16: 2.0**-12}


def rounding_decides(page, ignore, height, width, mode, min_size):
    """Pixels at a boundary or at distance D of one, and all of a polygon whose only core pixels are such."""
    tie = by_definition(page, ignore, height, width, mode, min_size)[4]
    points = centres(height, width)
    for polygon in (np.asarray(polygon, np.float32) for polygon in page):
        d, inside, distance = boundary_distance(polygon, points), interior(polygon, points), offset_distance(polygon)
        if not (inside & (d >= distance + 1e-4)).any() and (inside & (d >= distance - 1e-4)).any():
            tie |= inside | (d <= distance + 1e-4)
    return tie


def check(layout, height, width, ignore=None, dtype=torch.float32, **change):
    """Kernels against the reference: masks equal, thresholds at most twice as far from float64 as the reference's."""
    options = {**DEFAULTS, **change, "height": height, "width": width}
    flags = ignore if ignore is not None else [False] * sum(len(page) for page in layout)
    got = drawn(layout, ignore, dtype, **options)
    points, *others = csr(layout, ignore)
    want, exact = (db_targets_reference(given, *others, Rules(**options)) for given in (points, points.double()))
    assert got.thresh_map.dtype == dtype and all(a.shape == b.shape for a, b in zip(got, want))
    for n, page in enumerate(layout):
        first = sum(len(other) for other in layout[:n])
        flagged = flags[first : first + len(page)]
        tie = rounding_decides(page, flagged, height, width, options["mode"], options["min_text_size_px"])
        for name in ("shrink_map", "shrink_mask", "thresh_mask"):
            a, b = (getattr(maps, name)[n].numpy() for maps in (got, want))
            assert np.array_equal(a[~tie], b[~tie]), (name, np.argwhere(a != b)[:5])
        floor, limit = allowed(page, want.thresh_map[n], exact.thresh_map[n])
        error = (got.thresh_map[n].double() - exact.thresh_map[n]).abs()
        assert (error <= floor + limit + ROUNDING[dtype]).all(), (error.max(), floor, limit)
    return got


def allowed(page, want, exact):
    """A floor of 1e-5 px, float32's rounding of coordinates near 100, over the least D; twice the reference's error."""
    least = min((offset_distance(polygon) for polygon in page), default=1.0)
    return 1e-6 + 0.4 * 1e-5 / max(least, 1e-3), 2 * (want.double() - exact).abs().max().item()


LAYOUTS = {
    "one pixel": ([[box(0.5, 0.5, 40, 20)]], 1, 1),
    "one pixel, masked": ([[box(0.5, 0.5, 4, 4)]], 1, 1),
    "a tile in part, three pages": ([[box(6, 3, 30, 10, 3)], [], [np.array([(-9, -4), (30, 3), (2, 20)])]], 7, 13),
    "overlapping and turned": ([[box(20, 14, 34, 11, 20), box(28, 18, 36, 12, -35), box(25, 16, 30, 9)]], 33, 50),
    "concave": ([[U_SHAPE]], 33, 50),
    "star": ([[STAR], [STAR[[0, 3, 1, 4, 2]]]], 33, 50),  # self-intersecting, and the same points in order
    "across tiles": ([[box(65, 20, 120, 14, 6)]], 40, 130),
    "curve of 60 points": ([[blob(random.Random(1), 34, 32, 40, 60)]], 33, 50),
    "curve of 76 points": ([[WAVE]], 40, 130),
    "partly off the canvas": ([[box(0, 0, 40, 20, 10), box(50, 33, 30, 30), box(25, -6, 30, 14)]], 33, 50),
    "core off the canvas, on its last tile": ([[box(60, 16, 24, 12)], [box(25, 43, 12, 24)]], 33, 50),  # D = 3.36
    "far edges": ([[box(25, 16, 3000, 12, 30)]], 33, 50),
    "masked over text": ([[box(20, 14, 34, 11), box(25, 18, 34, 5, 40)]], 33, 50),
}


@pytest.mark.parametrize("mode", ["paper", "baseline"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_the_reference(name, mode):
    layout, height, width = LAYOUTS[name]
    got = check(layout, height, width, mode=mode)
    assert mode == "baseline" or got.shrink_map.any() or (got.shrink_mask == 0).any()


@given(page=random_pages())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_equals_the_reference_on_random_pages(page):
    polygons, ignore, height, width = page
    check([polygons], height, width, ignore)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_text_is_masked_out(name):
    polygon, options = BAD[name]
    got = check([[GOOD, polygon]], 80, 128, [False, name == "flagged"], **options)
    inside = interior(polygon, centres(80, 128))
    assert np.array_equal(got.shrink_mask[0].numpy(), 1 - inside.astype(np.uint8))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_threshold_types(dtype):
    got = check([[box(20, 14, 34, 11, 20)]], 33, 50, dtype=dtype, thresh_min=0.1, thresh_max=0.9, shrink_ratio=0.5)
    assert got.thresh_map.unique().numel() > 100


NO_TRACE = {
    "empty": np.zeros((0, 2)),
    "point": np.array([(9.0, 6.0)]),
    "segment": np.array([(7.0, 6.0), (11.0, 6.0)]),
    "nan": np.array([(7, 5), (30, np.nan), (30, 27), (7, 27)]),
    "inf": np.array([(7, 5), (np.inf, 5), (30, 27), (7, 27)]),
    "nan in a later chunk": np.concatenate([blob(RNG, 20, 20, 15, 40), [(np.nan, 3)]]),
    "collapsed": box(20, 20, 0, 0),
    "right of the canvas": box(500, 60, 40, 20),
    "above the canvas": box(20, -50, 40, 20),
}


@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_polygons_without_interior_on_the_canvas_leave_no_trace(mode):
    good = box(20, 14, 34, 11, 20)
    options = {"height": 33, "width": 50, "mode": mode}
    with_them = drawn([[*NO_TRACE.values(), good], [*NO_TRACE.values()]], **options)
    for a, b in zip(with_them, drawn([[good], []], **options)):
        assert torch.equal(a, b)


def test_minimum_size_is_inclusive_and_follows_the_turned_box():
    for degrees, size, text in ((0, 8.0, True), (0, 7.99, False), (45, 8.01, True), (45, 7.99, False)):
        assert bool(drawn([[box(32, 20, 40, size, degrees)]], height=40, width=64).shrink_map.any()) == text


def test_duplicate_points_and_orientation_change_nothing():
    quad = box(25, 16, 36, 12, 5)
    variants = [np.repeat(quad, 2, 0), np.concatenate([quad, quad[:1]]), quad[::-1], np.roll(quad, 1, 0)]
    got = drawn([[variant] for variant in [quad, *variants]], height=33, width=50)
    for field in got:
        assert all(torch.allclose(page.float(), field[0].float(), atol=1e-6) for page in field)


def test_seventy_polygons_a_page_fill_three_words(monkeypatch):
    """Every bit of a word, words and pages after others, and a look-up of pages in several steps."""
    monkeypatch.setattr(kernel, "PAGES", 2)
    grid = [box(5 + 9 * (i % 14), 4 + 8 * (i // 14), 8, 7) for i in range(70)]
    layout = [[grid[0]], [], grid, [grid[31], grid[0]], grid[60:]]
    got = check(layout, 40, 130, min_text_size_px=5.0)
    assert got.shrink_map[2, 3::8, 4:130:9].sum() >= 60  # the middles of all but those cut by the canvas


def test_no_polygons_no_pages_and_all_ignored():
    for mode in ("paper", "baseline"):
        blank = drawn([[], []], height=7, width=13, mode=mode)
        assert not blank.shrink_map.any() and blank.shrink_mask.all() and (blank.thresh_map == 0.3).all()
        assert bool(blank.thresh_mask.any()) == (mode == "baseline")
        assert drawn([], height=7, width=13, mode=mode).shrink_map.shape == (0, 7, 13)
        only_short = drawn([[NO_TRACE["empty"]]], height=7, width=13, mode=mode)  # a polygon, but no vertex
        assert torch.equal(only_short.thresh_map[0], blank.thresh_map[0])
    got = check([[box(20, 14, 34, 11), box(28, 18, 36, 12, -35)]], 33, 50, [True, True])
    assert not got.shrink_map.any() and (got.shrink_mask == 0).any() and not got.thresh_mask.any()


def test_strided_inputs():
    tensors = [tensor.to(DEVICE) for tensor in csr([[box(20, 14, 34, 11), box(28, 18, 36, 12, -35)]], [False, True])]
    strides = [(5, 2), (2,), (3,), (2,)]
    strided = [
        torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=DEVICE).copy_(tensor)
        for tensor, stride in zip(tensors, strides, strict=True)
    ]
    assert not any(tensor.is_contiguous() for tensor in strided)
    options = {"height": 33, "width": 50, "implementation": "triton"}
    for a, b in zip(db_targets(*strided, **options), db_targets(*tensors, **options), strict=True):
        assert torch.equal(a, b)


def rules_of(height, width, mode="paper"):
    return Rules(**{**DEFAULTS, "height": height, "width": width, "mode": mode})


@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_host_code_of_the_kernels_waits_for_nothing(monkeypatch, mode):
    started = []
    monkeypatch.setattr(runtime, "launch", lambda kernel, grid, *args, **constants: started.append(grid))
    tensors = [tensor.to(DEVICE) for tensor in csr([[GOOD], [], [GOOD, GOOD]])]
    with no_sync():
        kernel.db_targets_triton(*tensors, rules_of(80, 130, mode), torch.bfloat16)
    assert started == [(3,), (3, 1), (3 * 3 * 5,)]


@pytest.mark.parametrize(
    ("poly_offsets", "page_offsets", "same_as"),
    [
        ([0, 4, 99], [0, 2], ([0, 4, 8], [0, 2])),
        ([-7, 4, 8], [-3, 2**40], ([0, 4, 8], [0, 2])),
        ([0, 8, 3], [0, 2], ([0, 8, 8], [0, 2])),
        ([0, 4, 8], [2, 0], ([0, 4, 8], [0, 0])),
    ],
    ids=["beyond the points", "below zero", "falling", "falling pages"],
)
def test_wrong_offsets_are_held_within_range(poly_offsets, page_offsets, same_as):
    """Around the points lie others that would be drawn if they were read."""
    quads = np.concatenate([box(x, 16, 12, 12) for x in (24, 8, 40, 24)]).astype(np.float32)
    points = torch.from_numpy(quads).to(DEVICE)[4:12]
    ignore = torch.tensor([False] * 4, device=DEVICE)[1:3]

    def run(polygons, pages):
        offsets = (torch.tensor(values, device=DEVICE) for values in (polygons, pages))
        return kernel.db_targets_triton(points, *offsets, ignore, rules_of(33, 50), torch.bfloat16)

    got, want = run(poly_offsets, page_offsets), run(*same_as)
    for a, b in zip(got, want):
        assert a.shape == (1, 33, 50) and torch.equal(a, b)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_more_than_two_billion_pixels():
    pages, side = 2050, 1024  # 2.15e9 pixels, 5 bytes each
    if torch.cuda.mem_get_info()[0] < 13 * 2**30:
        pytest.skip("needs 13 GB of free GPU memory")
    page = [box(512, 500, 900, 60, 3), box(1000, 1000, 90, 40, 20)]
    tensors = [tensor.to(DEVICE) for tensor in csr([[]] * (pages - 1) + [page])]
    got = db_targets(*tensors, height=side, width=side, implementation="triton")
    alone = db_targets(*(t.to(DEVICE) for t in csr([page])), height=side, width=side, implementation="triton")
    for a, b in zip(got, alone):
        assert torch.equal(a[-1], b[0])
        assert not a[-2].any() or a[-2].float().std() == 0
