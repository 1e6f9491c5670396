"""kernels.components.geometry: the kernels from the table to the quads against the reference, OpenCV and clipper."""

import cv2
import numpy as np
import pyclipper
import pytest
import torch
from component_tables import EVERYTHING, RULES, blank_table, fill, find
from no_sync import no_sync

from bench.peers.classic_postprocess import text_like_map
from kernels import runtime
from kernels.components import QuadRules, Quads, find_quads_reference, geometry, reference
from kernels.components.table import Table
from tests.conftest import DEVICE


def table_of(prob: torch.Tensor, rules: QuadRules, capacity: int = 0) -> Table:
    """The table of (N, H, W) float32 or float64 maps, by way of the reference; by default hardly larger than needed."""
    pages, height, width = prob.shape
    found, overflow = reference._components(prob, rules.bin_thresh, rules.min_size_px, rules.connectivity)
    spans = found.spans
    first = (spans.row - found.page[spans.owner]) * width + spans.left
    sums = reference.interval_sums(prob, first, spans.right - spans.left + 1)
    mass = torch.zeros_like(found.area).scatter_add_(0, spans.owner, sums)
    table = blank_table(pages, capacity or int(torch.bincount(found.page, minlength=1).max()) + 3, height, width)
    table.overflow.copy_(overflow)
    extremes = torch.stack([torch.full_like(spans.row, width), torch.full_like(spans.row, -1)])
    place = (spans.height.cumsum(0) - spans.height - spans.top)[spans.owner] + spans.row
    left = extremes[0].scatter_reduce(0, place, spans.left, "amin")
    right = extremes[1].scatter_reduce(0, place, spans.right, "amax")
    free, begin = [0] * pages, 0
    for k, (page, rows) in enumerate(zip(found.page.tolist(), spans.height.tolist(), strict=True)):
        inside, begin = slice(begin, begin + rows), begin + rows
        top = int(spans.top[k]) - page * (height + 1)
        component = (top, left[inside], right[inside], int(found.area[k]), int(mass[k]))
        free[page] = fill(table, page, component, width, free[page])
    return table


def check(prob: torch.Tensor, rules: QuadRules, capacity: int = 0) -> Quads:
    """Kernels against reference: quads up to the last place of float32, the rest exactly."""
    exact = prob if prob.dtype in (torch.float32, torch.float64) else prob.float()
    expected = find_quads_reference(exact.contiguous(), rules)
    found = find(table_of(exact.contiguous(), rules, capacity), prob, rules)
    same(found, expected)
    return found


def same(found: Quads, expected: Quads) -> None:
    """Asserts it."""
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.overflow.tolist() == expected.overflow.tolist()
    assert torch.equal(found.scores, expected.scores)
    torch.testing.assert_close(found.quads, expected.quads, rtol=1.2e-7, atol=1e-9)


def text_pages(pages: int, angle: float, height: int = 96, width: int = 128) -> torch.Tensor:
    """(N, H, W) float32 maps with a few lines of text."""
    return torch.from_numpy(np.stack([text_like_map(k, height, width, 8, angle) for k in range(pages)]))


