"""Public functions of the components: checks and dispatch. Definition and conventions: `reference.py`."""

import math

import torch
from torch import Tensor

from kernels import runtime
from kernels.components.geometry import find_quads_on_device
from kernels.components.reference import QuadRules, Quads, find_quads_reference, label_reference
from kernels.components.tabulate import build_table, label_triton

SCORE_MODES = ("fast", "slow")
# Pixels the reference works on together: a call is some 600 operations on little data, so ten pages of 1280 x 1280 at
# once take 2.3 ms a page on a CPU, two at once 3.1 ms; the limit bounds the memory that pages of noise need.
PIXELS = 1 << 24
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)  # any other is converted to float32


def find_quads(
    prob_map: Tensor,
    *,
    bin_thresh: float = 0.3,
    box_thresh: float = 0.4,
    unclip_ratio: float = 1.5,
    min_size_px: float = 3.0,
    min_unclipped_px: float = 5.0,
    max_candidates: int = 500,
    connectivity: int = 8,
    score_mode: str = "fast",
    implementation: str = "auto",
) -> Quads:
    """Text quadrilaterals of probability maps (DBNet's box formation, Liao et al. 2020, arXiv 1911.08947, section 3.5).

    prob_map: (N, H, W) probabilities of any float dtype and layout; below 32 bits it is converted to float32 first.
        NaN is no text; for the scores NaN counts as 0 and values are clamped to 0..1.
    bin_thresh: text where the probability is above. box_thresh: least score of a region.
    unclip_ratio: r' of the offset D' = A' r' / L' by which every side moves out.
    min_size_px, min_unclipped_px: least short side before and after that, canvas pixels.
    max_candidates: quads kept per page, best scores first, equal ones in raster order of the regions' first pixels.
    connectivity: 4 or 8 neighbours.
    score_mode: "fast" = mean probability in the rectangle, "slow" = over the region's own pixels.

    Returns Quads on the maps' device, padded to max_candidates: quads (N, K, 4, 2) float32 canvas pixels (centres at
    i + 0.5, not clipped to the canvas), scores (N, K) float32, counts (N,) int64, overflow (N,) bool. Nothing raises
    for odd maps: empty, full, noise.

    implementation: "reference" is PyTorch on the maps' device; "triton" is kernels, which read nothing back from the
        device; "auto" takes the kernels on CUDA and the reference elsewhere.

    Raises ValueError for wrong shapes, dtypes or parameters, and for "triton" where it cannot run.
    """
    if prob_map.ndim != 3 or not prob_map.is_floating_point() or 0 in prob_map.shape[1:]:
        raise ValueError(f"find_quads: prob_map must be (N, H, W) floats, not {tuple(prob_map.shape)} {prob_map.dtype}")
    rules = QuadRules(
        bin_thresh, box_thresh, unclip_ratio, min_size_px, min_unclipped_px, max_candidates, connectivity, score_mode
    )
    _check_rules(rules)
    prob_map = prob_map.detach()
    if runtime.use_triton("find_quads", implementation, prob_map):
        if prob_map.dtype not in KERNEL_DTYPES:
            prob_map = prob_map.float()
        prob_map = prob_map.contiguous()
        return find_quads_on_device(build_table(prob_map, rules), prob_map, rules)
    if prob_map.dtype not in (torch.float32, torch.float64):
        prob_map = prob_map.float()
    pages = max(1, PIXELS // (prob_map.shape[1] * prob_map.shape[2]))
    with torch.inference_mode():  # about 600 small operations: each is cheaper here
        parts = [find_quads_reference(part.contiguous(), rules) for part in torch.split(prob_map, pages)]
    return Quads(*(torch.cat(field) for field in zip(*parts, strict=True)))


@torch.no_grad()
def label(mask: Tensor, connectivity: int = 8, *, implementation: str = "auto") -> Tensor:
    """Connected components of masks.

    mask: (N, H, W) bool, any layout. connectivity: 4 or 8 neighbours.

    Returns (N, H, W) int32: 0 = background, components numbered from 1 on every page in raster order of their first
    pixels. Example: [[1, 0, 1], [0, 1, 0]] is one component with 8 neighbours, three with 4.

    implementation: as for `find_quads`.

    Raises ValueError for wrong shapes, dtypes or parameters, and for "triton" where it cannot run.
    """
    if mask.ndim != 3 or mask.dtype != torch.bool or 0 in mask.shape[1:]:
        raise ValueError(f"label: mask must be (N, H, W) bool, not {tuple(mask.shape)} {mask.dtype}")
    _check_connectivity(connectivity)
    if runtime.use_triton("label", implementation, mask):
        return label_triton(mask.contiguous(), connectivity)
    return label_reference(mask, connectivity)


def _check_rules(rules: QuadRules) -> None:
    _check_connectivity(rules.connectivity)
    if rules.score_mode not in SCORE_MODES:
        raise ValueError(f"find_quads: score_mode must be one of {SCORE_MODES}, not {rules.score_mode!r}")
    for name in ("bin_thresh", "box_thresh", "unclip_ratio", "min_size_px", "min_unclipped_px"):
        value = getattr(rules, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"find_quads: {name} must be finite and not negative, not {value}")
    if rules.max_candidates < 1:
        raise ValueError(f"find_quads: max_candidates must be at least 1, not {rules.max_candidates}")


def _check_connectivity(connectivity: int) -> None:
    if connectivity not in (4, 8):
        raise ValueError(f"components: connectivity must be 4 or 8, not {connectivity}")
