"""Public function of the DB training targets: checks and dispatch. The definition is in `reference.py`."""

import torch
from torch import Tensor

from kernels.db_targets.reference import DBTargets, db_targets_reference

MODES = ("paper", "baseline")
IMPLEMENTATIONS = ("auto", "reference", "triton")


@torch.no_grad()
def db_targets(
    points_xy: Tensor,
    poly_offsets: Tensor,
    page_offsets: Tensor,
    ignore: Tensor,
    *,
    height: int,
    width: int,
    shrink_ratio: float = 0.4,
    thresh_min: float = 0.3,
    thresh_max: float = 0.7,
    min_text_size_px: float = 8.0,
    mode: str = "paper",
    implementation: str = "auto",
) -> DBTargets:
    """Draws the shrink map and the threshold map of N pages, with their masks, from polygons.

    points_xy (V, 2) float32: vertices in canvas pixels, pixel centres at i + 0.5. poly_offsets (P + 1,) int64:
    polygon i is points_xy[poly_offsets[i]:poly_offsets[i + 1]]. page_offsets (N + 1,) int64: page n holds polygons
    page_offsets[n] to page_offsets[n + 1]. ignore (P,) bool. All on one device. Polygons may lie partly or wholly
    outside the canvas.

    Returns DBTargets of (N, height, width): shrink_map, shrink_mask, thresh_mask uint8 (mask 1 = the pixel counts),
    thresh_map float32 from thresh_min (background) to thresh_max (on a boundary).

    mode "paper": these polygons give no text and no band, and their interior (even-odd rule) is masked out of both
    maps: flagged by `ignore`; shortest side (least extent perpendicular to an edge) below min_text_size_px; area
    below 1 px^2; two edges properly cross; no pixel centre of the canvas lies in the core. Polygons of fewer than
    three points, or with a non-finite coordinate, have no interior and leave no trace. mode "baseline" (the original
    Lightning baseline): both masks are all ones, the ignore flag and min_text_size_px have no effect, a core that
    vanishes is merely absent. Its truncation of vertices to integers is not copied.

    implementation "auto" and "reference" run the PyTorch reference on the tensors' device; this version has no other.
    Formulas and sources: `kernels/db_targets/reference.py` (Liao et al. 2020, arXiv 1911.08947).
    Raises ValueError for wrong shapes, dtypes, devices, offsets or parameters.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"db_targets: implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    if implementation == "triton":
        raise ValueError("no Triton kernel for db_targets in this version; use implementation='auto' or 'reference'")
    _check_tensors(points_xy, poly_offsets, page_offsets, ignore)
    _check_parameters(height, width, shrink_ratio, thresh_min, thresh_max, min_text_size_px, mode)
    return db_targets_reference(
        points_xy,
        poly_offsets,
        page_offsets,
        ignore,
        height=height,
        width=width,
        shrink_ratio=shrink_ratio,
        thresh_min=thresh_min,
        thresh_max=thresh_max,
        min_text_size_px=min_text_size_px,
        mode=mode,
    )


def _check_tensors(points_xy: Tensor, poly_offsets: Tensor, page_offsets: Tensor, ignore: Tensor) -> None:
    if points_xy.ndim != 2 or points_xy.shape[1] != 2 or points_xy.dtype != torch.float32:
        raise ValueError(f"db_targets: points_xy must be (V, 2) float32, not {_describe(points_xy)}")
    for name, offsets in (("poly_offsets", poly_offsets), ("page_offsets", page_offsets)):
        if offsets.ndim != 1 or offsets.numel() < 1 or offsets.dtype != torch.int64:
            raise ValueError(f"db_targets: {name} must be (count + 1,) int64, not {_describe(offsets)}")
    if ignore.shape != (poly_offsets.numel() - 1,) or ignore.dtype != torch.bool:
        raise ValueError(f"db_targets: ignore must be ({poly_offsets.numel() - 1},) bool, not {_describe(ignore)}")
    devices = {tensor.device for tensor in (points_xy, poly_offsets, page_offsets, ignore)}
    if len(devices) > 1:
        raise ValueError(f"db_targets: all tensors must be on one device, not {sorted(map(str, devices))}")
    _check_offsets("poly_offsets", poly_offsets, points_xy.shape[0])
    _check_offsets("page_offsets", page_offsets, ignore.numel())


def _check_offsets(name: str, offsets: Tensor, total: int) -> None:
    values = offsets.tolist()
    if values[0] != 0 or values[-1] != total or values != sorted(values):
        raise ValueError(f"db_targets: {name} must rise from 0 to {total}, not from {values[0]} to {values[-1]}")


def _check_parameters(
    height: int,
    width: int,
    shrink_ratio: float,
    thresh_min: float,
    thresh_max: float,
    min_text_size_px: float,
    mode: str,
) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"db_targets: height and width must be positive, not {height} and {width}")
    if not 0 < shrink_ratio < 1:
        raise ValueError(f"db_targets: shrink_ratio must lie in (0, 1), not {shrink_ratio}")
    if not 0 <= thresh_min < thresh_max <= 1:
        raise ValueError(f"db_targets: need 0 <= thresh_min < thresh_max <= 1, not {thresh_min} and {thresh_max}")
    if not min_text_size_px >= 0:
        raise ValueError(f"db_targets: min_text_size_px must be at least 0, not {min_text_size_px}")
    if mode not in MODES:
        raise ValueError(f"db_targets: mode must be one of {MODES}, not {mode!r}")


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"
