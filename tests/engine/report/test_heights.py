"""report.heights: characters by the height of their text."""

import numpy as np

from engine.evaluation.cleval import evaluate_page
from engine.report.heights import EDGES_PX, ByHeight, heights


def box(x, y, width, height):
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)


def test_characters_by_height():
    gt = [box(0, 0, 100, 10), box(0, 40, 100, 20), box(0, 90, 100, 20), box(0, 150, 100, 40)]
    pred = [gt[0] + 0.5, box(0, 40, 100, 70), box(300, 300, 90, 5)]
    assert heights(gt).tolist() == [10, 20, 20, 40] and len(heights([])) == 0
    result = evaluate_page(pred, gt, ["four", "four", "four", "###"], characters=True)
    sums = ByHeight()
    sums.add(heights(gt), heights(pred), 0.5, result)
    sums.add(heights([]), heights([]), 1.0, evaluate_page([], [], [], characters=True))
    rows = {row.low: row for row in sums.rows()}
    assert set(rows) <= set(map(float, EDGES_PX)) and list(rows) == [0.0, 4.0, 10.0, 32.0]
    assert (rows[4.0].recall, rows[4.0].precision, rows[4.0].source) == (1.0, 1.0, (10.0, 10.0))
    assert (rows[10.0].texts, rows[10.0].merged, rows[10.0].recall, rows[10.0].precision) == (2, 2, 1.0, None)
    assert (rows[0.0].false, rows[0.0].precision, rows[0.0].recall) == (1, 0.0, None)
    assert rows[32.0].precision == 7 / 8
    assert sums.gt.sum(0)[0] == result.counts["chars_gt"] and sums.pred.sum(0)[0] == result.counts["chars_pred"]
