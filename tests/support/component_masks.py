"""Masks that are hard to label, and tables read page by page."""

import numpy as np
import torch

from kernels.components import QuadRules
from tests.kernels.components.test_reference import awkward_masks

RULES = QuadRules(0.3, 0.4, 1.5, 3.0, 5.0, 500, 8, "slow")
SHAPES = [(1, 1), (7, 13), (24, 33), (40, 65)]


def adversarial_masks(height: int, width: int) -> np.ndarray:
    """(13, height, width) bool: `awkward_masks`, noise, and single pixels."""
    rng = np.random.default_rng(height * width)
    noise = [rng.random((height, width)) < share for share in (0.35, 0.5)]
    y, x = np.mgrid[:height, :width]
    return np.concatenate([awkward_masks(height, width), np.stack([*noise, (x % 2 == 0) & (y % 2 == 0)])])


def maps_of(masks: np.ndarray, seed: int = 0) -> torch.Tensor:
    """Float32 probabilities above 0.3 exactly where the masks are true."""
    rng = np.random.default_rng(seed)
    prob = np.where(masks, rng.uniform(0.31, 1.0, masks.shape), rng.uniform(0.0, 0.3, masks.shape))
    return torch.from_numpy(prob.astype(np.float32))
