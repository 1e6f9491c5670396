"""Post-processing of 1280 x 1280 maps: milliseconds per page, against the customary chain on the same pages.

Pages are text-like maps with about 57 and 118 boxes (a contest receipt has 116 words).
"""

if __name__ == "__main__":
    raise SystemExit("error: rows for pytest: run `pytest bench/bench_postprocess.py`")


import cv2
import numpy as np
import pytest
import torch

from bench.peers.classic_postprocess import classic_quads, text_like_map
from bench.receipts import prob_maps
from bench.verdict import Row
from engine.config import PostConfig
from engine.detection.postprocess import detect
from kernels.components import find_quads

SIZE = 1280
TRIES = {57: 90, 118: 400}  # boxes that fit -> boxes tried
PAGES = 4
# The customary chain's time over ours on pages of 118 boxes and on receipts. The goal, 1.5, was met on an AMD EPYC (1.7
# to 2.0); the same code has 1.4 to 1.9 on an Intel Xeon with AMX.
LEAST_RATIO = 1.25
WORST_MS = 1500.0  # any map whatever; 80 to 250 ms when written


@pytest.fixture(scope="module", params=sorted(TRIES), ids=lambda n: f"{n}boxes")
def pages(request) -> tuple[int, list[np.ndarray]]:
    return request.param, [text_like_map(seed, SIZE, SIZE, TRIES[request.param]) for seed in range(PAGES)]


def compare(measure, case: str, maps: list[np.ndarray], score_mode: str) -> Row:
    batch = torch.from_numpy(np.stack(maps))
    return measure(
        "find_quads",
        f"{case}, {score_mode}",
        lambda: find_quads(batch, score_mode=score_mode),
        lambda: [classic_quads(prob) for prob in maps],
        peer_name="findContours + pyclipper",
        images=len(maps),
    )


@pytest.mark.parametrize("score_mode", [pytest.param("fast", marks=pytest.mark.quick), "slow"])
def test_find_quads(measure, pages, score_mode):
    boxes, maps = pages
    row = compare(measure, f"{PAGES} pages {SIZE}x{SIZE} of {boxes} boxes", maps, score_mode)
    assert boxes < 100 or row.times_faster >= LEAST_RATIO


@pytest.mark.parametrize("width", [640, 1280])
@pytest.mark.parametrize("score_mode", ["fast", "slow"])
def test_real_receipts(measure, score_mode, width):
    """Maps of a trained detector, as they are and letterboxed to a square."""
    side = (width - 640) // 2
    maps = [np.pad(prob, ((0, 0), (side, side))) for prob in prob_maps()]
    row = compare(measure, f"6 receipts 1280x{width}", maps, score_mode)
    assert row.times_faster >= LEAST_RATIO, f"ours {row.ms[1]:.2f} ms, customary {row.peer_ms:.2f} ms"


@pytest.mark.parametrize("shape", ["quad", pytest.param("polygon", marks=pytest.mark.quick)])
def test_detect_a_batch(measure, pages, shape):
    boxes, maps = pages
    probs = torch.from_numpy(np.stack(maps))
    matrices, sizes = np.tile(np.eye(2, 3), (PAGES, 1, 1)), np.full((PAGES, 2), SIZE)
    post = PostConfig(shape=shape)
    measure(
        "postprocess.detect",
        f"{PAGES} pages {SIZE}x{SIZE} of {boxes} boxes, {shape}",
        lambda: detect(probs, matrices, sizes, post),
        lambda: [classic_quads(prob) for prob in maps],
        peer_name="findContours + pyclipper",
        images=PAGES,
    )


def worst_cases() -> dict[str, np.ndarray]:
    """(SIZE, SIZE) bool masks that take longest."""
    y, x = np.mgrid[:SIZE, :SIZE]
    noise = np.random.default_rng(0).random((SIZE, SIZE))
    return {
        "noise": noise < 0.5,
        "specks": noise < 0.35,
        "checkerboard": (x + y) % 2 == 0,
        "comb": (x % 2 == 0) | (y == SIZE - 1),
        "teeth": (x % 2 == 0) & (y >= (x * 7919) % SIZE) | (y == SIZE - 1),
        "rings": np.minimum(np.minimum(x, y), SIZE - 1 - np.maximum(x, y)) % 2 == 0,
        "corners": np.minimum(x, y) % 2 == 0,
        "full": np.ones((SIZE, SIZE), bool),
    }


@pytest.mark.parametrize("name", worst_cases())
def test_worst_cases_are_bounded(measure, name):
    mask = worst_cases()[name]
    prob = torch.from_numpy(mask.astype(np.float32))[None]
    row = measure(
        "find_quads",
        f"worst case {SIZE}x{SIZE}, {name}",
        lambda: find_quads(prob),
        lambda: cv2.connectedComponentsWithStats(mask.astype(np.uint8)),
        peer_name="connectedComponentsWithStats",
        images=1,
    )
    assert row.ms[1] < WORST_MS
