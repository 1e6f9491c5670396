"""Six real receipts as a trained detector sees them: probability maps and true lines, for benches and tests.

    for prob, truth in zip(prob_maps(), lines()):        # (1280, 640) float32; polygons (n, 2) in its pixels
        ...

The maps are those of preset receipts_cpu after 5 epochs (H-mean 0.954 on its 66 validation pages). The pages are ones
that it never trained on, 1280 x 640, 8 bits a pixel. The texts of the true lines are not kept.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "data" / "receipts"
HEIGHT, WIDTH = 1280, 640


def prob_maps() -> list[np.ndarray]:
    """Six (1280, 640) float32 probability maps."""
    return [np.asarray(Image.open(FOLDER / page["map"]), np.float32) / 255 for page in _pages()]


def lines() -> list[list[np.ndarray]]:
    """The true lines of every page, (n, 2) float32 x, y with pixel centres at i + 0.5."""
    return [[np.array(polygon, np.float32) for polygon in page["polygons"]] for page in _pages()]


def _pages() -> list[dict]:
    return json.loads((FOLDER / "truth.json").read_text())
