"""Recall, precision and H-mean by text height. No torch.

sums = ByHeight()
sums.add(heights(texts), heights(found), scale, result)         # for every page
sums.rows()                                                     # one HeightRow a bin, low to high
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from engine.evaluation.cleval import PageResult

EDGES_PX = (0, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96)  # canvas pixels; the last bin is open
STATUSES = ("missed", "split", "merged")


def heights(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """(k,) float64 short sides of the smallest rectangles around polygons, in their pixels."""
    return np.array([min(cv2.minAreaRect(np.asarray(p, np.float32))[1]) for p in polygons], np.float64)


@dataclass(frozen=True)
class HeightRow:
    """A bin: canvas pixels [low, high), heights in source pixels, counts and scores; None where nothing is counted."""

    low: float
    high: float
    source: tuple[float, float]
    texts: int
    missed: int
    split: int
    merged: int
    detections: int
    false: int
    recall: float | None
    precision: float | None
    hmean: float | None


@dataclass
class ByHeight:
    """Sums of CLEval's characters by height. Recall goes by the height of the text, precision by the detection's."""

    gt: np.ndarray = field(default_factory=lambda: np.zeros((len(EDGES_PX), 3), np.int64))  # chars, hit, penalty
    pred: np.ndarray = field(default_factory=lambda: np.zeros((len(EDGES_PX), 3), np.int64))
    texts: np.ndarray = field(default_factory=lambda: np.zeros((len(EDGES_PX), 1 + len(STATUSES)), np.int64))
    found: np.ndarray = field(default_factory=lambda: np.zeros((len(EDGES_PX), 2), np.int64))  # all, false positives
    source: np.ndarray = field(default_factory=lambda: np.tile([np.inf, 0.0], (len(EDGES_PX), 1)))

    def add(self, texts: np.ndarray, found: np.ndarray, scale: float, result: PageResult) -> None:
        """Takes in a page: heights of its texts and detections in source pixels, canvas pixels a source pixel."""
        assert result.gt_chars is not None and result.pred_chars is not None
        counted = np.isin(result.gt_status, ("matched", *STATUSES)) if len(texts) else np.zeros(0, bool)
        bins, status = self._bins(texts[counted] * scale), np.array(result.gt_status)[counted]
        np.add.at(self.gt, bins, result.gt_chars[counted])
        np.add.at(self.texts, bins, np.stack([np.ones(len(bins), bool), *[status == s for s in STATUSES]], 1))
        np.minimum.at(self.source[:, 0], bins, texts[counted])
        np.maximum.at(self.source[:, 1], bins, texts[counted])
        counted = np.isin(result.pred_status, ("matched", "false_positive")) if len(found) else np.zeros(0, bool)
        bins, false = self._bins(found[counted] * scale), np.array(result.pred_status)[counted] == "false_positive"
        np.add.at(self.pred, bins, result.pred_chars[counted])
        np.add.at(self.found, bins, np.stack([np.ones(len(bins), bool), false], 1))

    @staticmethod
    def _bins(canvas_px: np.ndarray) -> np.ndarray:
        return np.searchsorted(EDGES_PX, canvas_px, side="right") - 1

    def rows(self) -> list[HeightRow]:
        """Bins in which there is a text or a detection, low to high."""
        rows = []
        for i, low in enumerate(EDGES_PX):
            if not self.texts[i, 0] and not self.found[i, 0]:
                continue
            high = EDGES_PX[i + 1] if i + 1 < len(EDGES_PX) else np.inf
            source = (float(self.source[i, 0]), float(self.source[i, 1])) if self.texts[i, 0] else (0.0, 0.0)
            recall, precision, hmean = _share(self.gt[i]), _share(self.pred[i]), None
            if recall is not None and precision is not None:
                hmean = 2 * recall * precision / (recall + precision) if recall + precision else 0.0
            texts, missed, split, merged, detections, false = map(int, (*self.texts[i], *self.found[i]))
            counts = texts, missed, split, merged, detections, false
            rows.append(HeightRow(float(low), float(high), source, *counts, recall, precision, hmean))
        return rows


def _share(sums: np.ndarray) -> float | None:
    """(hit - penalty) / characters, as CLEval has it for a page."""
    chars, hit, penalty = (int(v) for v in sums)
    return max(0, hit - penalty) / chars if chars else None
