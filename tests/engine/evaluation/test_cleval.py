"""CLEval: official against the `cleval` package, contest against a slow version written from its description."""

import math
from fractions import Fraction
from itertools import pairwise

import cleval.box_types
import cleval.eval_functions
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull, QhullError

from bench.bench_cleval import OPTIONS
from engine.evaluation.cleval import COUNTS, CLEval, evaluate_page
from pipelines.errors import UserError


class PackagePolygon(cleval.box_types.POLY):
    """The package's POLY as its evaluation calls it: 0.1.1 lacks the attribute and the argument, and fails on ""."""

    scale = None

    def pseudo_character_center(self, _threshold):
        return super().pseudo_character_center() if self.transcription else []


def package(pred, gt, texts, ignore=None, box=cleval.box_types.QUAD):
    """Counts and H-mean of one page by the `cleval` package."""

    def points(polygon):  # POLY wants lists, QUAD keeps the array's dtype
        return polygon.reshape(-1) if box is cleval.box_types.QUAD else polygon.astype(float).reshape(-1).tolist()

    flags = [None] * len(gt) if ignore is None else ignore
    boxes = [box(points(p), transcription=t, is_dc=f) for p, t, f in zip(gt, texts, flags, strict=True)]
    found = [box(points(p), transcription="") for p in pred]
    stats = cleval.eval_functions.evaluation(OPTIONS, boxes, found).stats
    det = stats.det
    counts = (1, det.num_char_gt, det.num_char_det, det.num_char_fp, det.num_char_tp_recall, det.gran_score_recall)
    counts += (det.gran_score_precision, stats.num_splitted, stats.num_merged, stats.num_char_overlapped)
    return dict(zip(COUNTS, map(int, counts))), det.hmean


def rectangle(left, top, width, height):
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]], float)


def cut(quad, share):
    """The two parts of a quad, cut across its reading direction."""
    upper, lower = quad[0] + share * (quad[1] - quad[0]), quad[3] + share * (quad[2] - quad[3])
    return [np.array([quad[0], upper, lower, quad[3]]), np.array([upper, quad[1], quad[2], lower])]


def hull_box(a, b):
    points = np.concatenate([a, b])
    return rectangle(*points.min(0), *np.ptp(points, axis=0))


def random_quad(rng, size):
    width, height = rng.integers(1, 40, 2) * rng.choice([0.3, 1, 3], 2)
    angle = rng.choice([0, 0, 0, 1]) * rng.uniform(-3.2, 3.2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return rectangle(-width / 2, -height / 2, width, height) @ turn.T + rng.uniform(0, size, 2)


def detect(rng, gt, size):
    """Detections of a page: some dropped, split, merged, equal, jittered, other vertex orders, and false ones."""
    pred = []
    for quad in gt:
        match rng.integers(0, 7):
            case 1:
                pred += cut(quad, rng.uniform(0.2, 0.8))
            case 2:
                pred.append(hull_box(quad, gt[rng.integers(len(gt))]))
            case 3:
                pred.append(quad.copy())
            case 4:
                pred.append(quad + rng.normal(0, 3, (4, 2)))
            case 5:
                pred.append(np.roll(quad, rng.integers(4), axis=0)[:: rng.choice([1, -1])])
            case 6:
                pred.append(random_quad(rng, size))
    rng.shuffle(pred)
    return pred


def degenerate(rng, polygons, size):
    """Replaces some quads: bow-tie, point, line, triangle, four random points, a vertex in the middle of a side."""
    shapes = ([0, 2, 1, 3], [0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 2, 2])
    for i, quad in enumerate(polygons):
        draw = rng.random()
        if draw < 0.10:
            polygons[i] = quad[shapes[rng.integers(4)]]
        elif draw < 0.13:
            polygons[i] = rng.uniform(0, size, (4, 2))
        elif draw < 0.15:
            polygons[i] = np.array([quad[0], (quad[0] + quad[1]) / 2, quad[1], quad[2]])


def random_page(seed, odd=True):
    """(pred, gt, texts, ignore) with everything the reference has a branch for."""
    rng = np.random.default_rng(seed)
    size = rng.choice([30, 80, 200, 600])
    gt = [random_quad(rng, size) for _ in range(rng.integers(0, 20))]
    pred = detect(rng, gt, size)
    if odd:
        degenerate(rng, gt, size)
        degenerate(rng, pred, size)
    kinds = (lambda p: p, np.rint, lambda p: p.astype(np.float32), lambda p: np.rint(p).astype(np.int32))
    kind = kinds[rng.integers(4)]
    texts = ["###" if rng.random() < 0.15 else "a" * int(rng.integers(0, 20)) for _ in gt]
    ignore = None if rng.random() < 0.5 else [bool(rng.random() < 0.2) for _ in gt]
    return [kind(p) for p in pred], [kind(p) for p in gt], texts, ignore


@pytest.mark.parametrize("block", range(5))
def test_equals_the_package_on_500_random_pages(block):
    seen = dict.fromkeys(COUNTS, 0)
    for seed in range(100 * block, 100 * block + 100):
        page = random_page(seed)
        counts, hmean = package(*page)
        result = evaluate_page(*page)
        assert result.counts == counts, f"seed {seed}"
        assert result.hmean == pytest.approx(hmean, abs=1e-15)
        seen = {name: seen[name] + counts[name] for name in COUNTS}
    assert min(seen.values()) > 20, f"the pages do not reach every count: {seen}"


coordinate = st.integers(0, 30)
quads = st.lists(st.lists(st.tuples(coordinate, coordinate), min_size=4, max_size=4), max_size=6)


def boxes_of(corners):
    """Axis-parallel boxes from two corners, the shape with most ties: shared sides, equal areas."""
    (x0, y0), (x1, y1) = corners[0], corners[2]
    return rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))


