"""detection.open: what a name means, and whose settings come last."""

import shutil

import numpy as np
import yaml

from engine.detection import ensemble_file
from engine.detection.ensemble import Ensemble
from engine.detection.open import open_ensemble as load
from engine.detection.open import open_member
from engine.detection.pages import detect_pages
from engine.distributed import start
from engine.ensemble.__main__ import find
from pipelines.index.bare import BareIndex


def test_detections_of_a_run_with_itself_are_its_own(trained, tmp_path):
    """Through files: the same boxes as engine.evaluate's, from ensemble.yaml too."""
    ranks = start("auto")
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    places = find([str(trained), str(copy)])
    both = Ensemble([open_member(place, ["post.bin_thresh=0.05", "post.box_thresh=0"], ranks) for place in places])
    config = ensemble_file.joint_config(both)
    path = ensemble_file.save(tmp_path, both, places, config)
    entries = yaml.safe_load(path.read_text())["members"]
    assert entries[1]["checkpoint"].startswith("copy/") and entries[0]["checkpoint"].startswith("/")
    again, config_again = load(tmp_path, ranks)
    assert config_again.post == config.post and again.canvas == (96, 128)
    pages = BareIndex(sorted((trained.parent / ".synthetic").rglob("*.jpg"))[:3])
    results = [list(detect_pages(forward, pages, config, ranks)) for forward in (both.members[0].forward, both, again)]
    assert sum(len(found.polygons) for _, found in results[0]) > 0
    for other in results[1:]:
        for (row, found), (row_, found_) in zip(results[0], other, strict=True):
            assert row == row_ and np.array_equal(found.polygons, found_.polygons)
            assert np.array_equal(found.scores, found_.scores)


def test_settings_of_the_command_line_come_after_those_of_the_file(trained, tmp_path):
    values = {"kind": "dbnet-ensemble", "version": 1, "post": {"bin_thresh": 0.2, "box_thresh": 0.6}}
    values["members"] = [{"checkpoint": str(trained), "canvas": [64, 96]}]
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    ensemble, config = load(tmp_path, start("auto"))
    assert ensemble.canvas == (64, 96) and (config.post.bin_thresh, config.post.box_thresh) == (0.2, 0.6)
    ensemble, config = load(tmp_path, start("auto"), ["eval.image_size=[128,128]", "post.box_thresh=0.1"])
    assert ensemble.canvas == (128, 128) and (config.post.bin_thresh, config.post.box_thresh) == (0.2, 0.1)
