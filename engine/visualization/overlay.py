"""Detections and ground truth drawn over a page.

    picture = overlay(rgb, gt=polygons, pred=found.polygons, scores=found.scores, title="receipt.jpg")
    save_image("receipt.overlay.jpg", picture)

OpenCV draws; no display is needed. A colour is a status: LEGEND says which.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from pipelines.errors import UserError, printable

# Told apart with any common kind of colour blindness (measured by its test); what is wrong is tinted as well.
GREEN, RED, BLUE, ORANGE = (0, 128, 80), (213, 60, 0), (20, 60, 200), (245, 180, 0)
PURPLE, SKY, GREY = (235, 110, 200), (60, 200, 255), (140, 140, 140)
LEGEND = (
    ("ground truth", GREEN), ("missed", RED), ("split", PURPLE), ("merged", SKY), ("prediction", BLUE),
    ("false positive", ORANGE), ("ignored", GREY),
)  # fmt: skip
TINTED, TINT = {RED, PURPLE, SKY, ORANGE}, 0.22
GT_COLOURS = {"matched": GREEN, "split": PURPLE, "merged": SKY, "missed": RED, "ignored": GREY, "skipped": GREY}
PRED_COLOURS = {"matched": BLUE, "false_positive": ORANGE, "dont_care": GREY, "skipped": GREY}
SMALL_WIDTH = 800  # narrower pages are enlarged 2 or 3 times: outlines of 1 px over letters of 10 px hide them
FONT = cv2.FONT_HERSHEY_SIMPLEX


def overlay(
    image: np.ndarray,
    gt: Sequence[np.ndarray] = (),
    ignore: Sequence[bool] | np.ndarray | None = None,
    pred: Sequence[np.ndarray] = (),
    scores: Sequence[float] | np.ndarray | None = None,
    gt_status: Sequence[str] | None = None,
    pred_status: Sequence[str] | None = None,
    title: str | None = "",
) -> np.ndarray:
    """A page with its ground truth and detections, below a header with title and legend.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        gt, pred: polygons (n, 2) in pixels of the image.
        ignore: one for each of `gt`.
        scores: one for each of `pred`, written at its first corner.
        gt_status: as CLEval gives them: matched, split, merged, missed, ignored or skipped; None = matched.
        pred_status: matched, false_positive, dont_care or skipped; None = matched.
        title: file name, H-mean; None leaves out the header: LEGEND says what the colours mean.

    Returns:
        (k H + header, max(k W, 640), 3) uint8 RGB, without a header (k H, k W, 3); k = 1, for pages narrower than
        800 px 2 or 3.

    Raises:
        ValueError: image of another shape or type, lists of unequal length, an unknown status.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    gt_status = gt_status if gt_status is not None else ["matched"] * len(gt)
    pred_status = pred_status if pred_status is not None else ["matched"] * len(pred)
    ignored = ignore if ignore is not None else [False] * len(gt)
    if not len(gt) == len(gt_status) == len(ignored) or len(pred) != len(pred_status):
        raise ValueError("overlay: polygons, ignore and statuses must have one entry each")
    unknown = {*gt_status, *pred_status} - {*GT_COLOURS, *PRED_COLOURS}
    if unknown:
        raise ValueError(f"overlay: unknown status {', '.join(sorted(unknown))}")
    gt_colours = [GREY if skip else GT_COLOURS[status] for skip, status in zip(ignored, gt_status, strict=True)]
    pred_colours = [PRED_COLOURS[status] for status in pred_status]
    k = min(3, -(-SMALL_WIDTH // image.shape[1]))
    canvas = cv2.resize(image, None, fx=k, fy=k, interpolation=cv2.INTER_CUBIC) if k > 1 else image.copy()
    gt, pred = ([k * np.asarray(polygon, np.float64) for polygon in group] for group in (gt, pred))
    # In pixels: by the size of the page, and no more than a 14th of the middle text's height.
    sides = [min(cv2.minAreaRect(np.asarray(polygon, np.float32))[1]) for polygon in gt if len(polygon) > 2]
    thick = min(canvas.shape[:2]) / 600
    thick = max(1, round(min(thick, np.median(sides) / 14 if sides else thick)))
    _tints(canvas, [*gt, *pred], [*gt_colours, *pred_colours])
    # Predictions on top of the ground truth and thinner, so that both stay visible where they agree.
    _outlines(canvas, gt, gt_colours, thick + 1)
    _outlines(canvas, pred, pred_colours, thick)
    if scores is not None:
        _labels(canvas, pred, scores, pred_colours)
    if title is None:
        return canvas
    shown = {*gt_colours, *pred_colours, *([GREEN, RED] if len(gt) else [])}
    return _with_header(canvas, title, [entry for entry in LEGEND if entry[1] in shown])


def _tints(canvas: np.ndarray, polygons: Sequence[np.ndarray], colours: Sequence[tuple]) -> None:
    """Lays a tint over the polygons whose colour means that something is wrong, in place."""
    for polygon, colour in zip(polygons, colours, strict=True):
        if colour not in TINTED or len(polygon) < 3:
            continue
        points = np.clip(np.asarray(polygon, np.float64), -1, [canvas.shape[1] + 1, canvas.shape[0] + 1])
        (x0, y0), (x1, y1) = np.maximum(points.min(0), 0).astype(int), np.ceil(points.max(0)).astype(int) + 1
        area = canvas[y0:y1, x0:x1]
        if area.size:
            mask = np.zeros(area.shape[:2], np.uint8)
            cv2.fillPoly(mask, [np.round(points - (x0 + 0.5, y0 + 0.5)).astype(np.int32)], 1)
            area[mask > 0] = np.round((1 - TINT) * area[mask > 0] + TINT * np.array(colour)).astype(np.uint8)


def _outlines(canvas: np.ndarray, polygons: Sequence[np.ndarray], colours: Sequence[tuple], thick: int) -> None:
    """Draws closed outlines in place; 3 fractional bits keep sub-pixel corners."""
    for polygon, colour in zip(polygons, colours, strict=True):
        # A pixel's centre is at i + 0.5 for us and at i for OpenCV.
        points = np.asarray(polygon, np.float64).reshape(-1, 1, 2) - 0.5
        fixed = np.round(np.clip(points, -1e6, 1e6) * 8).astype(np.int32)
        cv2.polylines(canvas, [fixed], True, colour, thick, cv2.LINE_AA, shift=3)


def _labels(
    canvas: np.ndarray, polygons: Sequence[np.ndarray], scores: Sequence[float] | np.ndarray, colours: Sequence[tuple]
) -> None:
    size = max(0.3, min(canvas.shape[:2]) / 2600)
    for polygon, score, colour in zip(polygons, scores, colours, strict=True):
        x, y = np.asarray(polygon, np.float64).reshape(-1, 2)[0]
        text = f"{float(score):.2f}".removeprefix("0")
        cv2.putText(canvas, text, (int(x), int(y) - 2), FONT, size, colour, 1, cv2.LINE_AA)


def _with_header(canvas: np.ndarray, title: str, legend: Sequence[tuple[str, tuple]]) -> np.ndarray:
    height, width = canvas.shape[:2]
    full = max(width, 640)  # header and legend need as much
    size = full / 1600 if full > 1280 else 0.5
    line = round(44 * size)
    page = np.full((height + 2 * line + 8, full, 3), 255, np.uint8)
    page[-height:, :width] = canvas
    # The built-in font is ASCII; other letters would be drawn as question marks one byte each.
    ascii_title = printable(title).encode("ascii", "replace").decode()
    (text_width, _), _ = cv2.getTextSize(ascii_title, FONT, size, 1)
    shrink = min(1.0, (full - 16) / max(text_width, 1))
    cv2.putText(page, ascii_title, (8, line - 6), FONT, size * shrink, (0, 0, 0), 1, cv2.LINE_AA)
    x, y = 8, 2 * line - 6
    for word, colour in legend:
        cv2.rectangle(page, (x, y - round(16 * size)), (x + round(28 * size), y), colour, -1)
        x += round(36 * size)
        cv2.putText(page, word, (x, y), FONT, size * 0.9, (0, 0, 0), 1, cv2.LINE_AA)
        x += cv2.getTextSize(word, FONT, size * 0.9, 1)[0][0] + round(28 * size)
    return page


def save_image(path: Path | str, image: np.ndarray) -> Path:
    """Writes (H, W, 3) uint8 RGB as JPEG or PNG, by the name's ending; makes the folder.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise UserError(f"{path}: pictures end in .jpg or .png")
    options = [cv2.IMWRITE_JPEG_QUALITY, 88] if path.suffix.lower() != ".png" else []
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    return path
