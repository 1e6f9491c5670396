"""visualization.curves: pictures of whole and broken metrics."""

import json

import cv2
import pytest

from engine.visualization.curves import curves
from pipelines.errors import UserError


def records():
    for step in range(1, 9):
        loss = None if step == 3 else 2.0 / step
        yield {"kind": "train", "step": step, "epoch": step // 4, "loss": loss, "prob_loss": 1 / step, "lr": 1e-3}
    yield {"kind": "validation", "step": 4, "epoch": 1, "hmean": 0.5, "precision": 0.6, "recall": 0.4}
    yield {"kind": "test", "step": 8, "hmean": 0.7}


@pytest.mark.parametrize("kept", [slice(None), slice(0, 1), slice(8, 9)], ids=["all", "one step", "one score"])
def test_curves(tmp_path, kept):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(r) + "\n" for r in list(records())[kept]) + '{"torn')
    picture = cv2.imread(str(curves(metrics, tmp_path / "new" / "curves.png")))
    assert picture.shape[0] > 600 and (picture < 200).mean() > 0.003


def test_curves_of_nothing(tmp_path):
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(UserError, match="no records"):
        curves(tmp_path / "m.jsonl", tmp_path / "c.png")
    with pytest.raises(UserError, match="cannot be read"):
        curves(tmp_path / "none.jsonl", tmp_path / "c.png")
