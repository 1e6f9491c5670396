"""Public function of the DB training targets: checks, the custom operator with its fake, dispatch.

The operator is opaque to torch.compile: it causes no graph break, and its sizes depend on shapes only.
The definition is in `reference.py`.
"""

from typing import Any

import torch
from torch import Tensor

from kernels import runtime
from kernels.db_targets.kernel import db_targets_triton
from kernels.db_targets.reference import DBTargets, Rules, db_targets_reference

MODES = ("paper", "baseline")
THRESH_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    thresh_dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> DBTargets:
    """Draws the shrink map and the threshold map of N pages, with their masks, from polygons.

    points_xy (V, 2) float32: vertices in canvas pixels, pixel centres at i + 0.5. poly_offsets (P + 1,) int64:
    polygon i is points_xy[poly_offsets[i]:poly_offsets[i + 1]]. page_offsets (N + 1,) int64: page n holds polygons
    page_offsets[n] to page_offsets[n + 1]. ignore (P,) bool. All on one device. Polygons may lie partly or wholly
    outside the canvas.

    Returns DBTargets of (N, height, width): shrink_map, shrink_mask, thresh_mask uint8 (mask 1 = the pixel counts),
    thresh_map from thresh_min (background) to thresh_max (on a boundary) in thresh_dtype: float32, bfloat16 or float16.
    None stands for float32 from the reference and bfloat16 from the kernels: half the bytes to write here and to read
    in the loss, rounded by at most 2^-9 (values up to 1 have 8 significant bits).

    mode "paper": these polygons give no text and no band, and their interior (even-odd rule) is masked out of both
    maps: flagged by `ignore`; shortest side (least extent perpendicular to an edge) below min_text_size_px; area
    below 1 px^2; two edges properly cross; no pixel centre of the canvas lies in the core. Polygons of fewer than
    three points, or with a non-finite coordinate, have no interior and leave no trace. mode "baseline" (the original
    Lightning baseline): both masks are all ones, the ignore flag and min_text_size_px have no effect, a core that
    vanishes is merely absent. Its truncation of vertices to integers is not copied.

    implementation "auto": the Triton kernels for tensors on CUDA, else the PyTorch reference on the tensors' device;
    "triton" and "reference" ask for one of them. Both decide alike, but for pixels within float32's rounding of a
    boundary or of the distance D. The kernels read nothing back to the host.
    Formulas and sources: `kernels/db_targets/reference.py` (Liao et al. 2020, arXiv 1911.08947).

    Raises ValueError for wrong shapes, dtypes, devices, offsets or parameters. The kernels' offsets on CUDA are not
    looked at, since that would wait for the device: values out of range are held within it, so that nothing outside
    the arrays is read, and what wrong offsets draw is undefined.
    """
    triton = runtime.use_triton("db_targets", implementation, points_xy)
    _check_tensors(points_xy, poly_offsets, page_offsets, ignore)
    rules = Rules(height, width, shrink_ratio, thresh_min, thresh_max, min_text_size_px, mode)
    _check_rules(rules)
    if thresh_dtype is None:
        thresh_dtype = torch.bfloat16 if triton else torch.float32
    if thresh_dtype not in THRESH_DTYPES:
        raise ValueError(f"db_targets: thresh_dtype must be one of {THRESH_DTYPES} or None, not {thresh_dtype}")
    return DBTargets(*_targets_op(points_xy, poly_offsets, page_offsets, ignore, *rules, thresh_dtype, triton))


@torch.library.custom_op("dbnet_engine::db_targets", mutates_args=())
def _targets_op(
    points_xy: Tensor,
    poly_offsets: Tensor,
    page_offsets: Tensor,
    ignore: Tensor,
    height: int,
    width: int,
    shrink_ratio: float,
    thresh_min: float,
    thresh_max: float,
    min_text_size_px: float,
    mode: str,
    thresh_dtype: torch.dtype,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not triton or points_xy.device.type == "cpu":  # the reference waits for the device anyway
        _check_offsets("poly_offsets", poly_offsets, points_xy.shape[0])
        _check_offsets("page_offsets", page_offsets, ignore.numel())
    rules = Rules(height, width, shrink_ratio, thresh_min, thresh_max, min_text_size_px, mode)
    if triton:
        maps = db_targets_triton(points_xy, poly_offsets, page_offsets, ignore, rules, thresh_dtype)
    else:
        maps = db_targets_reference(points_xy, poly_offsets, page_offsets, ignore, rules)
    # .to: the reference's map is float32. A plain tuple is what an operator may return.
    return maps.shrink_map, maps.shrink_mask, maps.thresh_map.to(thresh_dtype), maps.thresh_mask


@_targets_op.register_fake
def _(
    points_xy: Tensor, poly_offsets: Tensor, page_offsets: Tensor, ignore: Tensor, *parameters: Any
) -> tuple[Tensor, ...]:
    height, width, *_, thresh_dtype, _ = parameters
    shape = (page_offsets.shape[0] - 1, height, width)
    dtypes = (torch.uint8, torch.uint8, thresh_dtype, torch.uint8)
    return tuple(points_xy.new_empty(shape, dtype=dtype) for dtype in dtypes)


def _check_tensors(points_xy: Tensor, poly_offsets: Tensor, page_offsets: Tensor, ignore: Tensor) -> None:
    if points_xy.ndim != 2 or points_xy.shape[1] != 2 or points_xy.dtype != torch.float32:
        raise ValueError(f"db_targets: points_xy must be (V, 2) float32, not {_describe(points_xy)}")
    for name, offsets in (("poly_offsets", poly_offsets), ("page_offsets", page_offsets)):
        if offsets.ndim != 1 or offsets.numel() < 1 or offsets.dtype != torch.int64:
            raise ValueError(f"db_targets: {name} must be (count + 1,) int64, not {_describe(offsets)}")
    if ignore.shape != (poly_offsets.numel() - 1,) or ignore.dtype != torch.bool:
        raise ValueError(f"db_targets: ignore must be ({poly_offsets.numel() - 1},) bool, not {_describe(ignore)}")
    for name, tensor in (("poly_offsets", poly_offsets), ("page_offsets", page_offsets), ("ignore", ignore)):
        if tensor.device != points_xy.device:
            raise ValueError(f"db_targets: {name} must be on {points_xy.device} like points_xy, not {tensor.device}")


def _check_offsets(name: str, offsets: Tensor, total: int) -> None:
    values = offsets.tolist()
    if values[0] != 0 or values[-1] != total or values != sorted(values):
        raise ValueError(f"db_targets: {name} must rise from 0 to {total}, not from {values[0]} to {values[-1]}")


def _check_rules(rules: Rules) -> None:
    height, width, shrink_ratio, thresh_min, thresh_max, min_text_size_px, mode = rules
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