@settings(derandomize=True, max_examples=250, deadline=None)
@given(quads, quads, st.integers(0, 2**31), st.booleans())
def test_equals_the_package_on_boxes_with_ties(pred, gt, seed, dont_care):
    rng = np.random.default_rng(seed)
    pred, gt = [boxes_of(p) for p in pred], [boxes_of(p) for p in gt]
    texts = ["x" * int(rng.integers(0, 7)) for _ in gt]
    ignore = [dont_care and bool(rng.random() < 0.4) for _ in gt]
    assert evaluate_page(pred, gt, texts, ignore).counts == package(pred, gt, texts, ignore)[0]


def ribbon(rng, quad, sections):
    """A polygon of 2 (sections + 1) vertices along a quad: upper line forward, lower line back."""
    t = np.linspace(0, 1, sections + 1)[:, None]
    wave = np.stack([np.zeros(sections + 1), rng.uniform(-0.1, 0.1) * np.ptp(quad[:, 1]) * np.sin(3 * t[:, 0])], 1)
    upper = quad[0] + t * (quad[1] - quad[0]) + wave
    return np.concatenate([upper, (quad[3] + t * (quad[2] - quad[3]) + wave)[::-1]])


def polygon_page(seed):
    """As random_page, with ribbons, some of an odd number of vertices, and at least one page-wide POLY."""
    pred, gt, texts, ignore = random_page(seed, odd=False)
    rng = np.random.default_rng(seed)
    gt, pred = ([ribbon(rng, p.astype(float), int(rng.integers(2, 7))) for p in side] for side in (gt, pred))
    return [p[:-1] if rng.random() < 0.1 else p for p in pred], gt, texts, ignore


def test_polygons_equal_the_package():
    for seed in range(60):
        page = polygon_page(seed)
        if page[0] or page[1]:
            assert evaluate_page(*page).counts == package(*page, box=PackagePolygon)[0], f"seed {seed}"


def test_triangles_equal_the_package():
    pred = [np.array([[0.0, 0], [40, 0], [40, 20]])]
    gt = [np.array([[0.0, 0], [40, 0], [38, 20]]), rectangle(50, 0, 40, 10)]
    assert evaluate_page(pred, gt, ["abcd", "xy"]).counts == package(pred, gt, ["abcd", "xy"], box=PackagePolygon)[0]


def fused(a, b, c):
    return float(Fraction(a) * Fraction(b) + Fraction(c))


