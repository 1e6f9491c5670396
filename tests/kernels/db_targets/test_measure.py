import random

import pytest
import torch
import triton
import triton.language as tl

from kernels import runtime
from kernels.db_targets import db_targets, kernel, reference
from kernels.db_targets.measure import extremes, span
from kernels.db_targets.measure import offset_distance as device_distance
from tests.conftest import DEVICE
from tests.kernels.db_targets.test_reference import blob, box, csr


@triton.jit
def _measured(points, offsets, ignore, out, num_points,
    SHRINK: tl.constexpr, MIN_SIZE: tl.constexpr, PAPER: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    polygon = tl.program_id(0)
    start, count = span(offsets, polygon, num_points)
    area, perimeter, _, _, _, _ = extremes(points, start, count, CHUNK)
    flag = tl.load(ignore + polygon).to(tl.int32)
    distance = device_distance(points, start, count, area, perimeter, flag, SHRINK, MIN_SIZE, PAPER, CHUNK)
    tl.store(out + polygon, distance)


@pytest.mark.parametrize("min_size", [None, 0.0, 2.0])
def test_measuring_decides_as_the_reference(min_size):
    """Points of a small lattice: edges that touch, overlap, end on each other; areas and extents on the threshold."""
    rng = random.Random(3)
    polygons = [[(rng.randrange(6), rng.randrange(6)) for _ in range(rng.choice([3, 4, 4, 5, 7]))] for _ in range(40)]
    polygons += [
        box(3, 3, 5, 2.0),
        box(3, 3, 5, 1.99),
        box(3, 3, 5, 2.0001, 45),
        box(0, 0, 1, 1),
        blob(rng, 5, 5, 9, 50),
    ]
    points, offsets, _, ignore = csr([polygons], [rng.random() < 0.1 for _ in polygons])
    out = torch.empty(len(polygons), dtype=torch.float64, device=DEVICE)
    runtime.launch(
        _measured, (len(polygons),), points.to(DEVICE), offsets.to(DEVICE), ignore.to(DEVICE), out, len(points),
        num_warps=4, SHRINK=1 - 0.4**2, MIN_SIZE=min_size or 0.0, PAPER=min_size is not None, CHUNK=kernel.CHUNK,
    )  # fmt: skip
    text, distance = torch.zeros(len(polygons), dtype=torch.bool), torch.ones(len(polygons), dtype=torch.float64)
    for xy, chosen in reference._groups(points, offsets):
        measured = reference._measure(xy, chosen * 0, ignore[chosen], 0.4, min_size)
        text[chosen], distance[chosen] = measured.is_text, measured.distance
    assert torch.equal(out.cpu() > 0, text)
    assert torch.allclose(out.cpu()[text], distance[text], rtol=1e-14)
    assert 5 < text.sum() < len(polygons) - 5 or min_size is None


def test_the_minimum_size_is_compared_in_float64():
    """7.25 + 1e-9 is 7.25 in float32."""
    page = csr([[box(40, 20, 60, 7.25)]])
    sizes = {"height": 40, "width": 80, "implementation": "triton"}
    drawn = [db_targets(*(t.to(DEVICE) for t in page), min_text_size_px=s, **sizes) for s in (7.25, 7.25 + 1e-9)]
    assert drawn[0].shrink_map.any() and not drawn[1].shrink_map.any() and not drawn[1].shrink_mask.all()
