"""CLEval of many settings: counts per page."""

import numpy as np

from engine.cleval import count_some, evaluate_page, relate
from engine.config import PostConfig
from engine.evaluate import cleval_arguments
from engine.maps import MapStore
from engine.postprocess import Detections, detect
from engine.tune.candidates import Finder, Regions
from pipelines.index import ConcatIndex

BATCH = 8  # maps turned into floats together


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

    def exact(self, post: PostConfig, rows: np.ndarray) -> np.ndarray:
        """(P, 10) COUNTS of some pages by engine.postprocess and engine.cleval themselves, nothing shared."""
        found: list[Detections] = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            found += detect(self.store.maps(some), self.store.matrices[some], self.store.sizes_wh[some], post)
        return np.array([self.page_counts(row, page.polygons) for row, page in zip(rows.tolist(), found, strict=True)])

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