def slow_aspect(points):
    """Height over width, where the width runs along the hull side of the least rectangle; the first one in a tie.

    Turned rectangles and triangles tie up to the last bit, so the projections are rounded as a fused dot product.
    """
    try:
        hull = [points[i].tolist() for i in ConvexHull(np.float32(points)).vertices]
    except QhullError:
        return 0.0
    best = None
    for i, (x0, y0) in enumerate(hull):
        x1, y1 = hull[(i + 1) % len(hull)]
        norm = math.sqrt((x1 - x0) ** 2 + (y1 - y0) ** 2)
        ux, uy = (x1 - x0) / norm, (y1 - y0) / norm
        along = [fused(uy, y, ux * x) for x, y in hull]
        across = [fused(ux, y, -uy * x) for x, y in hull]
        width, height = max(along) - min(along), max(across) - min(across)
        if best is None or width * height < best[0]:
            best = (width * height, width, height)
    return min(100.0, best[2] / (best[1] + 2**-23))


def slow_centres(polygon, length):
    half = len(polygon) // 2
    centres = []
    lines = []
    for line in (polygon[:half], polygon[half:][::-1]):
        nodes = []
        for (x0, y0), (x1, y1) in list(pairwise(line))[: half - 1]:
            nodes.append((x0, y0))
            nodes += [(int(x0 + (x1 - x0) / length * k), int(y0 + (y1 - y0) / length * k)) for k in range(1, length)]
        lines.append([*nodes, tuple(line[-1])])
    step = (len(lines[0]) - 1) // length
    for k in range(length):
        corners = [line[i * step] for line in lines for i in (k, k + 1)]
        centres.append((sum(c[0] for c in corners) / 4, sum(c[1] for c in corners) / 4))
    return centres


def slow_holds(polygon, x, y):
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, 1, axis=0)):
        if (y0 <= y < y1 or y1 <= y < y0) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            odd = not odd
    return odd


def slow_overlap(a, b):
    """Area inside both by exact integration: between consecutive heights of vertices and crossings, sides are lines."""
    sides = [
        [(p, q) for p, q in zip(polygon.tolist(), np.roll(polygon, -1, axis=0).tolist()) if p[1] != q[1]]
        for polygon in (a, b)
    ]
    heights = {p[1] for side in sides for s in side for p in s}
    both = sides[0] + sides[1]
    for i, (p, q) in enumerate(both):
        for r, s in both[:i]:
            d = (q[0] - p[0]) * (s[1] - r[1]) - (q[1] - p[1]) * (s[0] - r[0])
            if d:
                t = ((r[0] - p[0]) * (s[1] - r[1]) - (r[1] - p[1]) * (s[0] - r[0])) / d
                heights.add(p[1] + t * (q[1] - p[1]))

    def covered(y):
        spans = []
        for side in sides:
            xs = sorted(p[0] + (q[0] - p[0]) * (y - p[1]) / (q[1] - p[1]) for p, q in side if (p[1] < y) != (q[1] < y))
            spans.append(list(zip(xs[::2], xs[1::2])))
        return sum(max(0.0, min(b1, b2) - max(a1, a2)) for a1, b1 in spans[0] for a2, b2 in spans[1])

    levels = sorted(heights)
    return sum((high - low) * covered((low + high) / 2) for low, high in pairwise(levels) if high - low > 1e-9)


def slow_contest(pred, gt):
    """COUNTS of a page without don't-cares."""
    pred = [np.trunc(p) for p in pred[:500] if len(p) >= 4]
    gt = [np.asarray(p, float) for p in gt if len(p) >= 4]
    shape = [np.trunc(p) for p in gt]

    def cap(value):
        return min(round(0.5 + value), 100)

    aspects = [slow_aspect(p) for p in gt]
    centres = [slow_centres(p, cap(max(a, 1 / (a + 2**-23)))) for p, a in zip(gt, aspects)]
    inside = [[[slow_holds(p, *c) for c in word] for p in pred] for word in centres]
    held = np.array([[sum(flags) for flags in row] for row in inside]).reshape(len(gt), len(pred))
    share = np.zeros(held.shape, np.float32)
    for j, p in enumerate(pred):
        area = abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(p, np.roll(p, -1, axis=0)))) / 2
        for i, q in enumerate(shape):
            share[i, j] = slow_overlap(q, p) / area if area else 0
    good = (share >= np.float32(0.3)) & (held > 0)
    match = np.zeros(good.shape, bool)
    for i, j in np.argwhere(good):
        match[i, j] = good[i].sum() > 1 or good[:, j].sum() == 1
    for j in range(len(pred)):
        rows = held[:, j] > 0
        if rows.sum() > 1 and share[rows, j].astype(float).sum() >= 0.3:
            match[rows, j] = True
    false = sum(cap(1 / (slow_aspect(p) + 2**-23)) for j, p in enumerate(pred) if not match[:, j].any())
    hits = sum(int(held[i, j]) for i, j in np.argwhere(match))
    hit = sum(
        any(inside[i][j][k] for j in np.flatnonzero(match[i])) for i, w in enumerate(centres) for k in range(len(w))
    )
    per_gt, per_pred = match.sum(1), match.sum(0)
    values = (1, sum(map(len, centres)), hits + false, false, hit, np.maximum(per_gt - 1, 0).sum())
    values += (np.maximum(per_pred - 1, 0).sum(), (per_gt > 1).sum(), (per_pred > 1).sum(), hits - hit)
    return dict(zip(COUNTS, map(int, values)))


