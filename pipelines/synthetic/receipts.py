"""Synthetic receipts with exact polygons, a function of (seed, index, size): data to start, test and bench with.

A page is printed on flat paper, every text segment's box is taken from the font's own ink, and paper and boxes go
through one homography. Pages are the same everywhere with the bundled fonts, up to the last bit of OpenCV's
and FreeType's rounding.
"""

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pipelines.errors import UserError
from pipelines.folders import new_folder
from pipelines.synthetic import paper
from pipelines.synthetic.fonts import families, font, least_size
from pipelines.synthetic.text import Row, Segment, compose

VERSION = 1
MIN_SIDE = 64
# Body text of real receipts has 10 to 36 px line boxes on a 1280 px page (median 22).
BODY_PX_AT_1280 = (17.0, 30.0)
# DB training ignores text under 8 px, so small pages get fewer lines, not smaller ones.
MIN_TEXT_PX = 8.5
JPEG_QUALITY = (35, 96)


class _Plan(NamedTuple):
    """How a receipt will lie on its page: printed size, body font size, least font size, faces, 3 x 3 paper to page."""

    size_wh: tuple[int, int]
    body_px: int
    least_px: int
    family: tuple[str, str]
    matrix: np.ndarray


class Sheet(NamedTuple):
    """Flat paper: ink (h, w) uint8 coverage, quads (k, 4, 2) float64 paper coordinates, their texts."""

    ink: np.ndarray
    quads: np.ndarray
    texts: list[str]


