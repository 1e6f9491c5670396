"""The customary DB post-processing and text-like maps: what `kernels.components` is compared with, in speed and result.

The chain is the one of MhLiao/DB's `SegDetectorRepresenter` and its descendants: findContours, minAreaRect, mean
under a filled mask, pyclipper offset, minAreaRect again.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from bench.peers.clipper_targets import offset_polygon

BIN_THRESH, UNCLIP_RATIO, MIN_SIZE_PX, MIN_UNCLIPPED_PX = 0.3, 1.5, 3.0, 5.0


def text_like_map(
    seed: int, height: int = 1280, width: int = 1280, num_lines: int = 90, max_angle: float = 4.0
) -> np.ndarray:
    """(H, W) float32 probabilities like a trained network's: soft-edged shrunken lines of text at one angle.

    num_lines: boxes tried; those that would touch another are left out. max_angle: degrees, the greatest of the page.
    """
    rng = np.random.default_rng(seed)
    prob = np.zeros((height, width), np.float32)
    taken = np.zeros((height, width), np.uint8)
    page_angle = rng.uniform(-max_angle, max_angle)
    for _ in range(num_lines):
        w, h = rng.uniform(30, min(320, width * 0.6)), rng.uniform(10, min(44, height * 0.2))
        centre = rng.uniform(0, (width, height)).tolist()
        angle = page_angle + rng.normal(0, 0.5)
        room = cv2.boxPoints((centre, (w + 6, h + 6), angle)).round().astype(np.int32)
        x, y, room_w, room_h = cv2.boundingRect(room)
        window = (slice(max(y, 0), y + room_h), slice(max(x, 0), x + room_w))
        spot = np.zeros_like(taken[window])
        cv2.fillPoly(spot, [room - (max(x, 0), max(y, 0))], 1)
        if not spot.any() or (spot & taken[window]).any():
            continue
        taken[window] |= spot
        inset = 0.84 * w * h / (w + h)  # both sides: 2 D
        core = cv2.boxPoints((centre, (max(w - inset, 1), max(h - inset, 1)), angle))
        fixed = np.rint((core - 0.5) * 256).astype(np.int32)
        cv2.fillConvexPoly(prob, fixed, float(rng.uniform(0.75, 0.99)), cv2.LINE_8, 8)
    soft = cv2.GaussianBlur(prob, (0, 0), 1.2)
    noise = rng.normal(0, 0.03, (height // 4 + 1, width // 4 + 1)).astype(np.float32)
    return np.clip(soft + cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR), 0.0, 1.0)


def classic_quads(
    prob: np.ndarray,
    *,
    box_thresh: float = 0.4,
    half_pixel: bool = False,
    exact_score: bool = False,
    clipper_scale: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Quadrilaterals of one (H, W) float32 map, as MhLiao/DB finds them (without its cap).

    Args:
        half_pixel: instead of the customary contour through pixel centres as it is, grow each rectangle by up to half
            a pixel until its area is the region's pixel count (the convention of `kernels.components`).
        exact_score: mean over the pixels whose centres lie in the rectangle; the customary one truncates its corners to
            whole pixels and counts its outline.
        clipper_scale: clipper's units per pixel; the customary 1 rounds to whole pixels.

    Returns:
        (k, 4, 2) float32 corners with pixel centres at i + 0.5 and (k,) scores, in OpenCV's order.
    """
    mask = (prob > BIN_THRESH).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    quads, scores = [], []
    for contour in contours:
        centre, size, angle = cv2.minAreaRect(contour)
        if half_pixel:
            growth = 2 * _half_pixel(contour, mask, size)
            size = (size[0] + growth, size[1] + growth)
        if min(size) < MIN_SIZE_PX:
            continue
        box = _ordered(cv2.boxPoints((centre, size, angle)))
        score = _mean_of_centres(prob, box) if exact_score else _mean_inside(prob, box)
        if score < box_thresh:
            continue
        distance = size[0] * size[1] * UNCLIP_RATIO / (2 * (size[0] + size[1]))
        rectangle = cv2.minAreaRect(offset_polygon(box, distance, clipper_scale)[0].astype(np.float32))
        if min(rectangle[1]) >= MIN_UNCLIPPED_PX:
            quads.append(_ordered(cv2.boxPoints(rectangle)) + 0.5)
            scores.append(score)
    return np.array(quads, np.float32).reshape(-1, 4, 2), np.array(scores, np.float32)


def _ordered(box: np.ndarray) -> np.ndarray:
    """Corners from the top left clockwise, sorted as MhLiao/DB's get_mini_boxes does."""
    points = sorted(box, key=lambda point: point[0])
    left = points[:2] if points[1][1] > points[0][1] else points[1::-1]
    right = points[2:] if points[3][1] > points[2][1] else points[:1:-1]
    return np.array([left[0], right[0], right[1], left[1]])


def _half_pixel(contour: np.ndarray, mask: np.ndarray, size: Sequence[float]) -> float:
    x, y, w, h = cv2.boundingRect(contour)
    inside = cv2.drawContours(np.zeros((h, w), np.uint8), [contour - (x, y)], -1, 1, cv2.FILLED)
    pixels = int((inside & mask[y : y + h, x : x + w]).sum())
    root = np.sqrt((size[0] - size[1]) ** 2 + 4 * pixels)
    return float(np.clip((root - size[0] - size[1]) / 4, 0, 0.5))


def _mean_inside(prob: np.ndarray, box: np.ndarray) -> float:
    height, width = prob.shape
    x0, y0 = np.clip(np.floor(box.min(0)).astype(int), 0, (width - 1, height - 1))
    x1, y1 = np.clip(np.ceil(box.max(0)).astype(int), 0, (width - 1, height - 1))
    inside = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.uint8)
    cv2.fillPoly(inside, [(box - (x0, y0)).astype(np.int32)], 1)
    return cv2.mean(prob[y0 : y1 + 1, x0 : x1 + 1], inside)[0]


def _mean_of_centres(prob: np.ndarray, box: np.ndarray) -> float:
    height, width = prob.shape
    x0, y0 = np.clip(np.floor(box.min(0)).astype(int), 0, (width - 1, height - 1))
    x1, y1 = np.clip(np.ceil(box.max(0)).astype(int), 0, (width - 1, height - 1))
    y, x = np.mgrid[y0 : y1 + 1, x0 : x1 + 1]
    edges = np.roll(box, -1, 0) - box
    depth = [(e[0] * (y - p[1]) - e[1] * (x - p[0])) / np.hypot(*e) for p, e in zip(box, edges)]
    inside = np.min(depth, 0) >= -1e-3
    return float(prob[y0 : y1 + 1, x0 : x1 + 1][inside].mean()) if inside.any() else 0.0
