"""What CLEval is given, checked and in the form that it computes with; see `engine.cleval`."""

from collections.abc import Sequence

import numpy as np

from engine.cleval_characters import pseudo_lengths
from engine.cleval_geometry import Shapes
from pipelines.errors import UserError


def vertices(polygons: Sequence[np.ndarray], name: str, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """All vertices (T, 2) and the number of each polygon (P,) int64; float32 only if all arrays are."""
    arrays = [np.asarray(p) for p in polygons]
    least = 3 if protocol == "official" else 0
    for i, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "fiu" or len(array) < least:
            raise ValueError(f"{name}[{i}]: {array.dtype} {array.shape}, expected (n, 2) numbers, n at least {least}")
    if not arrays:
        return np.zeros((0, 2)), np.zeros(0, np.int64)
    points = np.concatenate(arrays)
    if points.dtype != np.float32 or protocol == "contest":
        points = points.astype(np.float64)
    if len(points) and not np.abs(points).max() < 2**30:  # also false for NaN; vertices become int32 in the reference
        bad = next(i for i, a in enumerate(arrays) if not (np.abs(a) < 2**30).all())
        raise ValueError(f"{name}[{bad}]: coordinates must be finite and below 2^30, got {arrays[bad].tolist()}")
    return points, np.array([len(a) for a in arrays], np.int64)


def flags(size: int, texts: Sequence[str] | None, ignore: Sequence[bool] | None, protocol: str) -> np.ndarray:
    """(G,) bool don't-care flags; checks both lists."""
    for name, values in (("texts", texts), ("ignore", ignore)):
        if values is not None and len(values) != size:
            raise ValueError(f"{name}: {len(values)} values for {size} gt polygons")
    ignored = np.zeros(size, bool)
    if ignore is not None:
        ignored = np.asarray(ignore, bool).reshape(size)
    elif protocol == "official" and texts is not None:
        ignored = np.array([t == "###" for t in texts], bool)
    if protocol == "official" and texts is None and not ignored.all():
        raise UserError("eval.protocol=official needs transcriptions: use data with texts, or eval.protocol=contest")
    return ignored


def to_shapes(points: np.ndarray, counts: np.ndarray, kept: np.ndarray, kind: str) -> Shapes:
    """Shapes of those polygons that are `kept` (n,) bool, of all points (sum of counts, 2); `kind` quad or poly."""
    if not kept.all():
        points, counts = points[np.repeat(kept, counts)], counts[kept]
    if kind == "poly":
        points, counts = _close_triangles(points.astype(np.float64), counts)
    return Shapes(points, counts, exact=kind == "poly")


def _close_triangles(points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives each triangle the fourth vertex (x of the first, y of the third), as the reference does."""
    first = (np.cumsum(counts) - counts)[counts == 3]
    fourth = np.stack([points[first, 0], points[first + 2, 1]], 1)
    return np.insert(points, first + 3, fourth, axis=0), np.maximum(counts, 4)


def lengths_of(shapes: Shapes, kind: str, texts: Sequence[str] | None, ignored: np.ndarray) -> np.ndarray:
    """(G,) int64 characters of each text."""
    if kind == "contest":
        return pseudo_lengths(shapes, kind, np.arange(len(shapes)))
    lengths = np.array([len(t) for t in texts] if texts is not None else [0] * len(shapes), np.int64)
    if ignored.any():
        lengths[ignored] = pseudo_lengths(shapes, kind, np.flatnonzero(ignored))
    return lengths
