"""Regions of stored maps for many settings at once.

    judge = Judge(store, pages, "official", least_filters(post))
    counts(judge.growth(post, rows), post)               # (P, 10) COUNTS: as CLEval itself would count them

There are two kinds of settings. Those of GROWTH decide which regions there are and what they look like. FILTERS only
leave some of them out. So for a growth the regions are found, moved outwards and brought to source pixels once, best
score first; a filter is then a comparison. What is left is what `engine.detection.postprocess` gives, region by region
(tests/engine/tune/test_candidates.py), except on pages with more than 4,096 specks.
"""

import dataclasses

import numpy as np
import torch

from engine.config import PostConfig
from engine.detection.maps import MapStore
from engine.detection.postprocess import Detections, detect, offset, outlines, short_side, to_page
from engine.evaluation.cleval import Relations, count_some, evaluate_page, relate
from engine.evaluation.judge import cleval_arguments, judged
from engine.evaluation.significance import counts_of
from kernels.components import label
from kernels.components.op import PIXELS
from kernels.components.rectangles import Rectangles, unclip_distance
from kernels.components.reference import find_boxes
from pipelines.index.build import ConcatIndex

GROWTH = ("shape", "score_mode", "bin_thresh", "unclip_ratio", "connectivity")
FILTERS = ("box_thresh", "min_size_px", "min_unclipped_px", "max_candidates")
BATCH = 8  # maps turned into floats together


@dataclasses.dataclass(frozen=True)
class Regions:
    """Regions of one page for one growth, best score first."""

    score: np.ndarray  # (R,) float64 mean probability
    short: np.ndarray  # (R,) float64 short side before the growth, canvas pixels
    wide: np.ndarray  # (R,) float64 after it
    polygons: list[np.ndarray]  # R polygons (n, 2) float32 in source pixels
    on_page: np.ndarray  # (R,) bool

    def kept(self, post: PostConfig) -> np.ndarray:
        """(K,) ascending indices of those that the filters of `post` leave."""
        good = (self.score >= post.box_thresh) & (self.short >= post.min_size_px) & (self.wide >= post.min_unclipped_px)
        first = np.flatnonzero(good)[: post.max_candidates]  # off the page or not: the cap comes before
        return first[self.on_page[first]]


