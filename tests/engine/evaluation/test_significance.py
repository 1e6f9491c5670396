"""engine.evaluation.significance against its formulas written out."""

import numpy as np
import pytest

from engine.evaluation.cleval import COUNTS, PageResult
from engine.evaluation.significance import SURE, counts_of, hmeans, standard_error, without_each


def _counts(rng, pages):
    """Pages with and without texts, detections, hits and penalties."""
    return rng.integers(0, 30, (pages, 10)) * (rng.random((pages, 10)) < 0.8)


@pytest.mark.parametrize("select", ["micro", "macro"])
@pytest.mark.parametrize("copies", [False, True])
def test_without_each_leaves_whole_groups_out(select, copies):
    rng = np.random.default_rng(5)
    counts = _counts(rng, 23)
    groups = np.unique(rng.integers(0, 9, 23), return_inverse=True)[1] if copies else np.arange(23)
    plain = [hmeans(counts[groups != group], select) for group in range(groups.max() + 1)]
    assert without_each(counts, select, groups if copies else None) == pytest.approx(plain, abs=1e-12)
    n, spread = len(plain), np.square(np.array(plain) - np.mean(plain)).sum()
    assert standard_error(np.array(plain)) == pytest.approx(np.sqrt((n - 1) / n * spread))


def test_the_error_is_that_of_repeated_samples():
    """1,000 sets of 40 pages: two standard errors hold the true value about 95 times in 100."""
    rng = np.random.default_rng(6)
    world = np.zeros((20_000, 10), np.int64)
    world[:, 1] = world[:, 2] = rng.integers(20, 200, len(world))
    world[:, 4] = rng.binomial(
        world[:, 1], rng.beta(8, 2, len(world))
    )  # pages differ in size, and in how hard they are
    true = hmeans(world, "micro")
    held = 0
    for _ in range(1000):
        sample = world[rng.integers(0, len(world), 40)]
        held += abs(hmeans(sample, "micro") - true) < SURE * standard_error(without_each(sample, "micro"))
    assert 0.92 < held / 1000 < 0.975


def test_no_pages_and_one_page():
    page = PageResult(dict.fromkeys(COUNTS, 1), 0.0, 0.0, 0.0, [], [])
    assert counts_of([page]).tolist() == [[1] * 10] and counts_of([]).shape == (0, 10)
    for select in ("micro", "macro"):
        assert standard_error(without_each(counts_of([page]), select)) is None
        assert standard_error(without_each(counts_of([]), select)) is None
        assert hmeans(counts_of([]), select) == 0
