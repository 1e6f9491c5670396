"""A function instead of a training: what it reports becomes a curve, and what it returns its last value."""

import pytest

from engine.run.log import read_metrics
from engine.search import objective
from pipelines.errors import UserError


def curve(folder) -> list[tuple[int, float]]:
    return [(record["epoch"], record["hmean"]) for record in read_metrics(folder / "metrics.jsonl")]


def test_reports_and_the_returned_value_make_the_curve(tmp_path):
    def rising(values, report):
        report(1, values["x"])
        report(2, 2 * values["x"])
        return 3 * values["x"]

    objective.run(rising, {"x": 0.1}, tmp_path / "a", "val/hmean")
    assert curve(tmp_path / "a") == [(1, 0.1), (2, 0.2), (2, pytest.approx(0.3))]  # the later one counts
    objective.run(lambda values, report: 0.5, {}, tmp_path / "b", "val/hmean")
    assert curve(tmp_path / "b") == [(1, 0.5)]
    with pytest.raises(UserError, match="reported nothing"):
        objective.run(lambda values, report: None, {}, tmp_path / "c", "val/hmean")
    with pytest.raises(UserError, match="the objective is nan at epoch 1"):
        objective.run(lambda values, report: float("nan"), {}, tmp_path / "d", "val/hmean")


def test_a_function_that_is_not_there():
    assert objective.load("math:sqrt")(4) == 2
    for text, words in {"math": "module:function", "no.such:f": "No module", "math:nothing": "no function"}.items():
        with pytest.raises(UserError, match=words):
            objective.load(text)
