"""CLEval: time of one page, ours against the `cleval` package; ours must be 10 times faster (design goal 25).

    pytest bench/bench_cleval.py

Pages: the val split of DBNET_RECEIPTS (folder with val.txt and box/*.csv) where it is set, else synthetic receipts with
about as many lines and characters. Detections are the texts jittered by 1.5 px, 5 % dropped, 7 % split, 5 % merged. The
package is timed as its own evaluation of detection alone (no end-to-end part), boxes built from arrays, numba warm.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cleval.box_types import QUAD
from cleval.eval_functions import evaluation

from engine.cleval import PageResult, evaluate_page

REQUIRED_RATIO = 10.0
SYNTHETIC_PAGES = 40


def receipt_texts(rng: np.random.Generator) -> tuple[list[np.ndarray], list[str]]:
    """Lines of one synthetic receipt: 54 of 5 to 35 letters on average, as in SROIE's val split."""
    quads, texts, y = [], [], 40.0
    for _ in range(int(rng.integers(35, 75))):
        height, length = rng.uniform(14, 26), int(rng.integers(5, 36))
        x, width = rng.uniform(30, 250), length * rng.uniform(7, 13)
        quads.append(np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32))
        texts.append("x" * length)
        y += height * rng.uniform(0.9, 1.4)  # some lines touch
    return quads, texts


def read_receipts(root: Path) -> list[tuple[list[np.ndarray], list[str]]]:
    pages = []
    for name in (root / "val.txt").read_text().split():
        rows = [line.split(",", 8) for line in (root / "box" / f"{name}.csv").read_text(errors="replace").splitlines()]
        rows = [row for row in rows if len(row) == 9]
        pages.append(([np.array(row[:8], np.float32).reshape(4, 2) for row in rows], [row[8] for row in rows]))
    return pages


def detections(rng: np.random.Generator, quads: list[np.ndarray]) -> list[np.ndarray]:
    """What a fair detector finds of these texts."""
    found: list[np.ndarray] = []
    for quad in quads:
        draw = rng.random()
        near = (quad + rng.normal(0, 1.5, (4, 2))).astype(np.float32)
        if draw < 0.05:
            continue
        if draw < 0.12:
            upper, lower = (near[0] + near[1]) / 2, (near[3] + near[2]) / 2
            found += [np.stack([near[0], upper, lower, near[3]]), np.stack([upper, near[1], near[2], lower])]
        elif draw < 0.17 and found:
            points = np.concatenate([near, found.pop()])
            (x0, y0), (x1, y1) = points.min(0), points.max(0)
            found.append(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32))
        else:
            found.append(near)
    return found


@pytest.fixture(scope="module")
def pages() -> list[tuple[list[np.ndarray], list[np.ndarray], list[str]]]:
    rng = np.random.default_rng(0)
    root = os.environ.get("DBNET_RECEIPTS")
    receipts = read_receipts(Path(root)) if root else [receipt_texts(rng) for _ in range(SYNTHETIC_PAGES)]
    return [(detections(rng, quads), quads, texts) for quads, texts in receipts]


# The package's own defaults for detection; its tests here use them too.
OPTIONS = SimpleNamespace(
    DUMP_SAMPLE_RESULT=False,
    E2E=False,
    ORIENTATION=False,
    CASE_SENSITIVE=True,
    RECALL_GRANULARITY_PENALTY_WEIGHT=1.0,
    PRECISION_GRANULARITY_PENALTY_WEIGHT=1.0,
    VERTICAL_ASPECT_RATIO_THRESH=0.5,
    AREA_PRECISION_CONSTRAINT=0.3,
)


def package_counts(page: tuple[list[np.ndarray], list[np.ndarray], list[str]]) -> tuple[int, ...]:
    pred, gt, texts = page
    boxes = [QUAD(p.reshape(-1), transcription=t) for p, t in zip(gt, texts)]
    det = evaluation(OPTIONS, boxes, [QUAD(p.reshape(-1), transcription="") for p in pred]).stats.det
    return det.num_char_gt, det.num_char_det, det.num_char_fp, det.num_char_tp_recall


def seconds(work: Callable, page: tuple, rounds: int) -> float:
    """Median seconds of `rounds` calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work(page)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ours(page: tuple, protocol: str = "official") -> PageResult:
    pred, gt, texts = page
    return evaluate_page(pred, gt, texts, None, protocol)


def test_page_is_10_times_faster_than_the_package(pages, capsys):
    """Median over pages of the ratio of the two times, taken next to each other on one thread; equal counts."""
    package_counts(pages[0])  # numba compiles
    ratios, times = [], []
    for page in pages:
        counts = ours(page).counts
        assert package_counts(page) == tuple(
            counts[name] for name in ("chars_gt", "chars_pred", "chars_false", "chars_hit")
        )
        reference, mine = seconds(package_counts, page, 3), seconds(ours, page, 9)
        ratios.append(reference / mine)
        times.append((reference, mine))
    package_ms, our_ms = (1e3 * statistics.median(t) for t in zip(*times))
    ratio = statistics.median(ratios)
    with capsys.disabled():
        print(f"\nCLEval, {len(pages)} pages: package {package_ms:.2f} ms, ours {our_ms:.2f} ms, ratio {ratio:.1f}")
    assert ratio >= REQUIRED_RATIO


@pytest.mark.parametrize("protocol", ["official", "contest"])
def test_page(benchmark, pages, protocol):
    """One page of middling size."""
    page = sorted(pages, key=lambda p: len(p[1]))[len(pages) // 2]
    result = benchmark(ours, page, protocol)
    assert result.hmean > 0.5
