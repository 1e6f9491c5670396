"""Text boxes of an image with an exported detector. Needs numpy, OpenCV, Pillow and onnxruntime, nothing of ours.

python example.py FILE.onnx PAGE.jpg
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime
from PIL import Image


def boxes(prob: np.ndarray, post: dict) -> list[tuple[float, np.ndarray]]:
    """prob_map (H, W) -> (score, quad (4, 2) in its pixels), best first."""
    mask, found = (prob > post["bin_thresh"]).astype(np.uint8), []
    _, labels, regions, _ = cv2.connectedComponentsWithStats(mask, connectivity=post["connectivity"])
    at = np.arange(prob.shape[1]) + 1j * np.arange(prob.shape[0])[:, None]  # x + iy of each pixel
    for number, (x, y, w, h, pixels) in enumerate(regions[1:], 1):
        more = min(w, h)  # a rectangle that is turned reaches over the upright one of its region
        window = np.s_[max(y - more, 0) : y + h + more, max(x - more, 0) : x + w + more]
        own = labels[window] == number
        (cx, cy), (a, b), angle = cv2.minAreaRect(at[window][own].view(float).reshape(-1, 2).astype(np.float32))
        grow = np.clip((np.sqrt((a - b) ** 2 + 4 * pixels) - (a + b)) / 2, 0, 1)  # from pixels' centres to their area
        a, b = a + grow, b + grow
        if post["score_mode"] == "fast":  # the mean of the rectangle's pixels, not of the region's own
            turned = (at[window] - complex(cx, cy)) * np.exp(-1j * np.radians(angle))
            own = (abs(turned.real) <= a / 2 + 1e-3) & (abs(turned.imag) <= b / 2 + 1e-3)
        score, unclip = float(prob[window][own].mean()), a * b * post["unclip_ratio"] / (a + b)
        large = min(a, b) >= post["min_size_px"] and min(a, b) + unclip >= post["min_unclipped_px"]
        if large and score >= post["box_thresh"]:
            found.append((score, cv2.boxPoints(((cx + 0.5, cy + 0.5), (a + unclip, b + unclip), angle))))
    return sorted(found, key=lambda box: -box[0])[: post["max_candidates"]]


def detect(session: onnxruntime.InferenceSession, page: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """page uint8 BGR (h, w, 3) -> (score, quad (4, 2) in its pixels), best first."""
    facts = session.get_modelmeta().custom_metadata_map
    mean, std, canvas, post = (json.loads(facts[name]) for name in ("mean", "std", "image_size", "post"))
    size, scale = page.shape[1::-1], min(canvas[0] / page.shape[0], canvas[1] / page.shape[1])
    w, h = round(size[0] * scale), round(size[1] * scale)
    left, top, image = (canvas[1] - w) // 2, (canvas[0] - h) // 2, np.zeros((*canvas, 3))
    triangle = Image.Resampling.BILINEAR  # as in training: a strong shrink averages pixels by it; OpenCV has none
    small = cv2.resize(page, (w, h)) if scale > 2 / 3 else Image.fromarray(page).resize((w, h), triangle)
    image[top : top + h, left : left + w] = np.asarray(small)[:, :, ::-1]
    image = ((image - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    prob = session.run(["prob_map"], {"image": image})[0][0, 0]
    back = size[0] / w, size[1] / h
    return [(score, np.clip((quad - (left, top)) * back, 0, size)) for score, quad in boxes(prob, post)]


if __name__ == "__main__":
    model = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    page = cv2.imread(sys.argv[2])
    raw = cv2.imread(sys.argv[2], cv2.IMREAD_UNCHANGED)
    if page is None or raw is None:
        sys.exit(f"{sys.argv[2]}: no image")
    if raw.shape == (*page.shape[:2], 4):  # transparent: laid on white, as in training
        alpha = raw[:, :, 3:] / (65535 if raw.dtype == np.uint16 else 255)
        page = (page * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    for score, quad in detect(model, page):
        print(f"{score:.3f}", *quad.round(1).ravel().tolist())
