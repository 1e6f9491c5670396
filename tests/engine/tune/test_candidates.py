"""tune.candidates: what settings share is exact, region by region and count by count."""

import dataclasses

import numpy as np
import pytest

from engine.config import PostConfig
from engine.detection.postprocess import detect
from engine.evaluation.cleval import CLEval, evaluate_page
from engine.evaluation.judge import cleval_arguments
from engine.evaluation.significance import hmeans
from engine.tune import candidates
from engine.tune.candidates import FILTERS, Judge
from engine.tune.search import least_filters


def _random(rng) -> PostConfig:
    return PostConfig(
        shape=str(rng.choice(["quad", "quad", "polygon"])),
        score_mode=str(rng.choice(["fast", "slow"])),
        bin_thresh=float(rng.uniform(0.1, 0.6)),
        unclip_ratio=float(rng.uniform(0.8, 3.0)),
        connectivity=int(rng.choice([4, 8])),
        box_thresh=float(rng.uniform(0.1, 0.9)),
        min_size_px=float(rng.uniform(2, 8)),
        min_unclipped_px=float(rng.uniform(2, 14)),
        max_candidates=int(rng.choice([3, 20, 1000])),
    )


@pytest.mark.parametrize("protocol", ["official", "contest"])
def test_the_shared_path_is_exact(real, protocol):
    """Region by region and count by count what postprocess and CLEval themselves give, for random settings."""
    store, pages = real
    rng, every = np.random.default_rng(3), np.arange(6)
    judge = Judge(store, pages, protocol, least_filters(PostConfig()))
    kept = 0
    for _ in range(4):
        growth = _random(rng)
        shared = judge.growth(growth, every)
        regions = judge.regions(growth, every)
        for _ in range(3):
            filters = {name: getattr(_random(rng), name) for name in FILTERS}
            post = dataclasses.replace(growth, **filters)
            expected = detect(store.maps(every), store.matrices, store.sizes_wh, post)
            counts = candidates.counts(shared, post)
            for row, page in enumerate(expected):
                which = regions[row].kept(post)
                assert len(which) == len(page.polygons)
                for a, b in zip((regions[row].polygons[i] for i in which), page.polygons, strict=True):
                    np.testing.assert_array_equal(a, b)
                result = evaluate_page(*cleval_arguments(page.polygons, row, pages, protocol))
                assert counts[row].tolist() == list(result.counts.values())
                kept += len(which)
    assert kept > 500, "nothing was compared"


@pytest.mark.parametrize("select", ["micro", "macro"])
def test_h_means_are_clevals(real, select):
    store, pages = real
    counts = Judge(store, pages, "contest", least_filters(PostConfig())).exact(
        PostConfig(min_size_px=2.0), np.arange(6)
    )
    metric = CLEval("contest")
    for row, page in enumerate(
        detect(store.maps(range(6)), store.matrices, store.sizes_wh, PostConfig(min_size_px=2.0))
    ):
        metric.add(evaluate_page(*cleval_arguments(page.polygons, row, pages, "contest")))
    key = "hmean" if select == "micro" else "hmean_macro"
    assert float(hmeans(counts, select)) == pytest.approx(metric.compute()[key], abs=1e-12)
    assert hmeans(np.zeros((0, 10)), select) == 0 and hmeans(np.zeros((4, 3, 10)), select).tolist() == [0.0] * 4
