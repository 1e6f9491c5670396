import cv2
import numpy as np
import pytest
import torch
from component_tables import EVERYTHING, blank_table, fill, find

from kernels.components.rectangles import Spans, convex_hulls, smallest_rectangles


def test_rectangles_of_digital_lines_and_random_rows_are_exact():
    """Hundreds of rows, more edges than lanes, slopes that differ little, a component as tall as the page."""
    rng = np.random.default_rng(0)
    height, width = 300, 4000
    row = np.arange(height)
    middle, reach = 1000.37 + 0.5 * row, 500 * np.sqrt(1 - ((row - 149.3) / 151) ** 2)
    sides = [
        (row * 3571 // 977, row * 3571 // 977),
        (row * 2584 // 987, row * 2584 // 987 + row // 7),
        (np.ceil(middle - reach).astype(int), np.floor(middle + reach).astype(int)),
        tuple(np.sort(rng.integers(0, width, (2, height)), 0)),
    ]
    hulls = convex_hulls(spans_of(sides), width)
    expected = smallest_rectangles(hulls)
    ellipse = slice(hulls.begin[2], hulls.end[2])
    dx, dy = hulls.x[ellipse].diff(), hulls.y[ellipse].diff()
    (ux, uy), length = expected.axis[2], torch.hypot(dx.double(), dy.double())
    flush = torch.minimum((dx * uy - dy * ux).abs(), (dx * ux + dy * uy).abs()) < 1e-9 * length
    assert flush.nonzero()[0] > 32, "the second round of lanes has the best edge"
    table = blank_table(1, 5, height, width)
    free = 0
    for left, right in sides:
        free = fill(table, 0, (0, torch.from_numpy(left), torch.from_numpy(right), 0, 1), width, free)
    rules = EVERYTHING._replace(max_candidates=5, unclip_ratio=0.0)
    found = find(table, torch.ones(1, height, width), rules)  # equal scores: their order; area 0: not grown
    assert found.counts.item() == 4
    torch.testing.assert_close(found.quads[0, :4], expected.corners().float() + 0.5, rtol=2e-7, atol=2e-7)


def spans_of(sides: list[tuple[np.ndarray, np.ndarray]]) -> Spans:
    """The runs of components from row 0 on, given by their first and last columns."""
    rows = [len(left) for left, _ in sides]
    owner = torch.repeat_interleave(torch.tensor(rows))
    left, right = (torch.from_numpy(np.concatenate(part)) for part in zip(*sides, strict=True))
    row = torch.cat([torch.arange(n) for n in rows])
    return Spans(torch.zeros(len(rows), dtype=torch.int64), torch.tensor(rows), owner, row, left, right)


def test_rectangles_are_as_small_as_opencvs():
    rng = np.random.default_rng(2)
    width, height = 200, 40
    sides = [np.sort(rng.integers(20 * k % 100, 20 * k % 100 + 90, (2, rng.integers(2, 40))), 0) for k in range(40)]
    table = blank_table(1, 40, 40 * height, width)
    free = 0
    for left, right in sides:
        free = fill(table, 0, (0, torch.from_numpy(left), torch.from_numpy(right), 0, 0), width, free)
    rules = EVERYTHING._replace(unclip_ratio=0.0, max_candidates=40)
    found = find(table, torch.zeros(1, height, width), rules)  # area 0: not grown; equal scores: their order
    assert found.counts.item() == 40
    for quad, (left, right) in zip(found.quads[0].numpy(), sides, strict=True):
        row = np.arange(len(left))
        points = np.stack([np.concatenate([left, right]), np.concatenate([row, row])], 1).astype(np.float32)
        _, size, _ = cv2.minAreaRect(points)
        area = np.prod(np.linalg.norm(quad[1:3] - quad[:2], axis=1))
        assert area == pytest.approx(size[0] * size[1], rel=1e-3, abs=1e-2)
        edge = np.roll(quad, -1, 0) - quad
        away = points[:, None] + 0.5 - quad[None]
        assert np.all(edge[:, 0] * away[..., 1] - edge[:, 1] * away[..., 0] > -1e-2), "every pixel is inside"
