"""CLEval of a page, ours against the `cleval` package; ours must be 10 times faster (design goal 25).

Pages: synthetic receipts with about as many lines and characters as SROIE's val split, and that split itself where
DBNET_RECEIPTS is set (a folder with val.txt and box/*.csv). Detections are the texts jittered by 1.5 px, 5 % dropped,
7 % split, 5 % merged. The package is timed as its own evaluation of detection alone (no end-to-end part), boxes built
from arrays, numba warm.
"""

if __name__ == "__main__":
    raise SystemExit("error: rows for pytest: run `pytest bench/bench_cleval.py`")


import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cleval.box_types import QUAD
from cleval.eval_functions import evaluation

from engine.evaluation.cleval import PageResult, evaluate_page

REQUIRED_RATIO = 10.0
PAGES = 8  # timed; the counts of 40 are compared
SOURCES = ["drawn", "receipts"] if "DBNET_RECEIPTS" in os.environ else ["drawn"]


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


@pytest.fixture(scope="module", params=SOURCES)
def pages(request) -> tuple[str, list[tuple[list[np.ndarray], list[np.ndarray], list[str]]]]:
    rng = np.random.default_rng(0)
    drawn = request.param == "drawn"
    receipts = [receipt_texts(rng) for _ in range(40)] if drawn else read_receipts(Path(os.environ["DBNET_RECEIPTS"]))
    return request.param, [(detections(rng, quads), quads, texts) for quads, texts in receipts]


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


def ours(page: tuple, protocol: str) -> PageResult:
    pred, gt, texts = page
    return evaluate_page(pred, gt, texts, None, protocol)


def test_counts_equal_the_packages(pages):
    for page in pages[1]:
        counts = ours(page, "official").counts
        assert package_counts(page) == tuple(
            counts[name] for name in ("chars_gt", "chars_pred", "chars_false", "chars_hit")
        )


@pytest.mark.parametrize("protocol", [pytest.param("official", marks=pytest.mark.quick), "contest"])
def test_page_is_10_times_faster_than_the_package(measure, pages, protocol):
    """By the official protocol. The package has no contest protocol; it is timed as it is."""
    source, every = pages
    timed = sorted(every, key=lambda page: len(page[1]))[:: len(every) // PAGES][:PAGES]
    row = measure(
        "cleval.evaluate_page",
        f"{PAGES} pages, {source}, {protocol}",
        lambda: [ours(page, protocol) for page in timed],
        lambda: [package_counts(page) for page in timed],
        peer_name="the cleval package",
        impl="numpy",
        images=PAGES,
    )
    assert protocol == "contest" or row.times_faster >= REQUIRED_RATIO
