"""The paper side of a synthetic receipt: how it lies on the page, its shade, creases, shadows, ink, noise."""

import cv2
import numpy as np

# Light and creases are smooth: computed on a grid of one point per 4 x 4 pixels and enlarged.
GRID = 4


def homography(
    rng: np.random.Generator, paper_wh: tuple[float, float], page_wh: tuple[int, int], difficulty: float
) -> np.ndarray:
    """3 x 3 float64 matrix from paper to page coordinates: squeeze to the page, slight rotation and perspective.

    The result is scaled and shifted so that the whole paper lies at least 1 px inside the page: no text is cut.
    """
    width, height = paper_wh
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    # A long strip must turn less, or it would shrink to nothing when it is fitted into the page.
    freedom = difficulty * 2 * min(1.0, 3 * min(width, height) / max(width, height))
    angle = np.deg2rad(rng.normal(0, 1.6) * freedom)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = corners.mean(0)
    moved = (corners - middle) @ turn.T + middle
    moved += rng.uniform(-0.016, 0.016, (4, 2)) * freedom * np.array([width, height])
    size = np.array(page_wh, np.float64) - 2
    spread = np.ptp(moved, axis=0)
    moved *= min(1.0, *(size / spread))
    room = size - np.ptp(moved, axis=0)
    moved += 1 + rng.uniform(0.2, 0.8, 2) * room - moved.min(0)
    return cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32)).astype(np.float64)


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(..., 2) points through a 3 x 3 homography."""
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def warp(image: np.ndarray, matrix: np.ndarray, page_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear warp onto the page. Coordinates are pixel edges (centres at i + 0.5); OpenCV's are centres."""
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    centred = np.linalg.inv(shift) @ matrix @ shift
    return cv2.warpPerspective(image, centred, page_hw[::-1], flags=cv2.INTER_LINEAR)


def smooth_noise(rng: np.random.Generator, hw: tuple[int, int], cells: int) -> np.ndarray:
    """(H, W) float32 in about [-1, 1] that changes over 1/cells of the page."""
    coarse = rng.uniform(-1, 1, (cells + 2, cells + 2)).astype(np.float32)
    return cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC)


def _line_distance(rng: np.random.Generator, hw: tuple[int, int], steep: bool) -> np.ndarray:
    """Signed distance, as a share of the height, of each grid point to a random line across the page."""
    height, width = hw
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi) if steep else rng.normal(0, 0.12) + (np.pi / 2 if rng.random() < 0.25 else 0)
    at = rng.uniform(0.1, 0.9, 2) * (height, width)
    return ((y - at[0]) * np.cos(angle) + (x - at[1]) * np.sin(angle)).astype(np.float32) / height


def light(rng: np.random.Generator, page_hw: tuple[int, int], difficulty: float) -> np.ndarray:
    """(H, W) float32 factor: lamp gradient, creases (a dark and a bright flank), soft shadows."""
    grid = (max(2, page_hw[0] // GRID), max(2, page_hw[1] // GRID))
    made = 1 + smooth_noise(rng, grid, 2) * np.float32(0.06 * difficulty)
    for _ in range(int(rng.poisson(1.2 * difficulty * 2))):
        distance = _line_distance(rng, grid, steep=False) / np.float32(rng.uniform(0.004, 0.012))
        flank = distance * np.exp(-np.square(distance) / 2)
        made += flank * np.float32(rng.uniform(0.05, 0.2) * difficulty * 2)
    if rng.random() < 0.7 * difficulty:
        distance = _line_distance(rng, grid, steep=True)
        soft = np.float32(rng.uniform(0.01, 0.12))
        made *= 1 - np.float32(rng.uniform(0.1, 0.4)) / (1 + np.exp(np.clip(-distance / soft, -30, 30)))
    return cv2.resize(made, page_hw[::-1], interpolation=cv2.INTER_LINEAR)


def background(rng: np.random.Generator, page_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Luminance (H, W) float32 in 0..255 and a (3,) tint of what lies behind the paper: scanner lid or table."""
    if rng.random() < 0.5:
        level, tint = rng.uniform(225, 255), np.ones(3)
        texture = 2.0
    else:
        level, tint = rng.uniform(40, 170), np.array([1.0, rng.uniform(0.8, 1), rng.uniform(0.6, 1)])
        texture = 14.0
    made = level + smooth_noise(rng, page_hw, int(rng.integers(3, 24))) * np.float32(texture)
    return made.astype(np.float32), tint.astype(np.float32)


def pen_strokes(rng: np.random.Generator, page: np.ndarray) -> None:
    """Draws a few unlabelled pen scribbles into a (H, W, 3) uint8 page, as on filed receipts."""
    height, width = page.shape[:2]
    colour = [(30, 30, 40), (30, 40, 140), (150, 30, 40)][int(rng.integers(3))]
    for _ in range(int(rng.integers(1, 4))):
        steps = rng.normal(0, 0.012 * height, (int(rng.integers(4, 14)), 2))
        steps[:, 0] += 0.012 * height
        line = np.cumsum(steps, 0) + rng.uniform(0, 0.9, 2) * (width, height)
        cv2.polylines(page, [np.round(line * 8).astype(np.int32)], False, colour, 1 + height // 700, cv2.LINE_AA, 3)


def degrade(rng: np.random.Generator, page: np.ndarray, difficulty: float) -> np.ndarray:
    """Scanner or camera: blur, then noise. (H, W, 3) uint8 in and out."""
    if rng.random() < 0.4 * difficulty * 2:
        page = cv2.GaussianBlur(page, (0, 0), float(rng.uniform(0.3, 0.5 + 0.6 * difficulty)))
    sigma = float(rng.uniform(0, 9)) * difficulty
    if sigma < 0.5:
        return page
    noise = rng.standard_normal(page.shape[:2], np.float32) * np.float32(sigma)
    return cv2.add(page, cv2.merge([noise] * 3), dtype=cv2.CV_8U)