def _grown_quads(box: Rectangles, unclip_ratio: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """(short sides, corners in canvas pixels) after the growth."""
    with torch.inference_mode():
        wide = box.grow(unclip_distance(box, unclip_ratio))
        return wide.short_side().numpy(), list(wide.corners().float().numpy())


def _grown_outlines(found: list, unclip_ratio: float) -> tuple[np.ndarray, list]:
    polygons = [offset(outline, unclip_ratio) for outline in found]
    return np.array([-1.0 if p is None else short_side(p) for p in polygons]), polygons


class Judge:
    """Finds regions in stored maps, and scores settings by them.

    What was found is kept until another threshold, score or set of pages is asked for.

    Args:
        store: maps of the pages. pages: their texts. protocol: of CLEval.
        least: the least value of every filter that will be asked for; regions below are left out.
    """

    def __init__(self, store: MapStore, pages: ConcatIndex, protocol: str, least: PostConfig) -> None:
        self.store, self.pages, self.protocol, self.least = store, pages, protocol, least
        self._key: tuple = ()
        self._found: list = []

    def regions(self, post: PostConfig, rows: np.ndarray) -> list[Regions]:
        """Regions of some pages for the growth of `post`."""
        key = (post.shape, post.score_mode, post.bin_thresh, post.connectivity, post.polygon_epsilon, rows.tobytes())
        if key != self._key:
            find = self._find_quads if post.shape == "quad" else self._find_outlines
            height, width = self.store.bytes.shape[1:]
            size = max(1, PIXELS // (height * width))
            chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
            self._found = [page for chunk in chunks for page in find(post, self.store.maps(chunk))]
            self._key = key
        grow = _grown_quads if post.shape == "quad" else _grown_outlines
        return [
            self._on_page(row, score, short, *grow(found, post.unclip_ratio))
            for row, (score, short, found) in zip(rows, self._found, strict=True)
        ]

    def _find_quads(self, post: PostConfig, maps: torch.Tensor) -> list[tuple]:
        """(scores, short sides, Rectangles) of every map, best first."""
        with torch.inference_mode():
            box, score, page, _ = find_boxes(
                maps, post.bin_thresh, self.least.min_size_px, post.connectivity, post.score_mode
            )
        likely = score >= self.least.box_thresh
        box, score, page = box.select(likely.nonzero()[:, 0]), score[likely], page[likely]
        order = np.lexsort((-score.float().numpy(), page.numpy()))  # stable: equal scores in raster order
        box, scores = box.select(torch.from_numpy(order)), score.numpy()[order]
        ends = np.cumsum(np.bincount(page.numpy(), minlength=len(maps)))
        parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        short = box.short_side().numpy()
        return [(scores[part], short[part], Rectangles(*(field[part] for field in box))) for part in parts]

    def _find_outlines(self, post: PostConfig, maps: torch.Tensor) -> list[tuple]:
        """(scores, short sides, outlines) of every map, best first."""
        masks = maps > post.bin_thresh
        labels = [None] * len(maps) if post.connectivity == 8 else label(masks, 4).numpy()
        rules = dataclasses.replace(post, min_size_px=self.least.min_size_px)
        pages = []
        for prob, mask, numbers in zip(maps.numpy(), masks.numpy().view(np.uint8), labels, strict=True):
            found = outlines(prob, mask, numbers, rules)
            found = sorted((o for o in found if o.score >= self.least.box_thresh), key=lambda o: -o.score)
            pages.append((np.array([o.score for o in found]), np.array([o.short_side for o in found]), found))
        return pages

    def _on_page(
        self, row: int, score: np.ndarray, short: np.ndarray, wide: np.ndarray, polygons: list[np.ndarray]
    ) -> Regions:
        large = np.flatnonzero(wide >= self.least.min_unclipped_px)
        matrix, size = self.store.matrices[row], self.store.sizes_wh[row]
        polygons, on_page = to_page([polygons[i] for i in large], matrix, size)
        return Regions(score[large], short[large], wide[large], polygons, on_page)

    def growth(self, post: PostConfig, rows: np.ndarray) -> list["Page"]:
        """The regions of some pages for the growth of `post`, ready to be filtered and scored."""
        return [Page(self, row, found) for row, found in zip(rows, self.regions(post, rows), strict=True)]

    def exact(self, post: PostConfig, rows: np.ndarray) -> np.ndarray:
        """(P, 10) COUNTS of some pages by `detection.postprocess` and `evaluation.cleval`, nothing shared."""
        found: list[Detections] = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            found += detect(self.store.maps(some), self.store.matrices[some], self.store.sizes_wh[some], post)
        every = judged(zip(rows.tolist(), found, strict=True), self.pages, self.protocol)
        return counts_of([result for _, _, result in every])


def counts(growth: list["Page"], post: PostConfig) -> np.ndarray:
    """(P, 10) COUNTS of the pages of a growth with the filters of `post`."""
    return np.array([page.counts(post) for page in growth])


class Page:
    """One page: which filters leave the same regions is known, and the geometry is done once."""

    def __init__(self, judge: Judge, row: int, regions: Regions) -> None:
        self._judge, self._row, self._regions = judge, row, regions
        self._known: dict[bytes, list[int]] = {}
        self._four = np.array([len(p) == 4 for p in regions.polygons], bool)
        self._relations: Relations | None = None
        self._quads = False  # whether all texts are, once the relations are known

    def counts(self, post: PostConfig) -> list[int]:
        """COUNTS with the filters of `post`."""
        kept = self._regions.kept(post)
        key = kept.tobytes()
        if key not in self._known:
            self._known[key] = self._count(kept)
        return self._known[key]

    def _count(self, kept: np.ndarray) -> list[int]:
        if self._relations is None:
            sided = cleval_arguments(self._regions.polygons, self._row, self._judge.pages, self._judge.protocol)
            self._relations = relate(*sided, most=len(self._four))
            self._quads = all(len(text) == 4 for text in sided[1])
        # Official CLEval has another way for pages of quads alone; seldom are only such left of polygons.
        if self._relations.kind == "poly" and self._quads and self._four[kept].all():
            left = [self._regions.polygons[i] for i in kept]
            sided = cleval_arguments(left, self._row, self._judge.pages, self._judge.protocol)
            return list(evaluate_page(*sided).counts.values())
        return list(count_some(self._relations, kept).values())
