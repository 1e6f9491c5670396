"""evaluation.compare: differences and their standard errors."""

import numpy as np
import pytest

from engine.evaluation import compare
from engine.evaluation.cleval import CLEval, evaluate_page


def test_difference_and_its_standard_error_against_the_plain_jackknife():
    rng = np.random.default_rng(0)

    def page(shift):
        gt = [np.array([[x, 0], [x + 40, 0], [x + 40, 10], [x, 10]], np.float32) for x in range(0, 300, 50)]
        kept = [g + shift for g in gt if rng.random() < 0.7]
        return evaluate_page(kept, gt, ["abcd"] * len(gt))

    ours, theirs = [page(1) for _ in range(12)], [page(3) for _ in range(12)]
    for select, name in (("micro", "hmean"), ("macro", "hmean_macro")):

        def hmean(pages, name=name):
            metric = CLEval()
            for item in pages:
                metric.add(item)
            return metric.compute()[name]

        without = [hmean(ours[:i] + ours[i + 1 :]) - hmean(theirs[:i] + theirs[i + 1 :]) for i in range(len(ours))]
        gain, error = compare.difference(ours, theirs, select)
        assert gain == pytest.approx(hmean(ours) - hmean(theirs), abs=1e-12)
        assert error == pytest.approx(
            np.sqrt(11 / 12 * np.square(np.array(without) - np.mean(without)).sum()), rel=1e-6
        )
    assert compare.difference(ours, ours, "micro") == (0.0, 0.0)
    assert compare.difference(ours[:1], theirs[:1], "micro")[1] is None
    pairs = ((0.01, 0.004), (-0.01, 0.004), (0.01, 0.006), (0.5, None), (0.0, 0.0))
    assert [compare.verdict(*pair) for pair in pairs] == ["gain", "loss", "noise", "noise", "noise"]
