"""Post-processing of 1280 x 1280 maps: milliseconds per page, against the customary chain on the same pages.

Pages are text-like maps with about 57 and 118 boxes (a contest receipt has 116 words). One thread; `ratio` in
extra_info compares CPU time of the two, measured in turns, so that a busy machine slows both alike.
"""

import time
from statistics import median

import cv2
import numpy as np
import pytest
import torch

from bench.classic_postprocess import classic_quads, text_like_map
from bench.receipts import prob_maps
from engine.config import PostConfig
from engine.postprocess import detect
from kernels.components import find_quads

SIZE = 1280
TRIES = {57: 90, 118: 400}  # boxes that fit -> boxes tried
PAGES = 4
LEAST_RATIO = 1.5  # of the customary chain's time on a page of 118 boxes
WORST_MS = 1500.0  # any map whatever; 80 to 250 ms when written


@pytest.fixture(scope="module", params=sorted(TRIES), ids=lambda n: f"{n}boxes")
def pages(request) -> tuple[int, list[np.ndarray]]:
    return request.param, [text_like_map(seed, SIZE, SIZE, TRIES[request.param]) for seed in range(PAGES)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.zeros(6 << 20)  # freed, it raises malloc's trim threshold, as any network's activations do
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def cpu_ms(function, *args) -> float:
    """CPU milliseconds of this thread for one call."""
    start = time.thread_time()
    function(*args)
    return 1000 * (time.thread_time() - start)


@pytest.mark.parametrize("score_mode", ["fast", "slow"])
def test_find_quads(benchmark, pages, score_mode):
    boxes, maps = pages
    batch = torch.from_numpy(np.stack(maps))
    benchmark.pedantic(lambda: find_quads(batch, score_mode=score_mode), rounds=10, warmup_rounds=2)
    ours, classic = [], []
    for _ in range(10):
        ours.append(cpu_ms(lambda: find_quads(batch, score_mode=score_mode)) / PAGES)
        classic.append(cpu_ms(lambda: [classic_quads(prob) for prob in maps]) / PAGES)
    ratio = median(classic) / median(ours)
    benchmark.extra_info["cpu_ms_per_page"] = median(ours)
    benchmark.extra_info["classic_cpu_ms_per_page"] = median(classic)
    benchmark.extra_info["ratio"] = ratio
    assert boxes < 100 or ratio >= LEAST_RATIO


def test_classic(benchmark, pages):
    _, maps = pages
    benchmark.pedantic(lambda: [classic_quads(m) for m in maps], rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("width", [640, 1280])
@pytest.mark.parametrize("score_mode", ["fast", "slow"])
def test_real_receipts(benchmark, score_mode, width):
    """Maps of a trained detector, as they are and letterboxed to a square."""
    side = (width - 640) // 2
    maps = [np.pad(prob, ((0, 0), (side, side))) for prob in prob_maps()]
    batch = torch.from_numpy(np.stack(maps))
    benchmark.pedantic(lambda: find_quads(batch, score_mode=score_mode), rounds=10, warmup_rounds=2)
    ours, classic = [], []
    for _ in range(10):
        ours.append(cpu_ms(lambda: find_quads(batch, score_mode=score_mode)) / len(maps))
        classic.append(cpu_ms(lambda: [classic_quads(prob) for prob in maps]) / len(maps))
    ratio = median(classic) / median(ours)
    benchmark.extra_info["cpu_ms_per_page"] = median(ours)
    benchmark.extra_info["classic_cpu_ms_per_page"] = median(classic)
    benchmark.extra_info["ratio"] = ratio
    assert ratio >= LEAST_RATIO, f"ours {median(ours):.2f} ms a page, customary {median(classic):.2f} ms"


@pytest.mark.parametrize("shape", ["quad", "polygon"])
def test_detect_a_batch(benchmark, pages, shape):
    _, maps = pages
    probs = torch.from_numpy(np.stack(maps))
    matrices, sizes = np.tile(np.eye(2, 3), (PAGES, 1, 1)), np.full((PAGES, 2), SIZE)
    post = PostConfig(shape=shape)
    benchmark.pedantic(lambda: detect(probs, matrices, sizes, post), rounds=8, warmup_rounds=2)
    benchmark.extra_info["ms_per_page"] = 1000 * benchmark.stats.stats.median / PAGES


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
def test_worst_cases_are_bounded(benchmark, name):
    prob = torch.from_numpy(worst_cases()[name].astype(np.float32))[None]
    benchmark.pedantic(lambda: find_quads(prob), rounds=3, warmup_rounds=1)
    assert cpu_ms(find_quads, prob) < WORST_MS
