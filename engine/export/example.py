"""Text boxes of an image with an exported detector. Needs numpy, OpenCV and onnxruntime, and nothing of this project.

python example.py FILE.onnx PAGE.jpg
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def boxes(prob: np.ndarray, post: dict) -> list[tuple[np.ndarray, float]]:
    """prob_map (H, W) -> (quad (4, 2) of its pixels, score), best first."""
    mask, found = (prob > post["bin_thresh"]).astype(np.uint8), []
    contours, links = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for contour in (c[:, 0] for c, link in zip(contours, links[0] if contours else ()) if link[3] < 0):  # no holes
        x, y, w, h = cv2.boundingRect(contour)
        window, inside = np.s_[y : y + h, x : x + w], np.zeros((h, w), np.uint8)
        own = cv2.fillPoly(inside, [contour - (x, y)], 1) & mask[window]
        (cx, cy), (a, b), angle = cv2.minAreaRect(contour)  # through centres of pixels: it grows to its pixels' area
        half = min(max((np.sqrt((a - b) ** 2 + 4 * own.sum()) - (a + b)) / 2, 0), 1)
        a, b = a + half, b + half
        if post["score_mode"] == "fast":
            own = cv2.fillPoly(inside * 0, [np.rint(cv2.boxPoints(((cx - x, cy - y), (a, b), angle))).astype(int)], 1)
        score, distance = (prob[window] * own).sum() / max(own.sum(), 1), a * b * post["unclip_ratio"] / (a + b)
        large = min(a, b) >= post["min_size_px"] and min(a, b) + distance >= post["min_unclipped_px"]
        if large and score >= post["box_thresh"]:
            rectangle = (cx + 0.5, cy + 0.5), (a + distance, b + distance), angle
            found.append((cv2.boxPoints(rectangle), float(score)))
    return sorted(found, key=lambda box: -box[1])[: post["max_candidates"]]


def detect(session: onnxruntime.InferenceSession, page: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """page uint8 BGR (h, w, 3) -> (quad (4, 2) of its pixels, score), best first."""
    facts = session.get_modelmeta().custom_metadata_map
    mean, std, (height, width), post = (json.loads(facts[name]) for name in ("mean", "std", "image_size", "post"))
    (h, w), scale = page.shape[:2], min(height / page.shape[0], width / page.shape[1])
    new = min(max(1, round(w * scale)), width), min(max(1, round(h * scale)), height)
    left, top = (width - new[0]) // 2, (height - new[1]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + new[1], left : left + new[0]] = cv2.resize(page, new, interpolation=how)
    image = ((canvas[:, :, ::-1] - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    prob = session.run(["prob_map"], {"image": image})[0][0, 0]
    return [((quad - (left, top)) * (w / new[0], h / new[1]), score) for quad, score in boxes(prob, post)]


if __name__ == "__main__":
    model = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    for quad, score in detect(model, cv2.imread(sys.argv[2])):
        print(f"{score:.3f}", *quad.round(1).ravel().tolist())
