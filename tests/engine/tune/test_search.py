"""tune.search: gains are told from noise, and every set of pages decides alone."""

import numpy as np
import pytest
from PIL import Image
from search_studies import inside

from engine.config import PostConfig
from engine.config.load import load_config
from engine.evaluation.significance import groups_of, hmeans
from engine.tune.candidates import FILTERS, Judge
from engine.tune.search import (
    Found,
    asked,
    deal,
    gain_of,
    grid,
    growth_of,
    keyed,
    least_filters,
    options,
    search,
    space,
)
from pipelines.errors import UserError
from pipelines.index.bare import BareIndex
from tests.engine.tune.conftest import Receipts


def _pages(rng, size, hit=0.9):
    """(size, 10) COUNTS of pages with 100 characters, as many predicted, and about a share of `hit` found."""
    counts = np.zeros((size, 10), np.int64)
    counts[:, 0], counts[:, 1], counts[:, 2] = 1, 100, 100
    counts[:, 4] = rng.binomial(100, hit, size)
    return counts


def test_a_planted_gain_is_told_from_noise():
    """Of 300 comparisons without any difference 2.3 % should pass as gains; of 2 points more on 66 pages nearly all."""
    rng = np.random.default_rng(0)
    alone = np.arange(66)
    chance = [gain_of(_pages(rng, 66), _pages(rng, 66), alone, "micro").real for _ in range(300)]
    planted = [gain_of(_pages(rng, 66), _pages(rng, 66, 0.92), alone, "micro").real for _ in range(100)]
    assert np.mean(chance) < 0.06 and np.mean(planted) > 0.9


def test_the_standard_error_is_that_of_a_mean():
    """With equal pages the micro H-mean is the mean of the pages', and the jackknife's error sd / sqrt(n)."""
    rng = np.random.default_rng(1)
    start, chosen = _pages(rng, 40), _pages(rng, 40, 0.93)
    gain = gain_of(start, chosen, np.arange(40), "micro")
    each = (chosen[:, 4] - start[:, 4]) / 100
    assert gain.gain == pytest.approx(each.mean())
    assert gain.standard_error == pytest.approx(each.std(ddof=1) / np.sqrt(40))
    assert not gain_of(start, start, np.arange(40), "macro").real, "no difference is no gain"
    twice = np.repeat(np.arange(40), 2)
    doubled = gain_of(start.repeat(2, 0), chosen.repeat(2, 0), twice, "micro")
    assert doubled.standard_error == pytest.approx(gain.standard_error), "a copy is no new page"


def test_copies_of_a_page_share_a_fold(tmp_path):
    """Also a copy that was saved anew: another file, nearly the same picture."""
    config, _ = load_config(["preset=demo"])
    rng = np.random.default_rng(0)
    for row in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 24), np.uint8)).resize((240, 320)).save(tmp_path / f"{row}.png")
    with Image.open(tmp_path / "1.png") as picture:
        picture.resize((180, 240)).save(tmp_path / "5b.jpg", quality=60)
    pages = BareIndex(sorted(tmp_path.iterdir()))
    groups = groups_of(pages, config)
    assert groups.tolist() == [0, 1, 2, 3, 4, 5, 1]
    assert deal(groups, 3).tolist() == [0, 1, 2, 0, 1, 2, 1]
    with pytest.raises(UserError, match=r"--folds 7: data\.val has 6 different pages"):
        deal(groups, 7)


def test_what_is_tried_has_the_start_in_it():
    start = PostConfig(bin_thresh=0.03, unclip_ratio=4.0, box_thresh=0.05, min_size_px=1.5, max_candidates=7)
    assert grid(start)[0] == start and len({growth_of(post) for post in grid(start)}) == len(grid(start)) == 81
    assert all(options(name, start)[0] == getattr(start, name) for name in FILTERS)
    assert least_filters(start).min_size_px == 1.5 and least_filters(start).box_thresh == 0.05
    assert inside(space(start), keyed(space(start), start))
    assert growth_of(asked([Found(start, 0.9)], space(start), start)) != growth_of(start)


def test_the_search_finds_settings_that_each_set_decides_alone(real, monkeypatch):
    """Pages outside a set play no part: with other texts there, what the set finds stays the same."""
    store, pages = real
    monkeypatch.setattr("engine.tune.search.GRID", {"bin_thresh": (0.15, 0.5), "unclip_ratio": (1.5, 2.5)})
    start = PostConfig(box_thresh=0.85, unclip_ratio=0.8)
    first, rest = np.arange(6) < 3, np.arange(6) >= 3

    class Other(Receipts):
        def polygons(self, row):
            return super().polygons(row) if row < 3 else []

    results = []
    for these in (pages, Other()):
        judge = Judge(store, these, "contest", least_filters(start))
        results.append(search(judge, start, "micro", [first, rest], 2))
        before = float(hmeans(judge.exact(start, np.arange(3)), "micro"))
        found = results[-1][0].ranked[0]
        assert found.score > before + 0.01 and results[-1][0].tried > 200
        assert float(hmeans(judge.exact(found.post, np.arange(3)), "micro")) == pytest.approx(found.score, abs=1e-12)
    assert results[0][0].ranked == results[1][0].ranked and results[0][1].ranked != results[1][1].ranked