class _Printer:
    """Draws rows on flat paper and keeps the box of every segment."""

    def __init__(self, rng: np.random.Generator, plan: _Plan):
        size_wh = plan.size_wh
        self.rng, self.family = rng, plan.family
        self.body_px, self.least_px = plan.body_px, plan.least_px
        self.image = Image.new("L", size_wh, 0)
        self.draw = ImageDraw.Draw(self.image)
        margin = float(rng.uniform(0.03, 0.09)) * size_wh[0]
        self.left, self.right = margin, size_wh[0] - margin
        self.pitch = float(rng.uniform(1.2, 1.7))
        self.ruler = int(rng.integers(3))
        self.strength = int(rng.integers(200, 256))
        self.quads: list[np.ndarray] = []
        self.texts: list[str] = []
        self.y = min(self.body_px * float(rng.uniform(0.8, 3)), 0.1 * size_wh[1])

    def row(self, row: Row) -> bool:
        """Prints one row; False when the paper is full."""
        size = max(self.least_px, round(self.body_px * row.scale))
        # A logo or barcode on a scrap of paper would leave no room for text.
        room = self.image.height - self.y if row.kind == "text" else self.image.height * 0.2
        if size * 1.5 > min(room, self.image.height - self.y):
            return False
        if row.kind == "text":
            self._text(row, size)
        else:
            {"rule": self._rule, "barcode": self._barcode, "logo": self._logo}[row.kind](size)
        self.y += size * self.pitch + row.after * self.body_px
        return True

    def _text(self, row: Row, size: int) -> None:
        face = font(self.family[int(row.bold)], size)
        # Right to left: the price keeps its place, the name in front of it is cut to what is left.
        limit = self.right
        for segment in reversed(row.segments):
            start = self._segment(segment, face, size, limit)
            limit = min(limit, start - 0.8 * size)

    def _segment(self, segment: Segment, face, size: int, limit: float) -> float:
        """Draws one segment left of `limit`; returns its left edge. What does not fit is cut, or left out."""
        x = self.left + segment.x * (self.right - self.left)
        text = segment.text
        while text:
            length = face.getlength(text)
            start = x - length * {"l": 0.0, "m": 0.5, "r": 1.0}[segment.anchor]
            if start >= self.left - 0.5 and start + length <= limit + 0.5:
                break
            text = text[:-1].rstrip()
        if not text:
            return limit
        start, baseline = round(start), round(self.y + size)
        self.draw.text((start, baseline), text, fill=self.strength, font=face, anchor="ls")
        mask, (across, down) = face.getmask2(text, mode="L", anchor="ls")
        ink = mask.getbbox()
        assert ink is not None, f"{text!r} has ink in {face.path}"
        # Tight left and right; up at least to the top of a capital, down to the baseline: `...` is a line too.
        left, right = ink[0] + across, ink[2] + across
        top, bottom = min(ink[1] + down, face.getbbox("H", anchor="ls")[1]), max(ink[3] + down, 0)
        box = [[left, top], [right, top], [right, bottom], [left, bottom]]
        self.quads.append(np.array(box, np.float64) + (start, baseline))
        self.texts.append(text)
        return float(start)

    def _rule(self, size: int) -> None:
        y = self.y + size * 0.6
        if self.ruler == 0:
            self.draw.line([(self.left, y), (self.right, y)], fill=self.strength, width=1 + size // 18)
            return
        dash, gap = ((0.45, 0.2), (0.12, 0.3))[self.ruler - 1]
        for x in np.arange(self.left, self.right - dash * size, (dash + gap) * size):
            self.draw.rectangle([x, y, x + dash * size, y + size // 14], fill=self.strength)

    def _barcode(self, size: int) -> None:
        inset = (self.right - self.left) * 0.2
        x, end, y, unit = round(self.left + inset), self.right - inset, round(self.y), max(1, self.body_px // 14)
        while x < end:
            bar = int(self.rng.integers(1, 4)) * unit
            self.draw.rectangle([x, y, x + bar - 1, y + size], fill=self.strength)
            x += bar + int(self.rng.integers(1, 4)) * unit

    def _logo(self, size: int) -> None:
        middle, half = (self.left + self.right) / 2, size * float(self.rng.uniform(0.6, 1.6))
        half = min(half, (self.right - self.left) / 2)
        self.draw.ellipse([middle - half, self.y, middle + half, self.y + size], fill=self.strength)
        inner = half * float(self.rng.uniform(0.3, 0.8))
        self.draw.rectangle([middle - inner, self.y + size * 0.3, middle + inner, self.y + size * 0.6], fill=0)


def _plan(rng: np.random.Generator, height: int, width: int, difficulty: float, fonts: str) -> _Plan:
    """Chooses paper size, place on the page, and font sizes that stay legible there."""
    choices = families(fonts)
    family = choices[int(rng.integers(len(choices)))]
    body = float(rng.uniform(*BODY_PX_AT_1280)) * height / 1280
    full = rng.random() < 0.4
    paper_height = height if full else int(height * rng.uniform(0.75, 0.98))
    # 30 to 46 letters of 0.6 em across, but at least 0.4 of the page.
    letters = float(rng.uniform(30, 46)) * 0.6 * max(body, 1.4 * MIN_TEXT_PX)
    paper_width = int(min(width * (1.0 if full else 0.97), max(letters, 0.4 * width)))
    matrix = paper.homography(rng, (paper_width, paper_height), (width, height), difficulty)
    corners = np.array([[0, 0], [0, paper_height], [paper_width, 0], [paper_width, paper_height]], np.float64)
    sides = np.diff(paper.transform(matrix, corners).reshape(2, 2, 2), axis=1)
    shrink = float(np.hypot(sides[..., 0], sides[..., 1]).min()) / paper_height
    # 0.93: a sheared or unevenly shrunk box has a shorter short side than its left edge.
    least = max(least_size(name, math.ceil(MIN_TEXT_PX / (0.93 * shrink))) for name in family)
    # Narrow printers squeeze their letters: print wider, and let the matrix squeeze.
    printed_width = round(paper_width / float(rng.uniform(0.8, 1.0)))
    matrix = matrix @ np.diag([paper_width / printed_width, 1.0, 1.0])
    return _Plan((printed_width, paper_height), max(round(body), least), least, family, matrix)


def _print_sheet(rng: np.random.Generator, plan: _Plan, korean: bool) -> Sheet:
    """Prints a receipt on flat paper."""
    printer = _Printer(rng, plan)
    for row in compose(rng, int(plan.size_wh[1] / (plan.body_px * printer.pitch)), korean):
        if not printer.row(row) and row.kind == "text":
            break
    ink = np.asarray(printer.image)
    if rng.random() < 0.12:
        # Dot matrix: a pale line every third row.
        ink = ink.copy()
        ink[:: max(3, plan.body_px // 8)] //= 2
    return Sheet(ink, np.array(printer.quads).reshape(-1, 4, 2), printer.texts)


def _compose_page(
    rng: np.random.Generator, ink: np.ndarray, mask: np.ndarray, hw: tuple[int, int], difficulty: float
) -> np.ndarray:
    """(H, W, 3) uint8 RGB page from warped ink and paper coverage."""
    behind, behind_tint = paper.background(rng, hw)
    shade = float(rng.uniform(200, 254))
    tint = np.array([1.0, rng.uniform(0.96, 1), rng.uniform(0.88, 1)] if rng.random() < 0.5 else [1, 1, 1], np.float32)
    texture = paper.smooth_noise(rng, hw, int(rng.integers(4, 40))) * np.float32(3 * difficulty)
    darkness = np.float32(rng.uniform(0.75 - 0.3 * difficulty, 1.0))
    if rng.random() < 0.5:
        # Thermal paper fades in patches, never to nothing.
        patches = paper.smooth_noise(rng, hw, int(rng.integers(2, 7))) * np.float32(0.3 * difficulty)
        darkness = np.clip(darkness + patches, 0.35, 1)
    cover = mask.astype(np.float32) / 255
    sheet = (shade + texture) * (1 - ink.astype(np.float32) * (darkness * np.float32(0.88 / 255)))
    lamp = paper.light(rng, hw, difficulty)
    front, back = sheet * cover * lamp, behind * (1 - cover) * lamp
    channels = [front * tint[c] + back * behind_tint[c] for c in range(3)]
    return cv2.convertScaleAbs(cv2.merge(channels))


def render_page(
    seed: int, index: int, height: int, width: int, difficulty: float = 0.5, fonts: str = "bundled"
) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """One receipt as a JPEG, with the quadrilateral and the text of every contiguous piece of a line.

    Args:
        seed, index: page `index` of data set `seed`.
        height, width: pixels, at least 64.
        difficulty: 0 (clean scan) to 1 (crumpled photo): turn, perspective, creases, shadow, blur, noise, JPEG.
        fonts: `bundled`, `system` or `hangul` (see `fonts.families`).

    Returns:
        JPEG bytes (n,) uint8; polygons, (4, 2) float32 x, y, pixel centres at i + 0.5, top left first and clockwise as
        the text reads, inside the page; texts.

    Raises:
        UserError: page too small, difficulty out of range, no such font.
    """
    if min(height, width) < MIN_SIDE:
        raise UserError(f"synthetic page of {height}x{width}: at least {MIN_SIDE} pixels a side")
    if not 0 <= difficulty <= 1:
        raise UserError(f"difficulty {difficulty}: allowed is 0 to 1")
    # Philox is counter-based: page (seed, index) does not depend on which others were drawn.
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, index % 2**64]))
    plan = _plan(rng, height, width, difficulty, fonts)
    sheet, matrix = _print_sheet(rng, plan, korean=fonts == "hangul"), plan.matrix
    ink = paper.warp(sheet.ink, matrix, (height, width))
    mask = paper.warp(np.full(sheet.ink.shape, 255, np.uint8), matrix, (height, width))
    page = _compose_page(rng, ink, mask, (height, width), difficulty)
    if rng.random() < 0.3 * difficulty:
        paper.pen_strokes(rng, page)
    page = paper.degrade(rng, page, difficulty)
    if rng.random() < 0.2:
        page = cv2.cvtColor(cv2.cvtColor(page, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    low = round(JPEG_QUALITY[1] - (JPEG_QUALITY[1] - JPEG_QUALITY[0]) * difficulty)
    quality = int(rng.integers(low, JPEG_QUALITY[1] + 1))
    done, data = cv2.imencode(".jpg", cv2.cvtColor(page, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes JPEG"
    polygons = [quad.astype(np.float32) for quad in paper.transform(matrix, sheet.quads)]
    return data.reshape(-1), polygons, sheet.texts


def _entry(polygons: list[np.ndarray], texts: list[str], height: int, width: int) -> dict:
    words = {
        f"{k + 1:04d}": {"points": [[round(float(v), 3) for v in p] for p in polygon], "transcription": text}
        for k, (polygon, text) in enumerate(zip(polygons, texts, strict=True))
    }
    return {"img_w": width, "img_h": height, "words": words}


def write_dataset(
    out: str | Path,
    num_pages: int,
    seed: int,
    height: int,
    width: int,
    workers: int = 0,
    *,
    difficulty: float = 0.5,
    fonts: str = "bundled",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes pages 0 to num_pages - 1 as images/NNNNNN.jpg and annotations.json (the contest's format), last; its path.

    `workers` are threads, 0 = one a core; `progress` is called with (done, total).
    """
    out = Path(out)
    if num_pages < 1:
        raise UserError(f"{num_pages} synthetic pages: at least 1")
    (out / "images").mkdir(parents=True, exist_ok=True)

    def one(index: int) -> tuple[str, dict]:
        data, polygons, texts = render_page(seed, index, height, width, difficulty, fonts)
        name = f"{index:06d}.jpg"
        (out / "images" / name).write_bytes(data.tobytes())
        return name, _entry(polygons, texts, height, width)

    images = {}
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for name, entry in pool.map(one, range(num_pages)):
            images[name] = entry
            if progress is not None:
                progress(len(images), num_pages)
    path = out / "annotations.json"
    path.write_text(json.dumps({"images": images}, ensure_ascii=False), encoding="utf-8")
    return path


def ensure(cache_dir: str | Path, num_pages: int, seed: int, height: int, width: int, workers: int = 0) -> Path:
    """Path of the annotations.json of the built-in data set of these numbers, written once: complete or absent."""
    folder = Path(cache_dir) / f"synthetic-v{VERSION}-{num_pages}x{height}x{width}-seed{seed}"
    path = folder / "annotations.json"
    if path.is_file():
        return path
    with new_folder(folder, replace=False) as temporary:
        write_dataset(temporary, num_pages, seed, height, width, workers)
    return path
