"""detection.ensemble_file: every value of the file is checked, and a run stays a run."""

import pytest
import yaml

from engine.detection import ensemble_file
from pipelines.errors import UserError


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "other"}, "no ensemble file"),
        ({"members": []}, "members must be a list"),
        ({"members": [{"checkpoint": 3}]}, "member 1: expected checkpoint"),
        ({"members": [{"checkpoint": "gone"}]}, "no such folder"),
        ({"flips": "x"}, "flips=x: allowed is none, h, v, hv"),
        ({"scales": [0.5]}, "1 must be among them"),
        ({"scales": [1, 1000]}, "0.25 to 4"),
        ({"scales": "big"}, "expected numbers"),
        ({"flips": ["h"]}, "flips="),
        ({"flips": {"h": 1}}, "flips="),
        ({"post": [1]}, "post must be settings"),
        ({"post": {"bin_tresh": 0.2}}, r"ensemble.yaml: .*post.bin_tresh"),
        ({"post": {"bin_thresh": "low"}}, r"ensemble.yaml: .*post.bin_thresh"),
        ({"members": [{"checkpoint": "x", "weight": 10**400}]}, "weight must be a number above 0"),
        ({"extra": 1}, "has no key extra"),
    ],
)
def test_an_ensemble_file_is_checked_field_by_field(trained, tmp_path, change, words):
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained)}]}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    assert len(ensemble_file.read(tmp_path)[0]) == 1
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values | change))
    with pytest.raises(UserError, match=words):
        ensemble_file.read(tmp_path)


@pytest.mark.parametrize("canvas", ["large", [True, 32], [33, 32], [32, 32, 32], [1 << 40, 32], {}, None, [[32], 32]])
def test_the_canvas_of_a_file_is_checked_as_eval_image_size(trained, tmp_path, canvas):
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained), "canvas": canvas}]}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"ensemble.yaml: member 1: canvas must be"):
        ensemble_file.read(tmp_path)


def test_a_canvas_of_one_number_is_a_square_as_in_the_settings(trained, tmp_path):
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained), "canvas": 96}]}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    assert [place.canvas for place in ensemble_file.read(tmp_path)[0]] == [(96, 96)]


def test_a_run_folder_with_an_ensembles_file_in_it_stays_a_run(trained, tmp_path):
    (tmp_path / "ensemble.yaml").write_text("kind: dbnet-ensemble")
    assert ensemble_file.is_ensemble(tmp_path) and ensemble_file.is_ensemble(tmp_path / "ensemble.yaml")
    (tmp_path / "checkpoints").mkdir()
    assert not ensemble_file.is_ensemble(tmp_path) and ensemble_file.is_ensemble(tmp_path / "ensemble.yaml")
