"""The customary way to make DB targets, as a comparator: pyclipper offsets, cv2.fillPoly, numpy distances.

Written from the published constants (Liao et al. 2020, arXiv 1911.08947, and what its trainers share): polygons
on an integer grid whose pixel centres are integers, D = A (1 - r^2) / L, round joins, threshold values from the law of
cosines at the pixel, combined by maximum. Polygons are (n, 2) arrays with pixel centres at i + 0.5, as everywhere here.
"""

import cv2
import numpy as np
import pyclipper

SHRINK_RATIO, THRESH_MIN, THRESH_MAX = 0.4, 0.3, 0.7


def offset_distance(polygon: np.ndarray) -> float:
    """D in pixels."""
    x, y = np.asarray(polygon, np.float64).T
    area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return area * (1 - SHRINK_RATIO**2) / np.hypot(np.roll(x, -1) - x, np.roll(y, -1) - y).sum()


def offset_polygon(polygon: np.ndarray, distance: float, scale: int = 1) -> list[np.ndarray]:
    """Pieces of the polygon moved outwards by distance (inwards if negative), on a grid of 1 / scale pixels."""
    clipper = pyclipper.PyclipperOffset()
    path = np.rint(np.asarray(polygon, np.float64) * scale).astype(np.int64)
    clipper.AddPath(path.tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    return [np.array(piece) / scale for piece in clipper.Execute(distance * scale)]


def clipper_targets(polygons: list[np.ndarray], height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns shrink_map uint8, thresh_map float32, thresh_mask uint8, each (height, width)."""
    shrink, mask = (np.zeros((height, width), np.uint8) for _ in range(2))
    value = np.zeros((height, width), np.float32)
    for polygon in polygons:
        points = np.asarray(polygon, np.float64) - 0.5
        distance = offset_distance(points)
        for piece in offset_polygon(points, -distance):
            cv2.fillPoly(shrink, [piece.astype(np.int32)], 1)
        for piece in offset_polygon(points, distance)[:1]:
            cv2.fillPoly(mask, [piece.astype(np.int32)], 1)
            _draw_value(points, distance, piece.astype(np.int64), value)
    return shrink, value * (THRESH_MAX - THRESH_MIN) + THRESH_MIN, mask


def _draw_value(points: np.ndarray, distance: float, dilated: np.ndarray, value: np.ndarray) -> None:
    (left, top), (right, bottom) = dilated.min(0), dilated.max(0)
    x, y = np.arange(left, right + 1)[None], np.arange(top, bottom + 1)[:, None]
    sides = [np.clip(_distance(x, y, a, b) / distance, 0, 1) for a, b in zip(points, np.roll(points, -1, 0))]
    nearest = np.stack(sides).min(0)  # a map per side, then the least: as its trainers do
    height, width = value.shape
    x0, x1, y0, y1 = max(left, 0), min(right + 1, width), max(top, 0), min(bottom + 1, height)
    if x0 < x1 and y0 < y1:
        window = value[y0:y1, x0:x1]
        np.maximum(window, 1 - nearest[y0 - top : y1 - top, x0 - left : x1 - left], out=window)


def _distance(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Height of the triangle (pixel, a, b) over ab where the angle at the pixel is obtuse, else the nearer end."""
    to_a, to_b = np.square(x - a[0]) + np.square(y - a[1]), np.square(x - b[0]) + np.square(y - b[1])
    side = np.square(a - b).sum()
    cosine = (side - to_a - to_b) / (2 * np.sqrt(to_a * to_b) + 1e-12)
    sine = np.nan_to_num(1 - np.square(cosine)).clip(0)
    height = np.sqrt(to_a * to_b * sine / max(side, 1e-12))
    return np.where(cosine < 0, np.sqrt(np.minimum(to_a, to_b)), height)
