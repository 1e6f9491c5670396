"""Pictures of a report as `data:` addresses: a page with what was found on it, and its maps."""

import base64

import cv2
import numpy as np

from engine.report.judge import WorstPage
from engine.visualization import overlay
from engine.visualization.document import escaped
from pipelines.errors import UserError
from pipelines.images.read import read_rgb
from pipelines.limits import Limits

PAGE_BYTES = 420_000  # of one page's picture: 8 of them, in base64, are 4.6 MB
LONGEST_PX, MAP_PX = 2000, 560
NAMED_TEXTS = 12  # missed, split and merged texts that are written out


def legend() -> str:
    """What the outlines' colours mean, as HTML."""
    wrong = {"missed", "split", "merged", "false positive"}
    keys = []
    for word, (r, g, b) in overlay.LEGEND:
        tint = f"background:rgba({r},{g},{b},{overlay.TINT})" if word in wrong else ""
        keys.append(f'<span><i style="border-color:rgb({r},{g},{b});{tint}"></i>{escaped(word)}</span>')
    return f'<div class="keys">{"".join(keys)}</div>'


def card(page: WorstPage, number: int, link: str, limits: Limits) -> str:
    """A worst page as HTML: name and scores, what went wrong in words, the picture, both maps."""
    score = page.score
    name = f'<a href="{escaped(link)}">{escaped(score.name)}</a>' if link else escaped(score.name)
    head = f'<h3 id="page-{number}">{number}. {name}</h3>'
    counts = [(score.counts[word], word) for word in ("missed", "split", "merged", "ignored")]
    false = score.counts["pred false_positive"]
    facts = f"H-mean {score.hmean:.4f}, precision {score.precision:.4f}, recall {score.recall:.4f}: "
    facts += f"{len(page.polygons)} texts ({', '.join(f'{n} {word}' for n, word in counts if n) or 'all matched'}), "
    facts += f"{len(page.detections.polygons)} detections ({false} false)."
    words = f"<p>{escaped(facts)}</p>{_wrong_texts(page)}"
    try:
        rgb = read_rgb(score.path, limits)
    except UserError as error:  # another decoder than the loader's, or the file has gone meanwhile
        return f'<section class="page">{head}{words}<p>No picture: {escaped(error)}</p></section>'
    found, texts, regions = page.detections.polygons, page.result.gt_status, page.result.pred_status
    picture = overlay.overlay(
        rgb, gt=page.polygons, ignore=page.ignore, pred=found, gt_status=texts, pred_status=regions, title=None
    )
    views = [
        f'<figure class="whole">{_image(_page_jpeg(_cropped(picture, rgb.shape[1], page)), score.name)}</figure>',
        _captioned(_map(page.prob_map, 0, 1), "probability map, 0 to 1"),
        _captioned(_map(page.thresh_map, 0.2, 0.8), "threshold map, 0.2 to 0.8"),
    ]
    return f'<section class="page">{head}{words}<div class="views">{"".join(views)}</div></section>'


def _wrong_texts(page: WorstPage) -> str:
    """The transcriptions of what was not simply found; "" without transcriptions."""
    if page.texts is None:
        return ""
    parts = []
    for status in ("missed", "split", "merged"):
        found = [text for text, word in zip(page.texts, page.result.gt_status, strict=True) if word == status]
        if found:
            shown = ", ".join(f"“{text[:40]}”" for text in found[:NAMED_TEXTS])
            more = f" and {len(found) - NAMED_TEXTS} more" if len(found) > NAMED_TEXTS else ""
            parts.append(f"<p>{status}: {escaped(shown + more)}</p>")
    return "".join(parts)


def _image(data: bytes, words: str) -> str:
    address = base64.b64encode(data).decode()
    return f'<img alt="{escaped(words)}" src="data:image/jpeg;base64,{address}">'


def _captioned(data: bytes, words: str) -> str:
    return f"<figure>{_image(data, words)}<figcaption>{escaped(words)}</figcaption></figure>"


def _cropped(picture: np.ndarray, width: int, page: WorstPage) -> np.ndarray:
    """The part of a picture with texts or detections and a margin around it: many scans are mostly empty paper.

    Args:
        width: of the page in source pixels; narrow ones are enlarged in the picture.
    """
    outlines = [*page.polygons, *page.detections.polygons]
    if not outlines:
        return picture
    points = np.concatenate(outlines) * (picture.shape[1] / width)
    margin = 0.03 * max(picture.shape[:2])
    (x0, y0), (x1, y1) = np.maximum(points.min(0) - margin, 0).astype(int), (points.max(0) + margin).astype(int)
    part = picture[y0:y1, x0:x1]
    return np.ascontiguousarray(part) if part.size else picture


def _shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _page_jpeg(picture: np.ndarray) -> bytes:
    """A JPEG of at most PAGE_BYTES: quality goes first, then pixels; 300 pixels always fit."""
    longest = LONGEST_PX
    while True:
        shown = _shrunk(picture, longest)
        for quality in (82, 70, 55):
            data = _jpeg(shown, quality)
            if len(data) <= PAGE_BYTES or (quality == 55 and longest <= 300):
                return data
        longest = int(longest * 0.75)


def _map(values: np.ndarray, low: float, high: float) -> bytes:
    """A map in viridis, which is read by people without colour vision as grey levels are."""
    levels = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
    coloured = cv2.applyColorMap(np.round(255 * levels).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return _jpeg(_shrunk(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB), MAP_PX), 80)
