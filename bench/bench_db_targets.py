"""db_targets and db_loss on one CPU thread, beside the customary chain. Run: pytest bench/bench_db_targets.py

A page is 1280 x 640 with 54 text lines turned by up to 3 degrees, as after augmentation; the loss sees four pages.
"""

import math
import random
import time

import numpy as np
import pytest
import torch

from bench.clipper_targets import clipper_targets
from bench.receipts import lines
from kernels.db_loss import db_loss
from kernels.db_targets import db_targets

HEIGHT, WIDTH, LINES, PAGES = 1280, 640, 54, 4


def receipt(seed: int) -> list[np.ndarray]:
    rng = random.Random(seed)
    page = []
    for row in range(LINES):
        w, h, turn = rng.uniform(60, 500), rng.uniform(14, 22), math.radians(rng.uniform(-3, 3))
        cx, cy = rng.uniform(w / 2 + 5, WIDTH - w / 2 - 5), 20 + (row + 0.5) * (HEIGHT - 40) / LINES
        corners = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
        c, s = math.cos(turn), math.sin(turn)
        page.append(np.array([(cx + c * u - s * v, cy + s * u + c * v) for u, v in corners], np.float32))
    return page


def tensors(pages: list[list[np.ndarray]]) -> tuple[torch.Tensor, ...]:
    polygons = [polygon for page in pages for polygon in page]
    offsets = [torch.tensor([0, *np.cumsum([len(item) for item in items])]) for items in (polygons, pages)]
    return torch.from_numpy(np.concatenate(polygons)), *offsets, torch.zeros(len(polygons), dtype=torch.bool)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # A freed block of this size raises malloc's trim threshold, as the activations of any training step do; without it
    # every call returns its 14 MB to the system and pays for 3,500 page faults, a third of its time.
    torch.zeros(6 << 20)
    yield
    torch.set_num_threads(before)


def loss_inputs() -> tuple[torch.Tensor, torch.Tensor, object]:
    targets = db_targets(*tensors([receipt(seed) for seed in range(PAGES)]), height=HEIGHT, width=WIDTH)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, PAGES, HEIGHT, WIDTH, generator=generator)
    prob_logits, thresh_logits = noise[0] * 2 - 4 + 6 * targets.shrink_map, noise[1] - 0.5
    return prob_logits.requires_grad_(), thresh_logits.requires_grad_(), targets


def test_targets_one_page(benchmark):
    page = tensors([receipt(0)])
    benchmark(lambda: db_targets(*page, height=HEIGHT, width=WIDTH))


def test_targets_one_page_customary(benchmark):
    page = receipt(0)
    benchmark(lambda: clipper_targets(page, HEIGHT, WIDTH))


def test_targets_are_four_times_faster_than_the_customary_chain():
    page = receipt(0)
    arguments = tensors([page])
    ours = least_cpu_ms(lambda: db_targets(*arguments, height=HEIGHT, width=WIDTH))
    customary = least_cpu_ms(lambda: clipper_targets(page, HEIGHT, WIDTH), repeats=5)
    assert customary >= 4 * ours, f"ours {ours:.1f} ms, customary {customary:.1f} ms"


def test_targets_of_real_receipts_are_four_times_faster():
    ours = customary = 0.0
    for page in lines():
        arguments = tensors([page])
        ours += least_cpu_ms(lambda a=arguments: db_targets(*a, height=HEIGHT, width=WIDTH), repeats=10)
        customary += least_cpu_ms(lambda p=page: clipper_targets(p, HEIGHT, WIDTH), repeats=4)
    assert customary >= 4 * ours, f"six receipts: ours {ours:.1f} ms, customary {customary:.1f} ms"


@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_loss_forward(benchmark, mode):
    prob_logits, thresh_logits, targets = loss_inputs()
    benchmark(lambda: db_loss(prob_logits.detach(), thresh_logits.detach(), targets, mode=mode))


@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_loss_forward_and_backward(benchmark, mode):
    prob_logits, thresh_logits, targets = loss_inputs()
    inputs = (prob_logits, thresh_logits)
    benchmark(lambda: torch.autograd.grad(db_loss(*inputs, targets, mode=mode).total, inputs))


def least_cpu_ms(run, repeats: int = 20) -> float:
    """CPU time of this thread: other processes on the machine hardly count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        times.append(time.thread_time() - start)
    return 1e3 * min(times)