def drawn(seed: int, height: int = 72, width: int = 88) -> np.ndarray:
    """(H, W) bool: lines, triangles, rotated boxes, discs, dots; a cell of 22 x 24 each."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for k, (y, x) in enumerate(np.ndindex(height // 24, width // 22)):
        cell = mask[24 * y + 1 : 24 * y + 23, 22 * x + 1 : 22 * x + 21]
        points = rng.integers(0, 20, (3, 2)).astype(np.int32)
        if k % 6 == 0:
            cv2.line(cell, points[0].tolist(), points[1].tolist(), 1)
        elif k % 6 == 1:
            cv2.fillPoly(cell, [points], 1)
        elif k % 6 == 2:
            box = cv2.boxPoints(((10, 11), tuple(rng.uniform(2, 14, 2)), rng.uniform(0, 90)))
            cv2.fillPoly(cell, [box.astype(np.int32)], 1)
        elif k % 6 == 3:
            cv2.circle(cell, (10, 11), int(rng.integers(1, 9)), 1, -1)
        elif k % 6 == 4:
            cell[3, 2:17] = cell[6:20, 5] = cell[10, 12] = 1
        else:
            np.fill_diagonal(cell[:, :: 1 - 2 * (k % 2)], 1)
    return mask.astype(bool)


def with_values(mask: np.ndarray, seed: int = 0) -> torch.Tensor:
    """Probabilities above 0.5 on a mask, below elsewhere."""
    noise = np.random.default_rng(seed).random(mask.shape, np.float32) / 2
    return torch.from_numpy(np.where(mask, 1 - noise * 0.99, noise).astype(np.float32))


@pytest.mark.parametrize("score_mode", ["fast", "slow"])
@pytest.mark.parametrize(("angle", "connectivity"), [(0.0, 8), (4.0, 4), (45.0, 8)])
def test_text_equals_the_reference(angle, connectivity, score_mode):
    rules = RULES._replace(box_thresh=0.2, connectivity=connectivity, score_mode=score_mode)
    assert check(text_pages(2, angle), rules).counts.min() > 1


@pytest.mark.parametrize(("min_size_px", "score_mode"), [(0.0, "fast"), (2.0, "slow"), (3.0, "fast")])
def test_shapes_equal_the_reference(min_size_px, score_mode):
    prob = with_values(np.stack([drawn(int(min_size_px)), drawn(9)]))
    found = check(prob, EVERYTHING._replace(min_size_px=min_size_px, score_mode=score_mode))
    assert found.counts.min() >= (10 if min_size_px == 0 else 4)


@pytest.mark.parametrize("connectivity", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_noise_equals_the_reference(connectivity):
    mask = np.random.default_rng(connectivity).random((2, 18, 24)) < 0.35
    found = check(with_values(mask), EVERYTHING._replace(connectivity=connectivity, unclip_ratio=0.7))
    assert found.counts.min() > 5


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 13), (2, 1, 40), (3, 40, 1), (1, 130, 270)])
def test_full_pages_are_their_own_rectangles(shape):
    found = check(torch.ones(shape), EVERYTHING._replace(unclip_ratio=0.0))
    _, height, width = shape
    corners = torch.tensor([[0.0, 0], [width, 0], [width, height], [0, height]])
    assert torch.equal(found.quads[-1, 0], corners) and found.scores[-1, 0] == 1


def test_one_row_or_column_is_as_long_as_its_pixels():
    prob = torch.zeros(1, 30, 40)
    prob[0, 2, 3:20] = prob[0, 5:29, 31] = prob[0, 9, 9] = 1.0
    found = check(prob, EVERYTHING._replace(unclip_ratio=0.0))
    assert found.quads[0, :3, 0].tolist() == [[3, 2], [31, 5], [9, 9]]
    assert found.quads[0, :3, 2].tolist() == [[20, 3], [32, 29], [10, 10]]


def test_unclip_equals_clippers_round_offset():
    prob = torch.from_numpy(np.stack([text_like_map(k, 96, 128, 8, 45.0) for k in range(3, 6)]))
    before, after = (check(prob, RULES._replace(unclip_ratio=ratio, min_unclipped_px=0.0)) for ratio in (0.0, 1.5))
    assert before.counts.tolist() == after.counts.tolist() and before.counts.sum() > 8
    for page, count in enumerate(before.counts.tolist()):
        for quad, grown in zip(before.quads[page, :count].numpy(), after.quads[page, :count].numpy(), strict=True):
            w, h = np.linalg.norm(quad[1:3] - quad[:2], axis=1)
            clipper = pyclipper.PyclipperOffset(arc_tolerance=1.0)
            path = np.rint((quad - quad.mean(0)) * 1000).astype(np.int64).tolist()
            clipper.AddPath(path, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
            (offset,) = clipper.Execute(1000 * w * h * 1.5 / (2 * (w + h)))
            _, size, _ = cv2.minAreaRect(np.array(offset, np.float32) / 1000)
            sides = np.linalg.norm(grown[1:3] - grown[:2], axis=1)
            np.testing.assert_allclose(sorted(sides), sorted(size), atol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_equal_the_reference(dtype):
    prob = (text_pages(1, 4.0).double() + 1e-9).to(dtype)
    for score_mode in ("fast", "slow"):
        assert check(prob, RULES._replace(score_mode=score_mode)).counts.item() > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_odd_probabilities_count_as_the_reference_counts_them(dtype):
    prob = text_pages(1, 4.0)
    at = torch.randint(0, prob.numel(), (1500,), generator=torch.Generator().manual_seed(0))
    values = [float("nan"), float("inf"), -float("inf"), -3.0, 1.5, -0.0, 1e-30, 1 - 2**-24]
    prob.view(-1)[at] = torch.tensor(values).repeat(188)[:1500]
    rules = RULES._replace(box_thresh=0.1, connectivity=4)
    assert check(prob.to(dtype), rules).counts.item() > 2
    nothing = torch.full((1, 20, 40), float("nan"))
    assert check(nothing, EVERYTHING).counts.item() == 0


def test_best_scores_survive_the_cap_and_equal_ones_keep_raster_order():
    prob = torch.zeros(2, 72, 30)
    for k, level in enumerate([0.6, 0.9, 0.7, 0.9, 0.5, 0.7]):
        prob[1, 12 * k + 2 : 12 * k + 10, 4:26] = level
    for score_mode in ("fast", "slow"):
        rules = RULES._replace(max_candidates=3, score_mode=score_mode)
        found = check(prob, rules)
        assert found.counts.tolist() == [0, 3]
        assert (found.quads[1, :, :, 1].mean(1) // 12).tolist() == [1, 3, 2]
        assert check(prob, rules._replace(max_candidates=6)).counts.tolist() == [0, 6]
        assert check(prob, rules._replace(max_candidates=9, box_thresh=0.65)).counts.tolist() == [0, 4]
        # 0.7 itself is less than the threshold 0.7 in float64; as float32 it would pass.
        assert check(prob, rules._replace(box_thresh=0.7)).counts.tolist() == [0, 2]


def test_sizes_are_judged_before_and_after_unclipping():
    prob = torch.zeros(1, 50, 100)
    for y, thickness in ((5, 2), (15, 3), (30, 6)):
        prob[0, y : y + thickness, 10:90] = 1.0
    for limits, expected in (((3.0, 5.0), 2), ((2.0, 5.0), 2), ((2.0, 4.8), 3), ((6.1, 0.0), 0)):
        for score_mode in ("fast", "slow"):
            rules = RULES._replace(min_size_px=limits[0], min_unclipped_px=limits[1], score_mode=score_mode)
            assert check(prob, rules).counts.item() == expected


def test_ranking_of_a_full_table_equals_a_stable_sort():
    rng = np.random.default_rng(4)
    pages, capacity, most = 2, 1100, 500
    count = [1100, 130]
    score = torch.from_numpy(rng.integers(-40, 200, (pages, capacity)).clip(-1).astype(np.float32) / 200)
    score[score < 0] = -1.0
    corners = torch.from_numpy(rng.random((pages, capacity, 8), np.float32))
    table = blank_table(pages, 1, 1, 1)._replace(
        counts=torch.tensor(count, dtype=torch.int32), overflow=torch.tensor([1, 0], dtype=torch.int32)
    )
    table = Table(*(t.to(DEVICE) for t in table))
    found = Quads(*(t.cpu() for t in geometry._ranked(table, corners.to(DEVICE), score.to(DEVICE), most)))
    assert found.overflow.tolist() == [True, False]
    for page in range(pages):
        order = torch.argsort(-score[page, : count[page]], stable=True)
        order = order[: min(int((score[page, : count[page]] >= 0).sum()), most)]
        assert found.counts[page] == len(order)
        assert torch.equal(found.scores[page, : len(order)], score[page, order])
        assert torch.equal(found.quads[page, : len(order)].view(-1, 8), corners[page, order])
        assert not found.scores[page, len(order) :].any() and not found.quads[page, len(order) :].any()


def test_the_number_of_programs_changes_nothing(monkeypatch):
    prob = text_pages(1, 20.0)
    table = table_of(prob, RULES, capacity=4096)
    found = []
    for programs in (1, 3):
        monkeypatch.setattr(runtime, "INTERPRETED_PROGRAMS", programs)
        found.append(find(table, prob, RULES))
    assert found[0].counts.item() > 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    same(found[0], find_quads_reference(prob, RULES))


@pytest.mark.parametrize(
    ("score_mode", "kernels"),
    [("fast", ["_boxes_kernel", "_means_kernel", "_rank_kernel"]), ("slow", ["_boxes_kernel", "_rank_kernel"])],
)
def test_the_host_never_waits_and_sizes_come_from_shapes(monkeypatch, score_mode, kernels):
    started = []
    monkeypatch.setattr(runtime, "launch", lambda kernel, grid, *args, **constants: started.append(kernel.__name__))
    table = Table(*(t.to("meta") for t in blank_table(3, 4096, 64, 96)))  # nothing can be read from such tensors
    with no_sync():
        rules = RULES._replace(score_mode=score_mode, max_candidates=7)
        found = geometry.find_quads_on_device(table, torch.empty(3, 64, 96, device="meta"), rules)
    assert started == kernels
    assert found.quads.shape == (3, 7, 4, 2) and found.quads.device.type == "meta"


def test_no_pages():
    found = find(blank_table(0, 4096, 8, 8), torch.zeros(0, 8, 8), RULES)
    assert found.quads.shape == (0, 500, 4, 2) and found.counts.shape == (0,)
