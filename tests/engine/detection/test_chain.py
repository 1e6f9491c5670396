"""The whole box formation on probability maps of a trained detector on real receipts, against a plain chain."""

import numpy as np
import pytest
import shapely
import torch

from bench.peers.classic_postprocess import classic_quads
from bench.receipts import lines, prob_maps
from engine.evaluation.cleval import CLEval, evaluate_page
from kernels.components import find_quads
from tests.conftest import DEVICE

BOX_THRESH = 0.3


def plain(prob: np.ndarray) -> np.ndarray:
    """(k, 4, 2) quads of findContours + minAreaRect + pyclipper on thousandths of a pixel, nothing rounded."""
    rules = {"half_pixel": True, "exact_score": True, "clipper_scale": 1000}
    return classic_quads(prob, box_thresh=BOX_THRESH, **rules)[0]


def matched_ious(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """IoU of every found quad with the expected quad it overlaps most."""
    found, expected = shapely.polygons(found)[:, None], shapely.polygons(expected)[None]
    return (shapely.area(shapely.intersection(found, expected)) / shapely.area(shapely.union(found, expected))).max(1)


def hmean(quads_by_page: list[np.ndarray]) -> float:
    """H-mean as `engine.evaluate` takes it with eval.protocol=contest: in whole pixels."""
    metric = CLEval(protocol="contest")
    for truth, quads in zip(lines(), quads_by_page, strict=True):
        sides = list(np.rint(quads)), [np.rint(line) for line in truth]
        metric.add(evaluate_page(*sides, None, np.zeros(len(truth), bool), "contest"))
    return metric.compute()["hmean"]


def test_equals_the_plain_chain_on_real_receipts():
    maps = prob_maps()
    found = find_quads(torch.from_numpy(np.stack(maps)), box_thresh=BOX_THRESH, implementation="reference")
    ours = [page[:count].numpy() for page, count in zip(found.quads, found.counts, strict=True)]
    theirs = [plain(prob) for prob in maps]
    assert [len(page) for page in ours] == [len(page) for page in theirs] and min(map(len, ours)) > 10
    ious = np.concatenate([matched_ious(a, b) for a, b in zip(ours, theirs, strict=True)])
    assert ious.mean() >= 0.995
    assert hmean(ours) == pytest.approx(hmean(theirs), abs=0.0005) and hmean(ours) > 0.9


@pytest.mark.parametrize("score_mode", ["fast", "slow"])
def test_kernels_equal_the_reference_on_real_receipts(score_mode):
    maps = torch.from_numpy(np.stack(prob_maps()))
    if DEVICE == "cpu":  # the interpreter takes half a minute a page
        maps = maps[:2, 400:560]
    want = find_quads(maps, score_mode=score_mode, implementation="reference")
    got = find_quads(maps.to(DEVICE), score_mode=score_mode, implementation="triton")
    assert want.counts.min() > 3
    assert torch.equal(got.counts.cpu(), want.counts) and torch.equal(got.scores.cpu(), want.scores)
    assert (got.quads.cpu() - want.quads).abs().max() <= 1e-4