def contest_page(seed):
    """Integer quads and ribbons, some degenerate, some with too few vertices."""
    pred, gt, _, _ = random_page(seed)
    rng = np.random.default_rng(seed)
    sides = []
    for side in (pred, gt):
        polygons = [ribbon(rng, p.astype(float), int(rng.integers(2, 5))) if rng.random() < 0.3 else p for p in side]
        sides.append([np.rint(p[:3] if rng.random() < 0.05 else p).astype(float) for p in polygons])
    return sides


def test_contest_equals_the_slow_version():
    seen = dict.fromkeys(COUNTS, 0)
    for seed in range(80):
        pred, gt = contest_page(seed)
        counts = evaluate_page(pred, gt, protocol="contest").counts
        assert counts == slow_contest(pred, gt), f"seed {seed}"
        seen = {name: seen[name] + counts[name] for name in COUNTS}
    assert min(seen.values()) > 10, f"the pages do not reach every count: {seen}"


def test_contest_cap_and_short_polygons():
    word = rectangle(0, 0, 120, 24)
    far = [rectangle(200 + 2 * i, 300, 1, 1) for i in range(500)]
    page = evaluate_page([*far, word], [word, word[:2]], protocol="contest")
    assert page.gt_status == ["missed", "skipped"]
    assert page.pred_status[-1] == "skipped"
    assert page.counts["chars_hit"] == 0
    assert evaluate_page([*far[1:], word], [word], protocol="contest").gt_status == ["matched"]


@pytest.mark.parametrize("protocol", ["official", "contest"])
def test_empty_sides(protocol):
    word = rectangle(0, 0, 120, 24)
    for pred, gt in (([], []), ([word], []), ([], [word])):
        page = evaluate_page(pred, gt, ["hello"] * len(gt), protocol=protocol)
        assert (page.recall, page.precision, page.hmean) == (0, 0, 0)
        if protocol == "official":
            assert page.counts == package(pred, gt, ["hello"] * len(gt))[0]
    assert CLEval(protocol).compute()["hmean_macro"] == 0


def test_statuses():
    gt = [rectangle(0, 40 * i, 120, 20) for i in range(6)]
    pred = [gt[0] + 1, *cut(gt[1], 0.5), hull_box(gt[2], gt[3]), gt[5] - 1, rectangle(400, 0, 50, 20)]
    page = evaluate_page(pred, gt, ["word"] * 6, [False] * 5 + [True])
    assert page.gt_status == ["matched", "split", "merged", "merged", "missed", "ignored"]
    assert page.pred_status == ["matched"] * 4 + ["dont_care", "false_positive"]
    assert page.counts["chars_hit"] == 16
    assert page.counts["penalty_recall"] == page.counts["penalty_precision"] == 1
    assert page.recall == 15 / 20
    assert page.precision == 15 / 17


def test_characters_of_each_text_and_detection_add_up_to_the_counts():
    for seed in range(60):
        pred, gt, texts, ignore = random_page(seed)
        contest = contest_page(seed)
        for page in (
            evaluate_page(pred, gt, texts, ignore, characters=True),
            evaluate_page(*contest, protocol="contest", characters=True),
        ):
            names = ("chars_gt", "chars_hit", "penalty_recall"), ("chars_pred", "chars_hit", "penalty_precision")
            for chars, status, keys in zip((page.gt_chars, page.pred_chars), (page.gt_status, page.pred_status), names):
                assert chars.shape == (len(status), 3) and chars.dtype == np.int64 and chars.min(initial=0) >= 0
                assert chars.sum(0).tolist() == [page.counts[key] for key in keys], f"seed {seed}"


