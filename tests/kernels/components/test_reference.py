"""kernels.components: labels, hulls, rectangles, unclipping, scores and ranking against independent implementations."""

import cv2
import numpy as np
import pyclipper
import pytest
import scipy.ndimage
import scipy.sparse
import shapely
import torch

from bench.peers.classic_postprocess import classic_quads, text_like_map
from kernels import runtime
from kernels.components import MAX_COMPONENTS, QuadRules, find_quads, find_quads_reference, label
from kernels.components.rectangles import Rectangles, Spans, convex_hulls, smallest_rectangles, unclip_distance
from kernels.components.reference import FIXED_POINT, interval_sums
from kernels.components.runs import unite

EVERYTHING = {"bin_thresh": 0.5, "box_thresh": 0.0, "unclip_ratio": 0.0, "min_size_px": 0.0, "min_unclipped_px": 0.0}


def spiral(height: int, width: int) -> np.ndarray:
    """One path of single pixels with single empty pixels between its turns."""
    mask = np.zeros((height, width), bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for _ in range(4 * (height + width)):
        ahead = [(y + k * dy, x + k * dx) for k in (1, 2)]
        inside = [0 <= v < height and 0 <= u < width for v, u in ahead]
        if not inside[0] or mask[ahead[0]] or (inside[1] and mask[ahead[1]]):
            dy, dx = dx, -dy
            continue
        steps = 0
        while True:
            ahead = [(y + k * dy, x + k * dx) for k in (1, 2)]
            inside = [0 <= v < height and 0 <= u < width for v, u in ahead]
            if not inside[0] or (inside[1] and mask[ahead[1]]):
                break
            (y, x), steps = ahead[0], steps + 1
            mask[y, x] = True
        dy, dx = dx, -dy
        if not steps:
            break
    return mask


def awkward_masks(height: int, width: int) -> np.ndarray:
    """(10, height, width) bool shapes that are hard for union-find or for packed rows."""
    y, x = np.mgrid[:height, :width]
    comb = x % 2 == 0
    teeth = (x % 2 == 0) & (y >= (x * 7919) % height)
    shapes = [
        (x + y) % 2 == 0,
        spiral(height, width),
        comb | (y == height - 1),
        comb | (y == 0),
        (y % 2 == 0) | (x == width - 1),
        teeth | (y == height - 1),
        np.minimum(x, y) % 2 == 0,
        (x - y) % 3 == 0,
        np.ones((height, width), bool),
        np.zeros((height, width), bool),
    ]
    return np.stack(shapes)


def components_of(mask: np.ndarray, connectivity: int = 8) -> list[np.ndarray]:
    """(n, 2) x, y pixels of every component, in raster order of their first pixels."""
    numbers, count = scipy.ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
    return [np.argwhere(numbers == k)[:, ::-1] for k in range(1, count + 1)]


def spans_of(components: list[np.ndarray]) -> Spans:
    """Every pixel as a run of its own."""
    owner = np.repeat(np.arange(len(components)), [len(c) for c in components])
    pixels = torch.from_numpy(np.concatenate(components))
    top = torch.tensor([int(c[:, 1].min()) for c in components])
    height = torch.tensor([int(np.ptp(c[:, 1])) + 1 for c in components])
    return Spans(top, height, torch.from_numpy(owner), pixels[:, 1], pixels[:, 0], pixels[:, 0])


def blobs(seed: int, size: int = 96, share: float = 0.3) -> np.ndarray:
    """(size, size) bool smooth random shapes."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((size, size)), (0, 0), 2.0)
    return noise > np.quantile(noise, 1 - share)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_labels_equal_scipy_on_2000_masks(connectivity):
    rng = np.random.default_rng(connectivity)
    checked = 0
    while checked < 2000:
        pages, height, width = rng.integers(1, 9), rng.integers(1, 40), rng.integers(1, 40)
        masks = rng.random((pages, height, width)) < rng.uniform(0, 1, (pages, 1, 1))
        if checked % 5 == 0:
            masks = awkward_masks(height, width)
        numbers = label(torch.from_numpy(masks), connectivity)
        assert numbers.dtype == torch.int32
        for mask, found in zip(masks, numbers.numpy(), strict=True):
            expected, _ = scipy.ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)
            np.testing.assert_array_equal(found, expected)
        checked += len(masks)


def test_labels_of_a_large_spiral_and_comb():
    masks = awkward_masks(257, 331)
    for mask, found in zip(masks, label(torch.from_numpy(masks), 4).numpy(), strict=True):
        np.testing.assert_array_equal(found, scipy.ndimage.label(mask)[0])


def test_unite_equals_scipy_on_random_graphs_and_shuffled_chains():
    rng = np.random.default_rng(0)
    for num, links in ((1, 0), (50, 20), (500, 400), (3000, 2900)):
        a, b = rng.integers(0, num, (2, links))
        check_partition(num, a, b)
    order = rng.permutation(4000)
    check_partition(4000, order[:-1], order[1:])


def check_partition(num: int, a: np.ndarray, b: np.ndarray) -> None:
    """Compares with scipy.sparse.csgraph, and the representative with the least member."""
    graph = scipy.sparse.coo_array((np.ones(len(a)), (a, b)), (num, num))
    _, expected = scipy.sparse.csgraph.connected_components(graph, directed=False)
    least = np.full(num, num)
    np.minimum.at(least, expected, np.arange(num))
    np.testing.assert_array_equal(unite(num, torch.from_numpy(a), torch.from_numpy(b)).numpy(), least[expected])


@pytest.mark.parametrize("seed", range(4))
def test_hulls_have_shapelys_vertices(seed):
    rng = np.random.default_rng(seed)
    masks = [blobs(seed), rng.random((40, 60)) < 0.4, awkward_masks(30, 41)[seed + 1]]
    components = [c + (0, 100 * k) for k, mask in enumerate(masks) for c in components_of(mask)]
    hulls = convex_hulls(spans_of(components), 96)
    for k, component in enumerate(components):
        inside = slice(hulls.begin[k], hulls.end[k])
        found = torch.stack([hulls.x[inside], hulls.y[inside]], 1).numpy()
        hull = shapely.MultiPoint(component).convex_hull
        line = hull.exterior if isinstance(hull, shapely.Polygon) else hull
        corners = shapely.get_coordinates(line)
        if len(corners) > 2:  # shapely keeps corners whose neighbours are in line with them
            polygon = shapely.get_coordinates(shapely.simplify(hull, 0))
            corners = polygon if len(polygon) > 2 else corners
        assert {tuple(p) for p in found} >= {tuple(p) for p in corners.astype(int)}
        if isinstance(hull, shapely.Polygon):
            assert shapely.Polygon(found).area == hull.area
            edge = np.roll(found, -1, 0) - found
            edge = edge[edge.any(1)]  # the ends of a row may be one pixel
            after = np.roll(edge, -1, 0)
            assert np.all(edge[:, 0] * after[:, 1] > edge[:, 1] * after[:, 0]), (
                "clockwise on the screen, strictly convex"
            )


@pytest.mark.parametrize("seed", range(4))
def test_rectangles_are_as_small_as_opencvs(seed):
    rng = np.random.default_rng(seed)
    masks = [blobs(seed), rng.random((60, 80)) < 0.35, spiral(31, 44), blobs(seed + 9, share=0.1)]
    components = [c + (0, 100 * k) for k, mask in enumerate(masks) for c in components_of(mask)]
    box = smallest_rectangles(convex_hulls(spans_of(components), 96))
    corners = box.grow(torch.full((len(components),), 1e-6)).corners().numpy()
    for component, corner, half in zip(components, corners, box.half.numpy(), strict=True):
        _, size, _ = cv2.minAreaRect(component.astype(np.float32))
        assert 4 * half.prod() == pytest.approx(size[0] * size[1], rel=1e-3, abs=1e-3)
        assert shapely.Polygon(corner).buffer(1e-5).covers(shapely.MultiPoint(component))


def test_unclip_equals_clippers_round_offset():
    rng = np.random.default_rng(0)
    half = torch.from_numpy(rng.uniform(1.5, 150, (60, 2)))
    angle = torch.from_numpy(rng.uniform(-np.pi / 4, np.pi / 4, 60))
    axis = torch.stack([angle.cos(), angle.sin()], 1)
    box = Rectangles(torch.from_numpy(rng.uniform(0, 1280, (60, 2))), axis, half)
    wide = box.grow(unclip_distance(box, 1.5))
    for before, distance, after in zip(
        box.corners().numpy(), unclip_distance(box, 1.5), wide.half.numpy(), strict=True
    ):
        centre = before.mean(0)
        clipper = pyclipper.PyclipperOffset(arc_tolerance=1.0)
        path = np.rint((before - centre) * 1000).astype(np.int64).tolist()
        clipper.AddPath(path, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
        (grown,) = clipper.Execute(float(distance) * 1000)
        _, size, _ = cv2.minAreaRect(np.array(grown, np.float32) / 1000)
        np.testing.assert_allclose(sorted(size), sorted(2 * after), atol=0.01)


@pytest.mark.parametrize("max_angle", [0.0, 4.0, 45.0])
def test_whole_chain_agrees_with_the_classic_one(max_angle):
    overlaps, distances = [], []
    for seed in range(3):
        prob = text_like_map(seed, 512, 640, 40, max_angle)
        # Box scores differ (below), so the limit is where no region of these maps is near it.
        found = find_quads(torch.from_numpy(prob)[None], box_thresh=0.2)
        quads = found.quads[0, : found.counts[0]].numpy()
        expected, scores = classic_quads(prob, box_thresh=0.2, half_pixel=True, clipper_scale=1000)
        assert len(quads) == len(expected) > 10
        matrix = shapely.area(shapely.intersection(shapely.polygons(quads)[:, None], shapely.polygons(expected)[None]))
        partner = matrix.argmax(1)
        assert len(set(partner)) == len(quads)
        union = shapely.area(shapely.union(shapely.polygons(quads), shapely.polygons(expected[partner])))
        overlaps += list(matrix.max(1) / union)
        distances += list(np.abs(found.scores[0, : len(quads)].numpy() - scores[partner]))
    assert np.mean(overlaps) >= 0.995
    assert np.max(distances) < 0.12, "OpenCV's filled box truncates its corners to whole pixels and draws their outline"


def quad_of(mask: np.ndarray, **rules) -> np.ndarray:
    """(k, 4, 2) quads of one mask."""
    found = find_quads(torch.from_numpy(mask.astype(np.float32))[None], **{**EVERYTHING, **rules})
    return found.quads[0, : found.counts[0]].numpy()


@pytest.mark.parametrize(("w", "h"), [(1, 1), (7, 1), (1, 9), (2, 2), (30, 11), (64, 33)])
def test_a_block_of_pixels_is_its_own_rectangle(w, h):
    mask = np.zeros((40, 80), bool)
    mask[3 : 3 + h, 8 : 8 + w] = True
    (quad,) = quad_of(mask)
    np.testing.assert_allclose(quad, [[8, 3], [8 + w, 3], [8 + w, 3 + h], [8, 3 + h]], atol=1e-5)


@pytest.mark.parametrize(("angle", "least"), [(0.0, 0.92), (2.0, 0.96), (15.0, 0.98), (77.0, 0.98)])
def test_a_perfect_shrink_map_comes_back_as_the_text_box(angle, least):
    rng = np.random.default_rng(int(angle))
    overlaps = []
    for _ in range(40):
        w, h, centre = rng.uniform(60, 200), rng.uniform(16, 40), 128 + rng.uniform(0, 1, 2)
        distance = 0.84 * w * h / (2 * (w + h))
        a, b = w / 2 - distance, h / 2 - distance
        turn = np.radians(angle)
        u, v = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        y, x = np.mgrid[:256, :256] + 0.5
        offset = np.stack([x, y], -1) - centre
        core = (np.abs(offset @ u) <= a) & (np.abs(offset @ v) <= b)
        (quad,) = quad_of(core, unclip_ratio=distance * (a + b) / (2 * a * b) * 2)
        text = centre + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ np.stack([u * w / 2, v * h / 2])
        both = [shapely.Polygon(quad), shapely.Polygon(text)]
        overlaps.append(shapely.intersection(*both).area / shapely.union(*both).area)
    assert np.mean(overlaps) >= least


def test_corners_start_top_left_and_run_clockwise():
    mask = np.zeros((120, 120), np.uint8)
    for turn in range(-80, 100, 20):
        mask[:] = 0
        cv2.fillPoly(mask, [cv2.boxPoints(((60, 60), (70, 16), turn)).astype(np.int32)], 1)
        (quad,) = quad_of(mask)
        assert cv2.contourArea(quad, oriented=True) > 0
        assert abs(quad[1] - quad[0])[0] >= abs(quad[1] - quad[0])[1] - 1e-3
        assert quad[1][0] > quad[0][0] and quad[3][1] > quad[0][1]


def test_maps_without_structure():
    for shape in ((1, 1), (7, 13), (33, 8), (64, 64)):
        empty = find_quads(torch.zeros(2, *shape))
        assert empty.counts.tolist() == [0, 0] and not empty.quads.any() and not empty.overflow.any()
        full = find_quads(torch.ones(2, *shape), **EVERYTHING)
        assert full.counts.tolist() == [1, 1] and full.scores[:, 0].tolist() == [1.0, 1.0]
        corners = torch.tensor([[0.0, 0], [shape[1], 0], [shape[1], shape[0]], [0, shape[0]]])
        torch.testing.assert_close(full.quads[1, 0], corners)
    none = find_quads(torch.zeros(0, 32, 32))
    assert none.quads.shape == (0, 500, 4, 2) and none.counts.shape == (0,)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("score_mode", ["fast", "slow"])
def test_no_shape_raises_and_every_component_is_found(connectivity, score_mode):
    masks = awkward_masks(61, 73)
    probs = torch.from_numpy(masks.astype(np.float32))
    rules = {**EVERYTHING, "connectivity": connectivity, "score_mode": score_mode, "max_candidates": 5000}
    found = find_quads(probs, **rules)
    expected = [len(components_of(mask, connectivity)) for mask in masks]
    assert found.counts.tolist() == expected
    assert torch.isfinite(found.quads).all()
    if score_mode == "slow":
        assert all((found.scores[k, :n] == 1).all() for k, n in enumerate(expected))


def test_nan_is_no_text_and_infinity_counts_as_one():
    prob = torch.full((1, 20, 40), float("nan"))
    assert find_quads(prob, **EVERYTHING).counts.item() == 0
    prob[0, 5:15, 5:35] = 0.8
    clean = torch.where(prob.isnan(), 0.0, prob)
    for mode in ("fast", "slow"):
        with_nan, without = (find_quads(p, score_mode=mode) for p in (prob, clean))
        assert with_nan.counts.item() == 1 and torch.equal(with_nan.scores, without.scores)
        assert torch.equal(with_nan.quads, without.quads)
    prob[0, 5:15, 5:35] = float("inf")
    assert find_quads(prob).scores[0, 0] == 1


def test_scores_equal_sums_over_pixels():
    rng = np.random.default_rng(1)
    prob = np.where(blobs(5), 0.5 + 0.5 * rng.random((96, 96)), 0.3 * rng.random((96, 96))).astype(np.float32)
    rules = {**EVERYTHING, "bin_thresh": 0.4, "min_size_px": 3.0}
    y, x = np.mgrid[:96, :96] + 0.5
    components = components_of(prob > 0.4)
    for mode in ("fast", "slow"):
        found = find_quads(torch.from_numpy(prob)[None], score_mode=mode, **rules)
        assert found.counts.item() > 8
        assert (found.scores[0].diff()[: found.counts.item() - 1] <= 0).all()
        for quad, score in zip(
            found.quads[0, : found.counts.item()].double().numpy(), found.scores[0].numpy(), strict=False
        ):
            if mode == "fast":
                edges = np.roll(quad, -1, 0) - quad
                edges /= np.linalg.norm(edges, axis=1, keepdims=True)
                depth = [e[0] * (y - p[1]) - e[1] * (x - p[0]) for p, e in zip(quad, edges, strict=True)]
                inside = np.min(depth, axis=0) >= -1.1e-3
            else:
                held = [c for c in components if shapely.Polygon(quad).buffer(0.01).covers(shapely.MultiPoint(c + 0.5))]
                means = [prob[c[:, 1], c[:, 0]].mean() for c in held]
                assert any(m == pytest.approx(score, abs=1e-6) for m in means)
                continue
            assert prob[inside].mean() == pytest.approx(score, abs=1e-5)


def test_interval_sums_do_not_depend_on_their_way():
    prob = torch.rand(2, 30, 40, generator=torch.Generator().manual_seed(0))
    steps = (prob.double() * FIXED_POINT).long().view(-1)
    for num in (0, 5, 900):  # 900 intervals of up to 30 pixels are more than half of the map: the other way
        first = torch.randint(0, 2300, (num,), generator=torch.Generator().manual_seed(num))
        count = torch.randint(0, 30, (num,), generator=torch.Generator().manual_seed(num + 1))
        expected = [int(steps[f : f + c].sum()) for f, c in zip(first, count, strict=True)]
        assert interval_sums(prob, first, count).tolist() == expected


def test_best_scores_survive_the_cap_and_ties_keep_raster_order():
    prob = torch.zeros(1, 120, 60)
    levels = [0.6, 0.9, 0.7, 0.9, 0.5, 0.7]
    for k, level in enumerate(levels):
        prob[0, 20 * k + 4 : 20 * k + 14, 10:50] = level
    rows = {m: find_quads(prob, max_candidates=m).quads[0, :, :, 1].mean(1) // 20 for m in (3, 6, 9)}
    assert rows[3].tolist() == [1, 3, 2] and rows[6].tolist() == [1, 3, 2, 5, 0, 4]
    capped = find_quads(prob, max_candidates=3)
    assert capped.counts.item() == 3 and not capped.overflow.item() and capped.quads.shape == (1, 3, 4, 2)
    assert find_quads(prob, max_candidates=9).counts.item() == 6
    assert find_quads(prob, box_thresh=0.65).counts.item() == 4


def test_connectivity_joins_or_parts_diagonal_neighbours():
    prob = torch.zeros(1, 40, 40)
    prob[0, 5:15, 5:15] = prob[0, 15:25, 15:25] = 1.0
    assert find_quads(prob, connectivity=8).counts.item() == 1
    assert find_quads(prob, connectivity=4).counts.item() == 2


def test_text_in_a_frame_is_a_candidate_and_the_frames_hole_is_not():
    prob = torch.zeros(1, 80, 160)
    prob[0, 4:76, 4:156] = 0.9
    prob[0, 10:70, 10:150] = 0.0
    prob[0, 30:45, 40:120] = 0.8
    found = find_quads(prob, score_mode="slow")
    assert found.counts.item() == 2
    torch.testing.assert_close(found.scores[0, :2], torch.tensor([0.9, 0.8]))


def test_sizes_are_judged_before_and_after_growing():
    prob = torch.zeros(1, 60, 100)
    for y, thickness in ((5, 2), (15, 3), (30, 6)):
        prob[0, y : y + thickness, 10:90] = 1.0
    assert find_quads(prob, min_size_px=3.0).counts.item() == 2
    assert find_quads(prob, min_size_px=2.0).counts.item() == 2, "2 px grow by 1.46 px a side: less than 5"
    assert find_quads(prob, min_size_px=2.0, min_unclipped_px=4.8).counts.item() == 3
    assert find_quads(prob, min_size_px=6.1).counts.item() == 0


def test_layout_dtype_and_batch_change_nothing():
    probs = torch.from_numpy(np.stack([text_like_map(k, 200, 264, 14) for k in range(4)]))
    whole = find_quads(probs)
    assert whole.counts.min() > 2
    rules = QuadRules(0.3, 0.4, 1.5, 3.0, 5.0, 500, 8, "fast")
    together = find_quads_reference(probs, rules)  # all pages at once: components must not leak between them
    alone = [find_quads(probs[k : k + 1]) for k in range(4)]
    strided = find_quads(probs.transpose(1, 2).contiguous().transpose(1, 2))
    sliced = find_quads(torch.nn.functional.pad(probs, (5, 7, 3, 2))[:, 3:-2, 5:-7])
    for other in (together, strided, sliced, find_quads(probs.double())):
        assert torch.equal(other.quads, whole.quads) or torch.allclose(other.quads, whole.quads, atol=1e-4)
        assert torch.equal(other.counts, whole.counts) and torch.equal(other.scores, whole.scores)
    assert all(torch.equal(alone[k].quads[0], whole.quads[k]) for k in range(4))
    assert find_quads(probs.bfloat16()).counts.tolist() == pytest.approx(whole.counts.tolist(), abs=1)


def test_too_many_components_set_the_flag_of_their_page_only():
    prob = torch.zeros(2, 300, 700)
    prob[1, ::4, ::4] = prob[1, ::4, 1::4] = prob[1, 1::4, ::4] = prob[1, 1::4, 1::4] = 1.0
    prob[0, 10:30, 10:90] = 1.0
    found = find_quads(prob, **{**EVERYTHING, "max_candidates": 6000})
    assert found.overflow.tolist() == [False, True] and found.counts.tolist() == [1, MAX_COMPONENTS]
    assert found.quads[1, :MAX_COMPONENTS, :, 1].max() < 4 * (MAX_COMPONENTS / 175 + 1), (
        "the first in raster order stay"
    )
    small = find_quads(prob, **{**EVERYTHING, "min_size_px": 2.1})
    assert not small.overflow.any() and small.counts.tolist() == [1, 0], "too small ones take no room"


def test_wrong_arguments_are_named(monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRETED", False)
    prob = torch.zeros(1, 8, 8)
    for wrong, message in (
        ({"implementation": "triton"}, "needs tensors on a CUDA device"),
        ({"implementation": "cuda"}, "implementation"),
        ({"connectivity": 6}, "connectivity"),
        ({"score_mode": "mean"}, "score_mode"),
        ({"max_candidates": 0}, "max_candidates"),
        ({"unclip_ratio": float("nan")}, "unclip_ratio"),
        ({"min_size_px": -1.0}, "min_size_px"),
    ):
        with pytest.raises(ValueError, match=message):
            find_quads(prob, **wrong)
    for bad in (prob[0], prob.long(), prob[:, :0]):
        with pytest.raises(ValueError, match="prob_map"):
            find_quads(bad)
    for bad in (prob, prob[0].bool()):
        with pytest.raises(ValueError, match="mask"):
            label(bad)
