"""CLEval of many settings: counts per page, and H-means of sets of pages."""

from collections.abc import Callable

import numpy as np

from engine.cleval import COUNTS, count_some, evaluate_page, relate
from engine.config import PostConfig
from engine.evaluate import cleval_arguments
from engine.maps import MapStore
from engine.postprocess import Detections, detect
from engine.tune.candidates import Finder, Regions
from pipelines.index import ConcatIndex

COLUMN = {name: i for i, name in enumerate(COUNTS)}
BATCH = 8  # maps turned into floats together


def hmeans(counts: np.ndarray, select: str) -> np.ndarray:
    """H-mean of sets of pages, as `engine.cleval.CLEval.compute` has it.

    Args:
        counts: (..., P, 10) integers, COUNTS of P pages.
        select: micro (of the summed counts) or macro (mean over the pages).

    Returns:
        (...) float64, 0 of no pages.
    """
    if select == "micro":
        counts = counts.sum(-2)
    hit, gt, pred = (counts[..., COLUMN[name]].astype(float) for name in ("chars_hit", "chars_gt", "chars_pred"))
    recall = np.maximum(hit - counts[..., COLUMN["penalty_recall"]], 0) / np.where(gt > 0, gt, np.inf)
    precision = np.maximum(hit - counts[..., COLUMN["penalty_precision"]], 0) / np.where(pred > 0, pred, np.inf)
    both = recall + precision
    h = 2 * recall * precision / np.where(both > 0, both, 1.0)
    return h if select == "micro" else h.sum(-1) / max(h.shape[-1], 1)


class Judge:
    """Scores settings on stored maps.

    Args:
        store: maps of the pages. pages: their texts. protocol: of CLEval.
        least: see `Finder`.
    """

    def __init__(self, store: MapStore, pages: ConcatIndex, protocol: str, least: PostConfig) -> None:
        self.store, self.pages, self.protocol = store, pages, protocol
        self._finder = Finder(store, least)

    def growth(self, post: PostConfig, rows: np.ndarray) -> "Growth":
        """The regions of some pages for the growth of `post`, ready to be filtered and scored."""
        return Growth(
            [_Page(self, row, found) for row, found in zip(rows, self._finder.regions(post, rows), strict=True)]
        )

    def exact(self, post: PostConfig, tell: Callable[[], None] = lambda: None) -> np.ndarray:
        """(N, 10) COUNTS of all pages by engine.postprocess and engine.cleval themselves, nothing shared."""
        found: list[Detections] = []
        for start in range(0, len(self.store), BATCH):
            rows = np.arange(start, min(start + BATCH, len(self.store)))
            found += detect(self.store.maps(rows), self.store.matrices[rows], self.store.sizes_wh[rows], post)
            tell()
        return np.array([self.page_counts(row, page.polygons) for row, page in enumerate(found)])

    def page_counts(self, row: int, polygons: list[np.ndarray]) -> list[int]:
        """COUNTS of one page with these detections."""
        return list(evaluate_page(*cleval_arguments(polygons, row, self.pages, self.protocol)).counts.values())


class Growth:
    """Pages with the regions of one growth."""

    def __init__(self, pages: list["_Page"]) -> None:
        self._pages = pages

    def counts(self, post: PostConfig) -> np.ndarray:
        """(P, 10) COUNTS of the pages with the filters of `post`."""
        return np.array([page.counts(post) for page in self._pages])


class _Page:
    """One page: which filters leave the same regions is known, and the geometry is done once."""

    def __init__(self, judge: Judge, row: int, regions: Regions) -> None:
        self._judge, self._row, self._regions = judge, row, regions
        self._known: dict[bytes, list[int]] = {}
        self._four = np.array([len(p) == 4 for p in regions.polygons], bool)
        self._relations = None

    def counts(self, post: PostConfig) -> list[int]:
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
            return self._judge.page_counts(self._row, [self._regions.polygons[i] for i in kept])
        return list(count_some(self._relations, kept).values())