def test_characters_by_hand():
    gt = [rectangle(0, 40 * i, 120, 20) for i in range(5)]
    pred = [gt[0] + 1, *cut(gt[1], 0.5), hull_box(gt[2], gt[3]), rectangle(400, 0, 50, 20)]
    page = evaluate_page(pred, gt, ["four"] * 5, characters=True)
    assert page.gt_chars.tolist() == [[4, 4, 0], [4, 4, 1], [4, 4, 0], [4, 4, 0], [4, 0, 0]]
    assert page.pred_chars.tolist() == [[4, 4, 0], [2, 2, 0], [2, 2, 0], [8, 8, 1], [1, 0, 0]]


def test_set_of_pages_micro_and_macro():
    """Micro from summed counts, macro from page scores, both by the package's numbers."""
    metric = CLEval("official")
    pages = [random_page(seed, odd=False) for seed in range(12)]
    reference = [package(*page) for page in pages]
    for page in pages:
        metric.add(evaluate_page(*page))
    total = {name: sum(counts[name] for counts, _ in reference) for name in COUNTS}
    recall = (total["chars_hit"] - total["penalty_recall"]) / total["chars_gt"]
    precision = (total["chars_hit"] - total["penalty_precision"]) / total["chars_pred"]
    result = metric.compute()
    assert {name: result[name] for name in COUNTS} == total
    assert result["hmean"] == pytest.approx(2 * recall * precision / (recall + precision), abs=1e-15)
    assert result["hmean_macro"] == pytest.approx(np.mean([hmean for _, hmean in reference]), abs=1e-14)
    assert 0.1 < result["hmean"] < 0.9


@pytest.mark.parametrize("protocol", ["official", "contest"])
def test_ranks_give_the_identical_result(protocol):
    pages = [random_page(seed) for seed in range(30)]
    results = []
    for world_size in (1, 2, 3):
        states = []
        for rank in range(world_size):
            metric = CLEval(protocol)
            for page in pages[rank::world_size][::-1]:
                metric.add(evaluate_page(*page, protocol=protocol))
            states.append(metric.state())
        assert all(state.dtype == np.float64 and state.shape == (16,) for state in states)
        results.append(CLEval.from_state(protocol, sum(states)).compute())
    assert results[0] == results[1] == results[2]
    assert results[0]["images"] == 30


def test_input_is_left_as_it_was():
    page = random_page(7)
    before = [[p.copy() for p in side] for side in page[:2]]
    evaluate_page(*page)
    assert all((p == q).all() for side, copy in zip(page[:2], before) for p, q in zip(side, copy))


def test_refusals():
    word = rectangle(0, 0, 120, 24)
    with pytest.raises(UserError, match="needs transcriptions"):
        evaluate_page([word], [word])
    assert evaluate_page([word], [word], None, [True]).pred_status == ["dont_care"]
    with pytest.raises(UserError, match=r"eval\.protocol=iou"):
        CLEval("iou")
    with pytest.raises(ValueError, match=r"pred\[1\].*finite"):
        evaluate_page([word, word * np.nan], [word], ["a"])
    with pytest.raises(ValueError, match=r"gt\[0\].*\(8,\)"):
        evaluate_page([], [word.reshape(-1)], ["a"])
    with pytest.raises(ValueError, match=r"pred\[0\].*at least 3"):
        evaluate_page([word[:2]], [word], ["a"])
    with pytest.raises(ValueError, match="texts: 2 values for 1"):
        evaluate_page([], [word], ["a", "b"])
    with pytest.raises(ValueError, match="ignore: 0 values for 1"):
        evaluate_page([], [word], ["a"], [])
    with pytest.raises(ValueError, match="whole numbers"):
        CLEval.from_state("official", np.zeros(3))
    with pytest.raises(ValueError, match="whole numbers"):
        CLEval.from_state("official", np.full(16, 0.5))
