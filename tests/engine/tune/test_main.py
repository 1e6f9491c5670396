"""`engine.tune` on a trained detector: what is written, and what is said where it cannot be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.checkpoint import store as checkpoint
from engine.run.folder import Lock
from engine.tune import __main__ as tune
from engine.tune import record
from pipelines.errors import UserError
from tests.conftest import ROOT, TINY


def _copy(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def _val(trained) -> str:
    """The built-in validation pages, which the run was judged on."""
    return str(next((trained.parent / ".synthetic").glob("*-4x*/annotations.json")))


QUICK = {"bin_thresh": (0.2,), "unclip_ratio": (1.5,)}


def test_the_command_on_a_trained_detector(trained, tmp_path, monkeypatch, capsys):
    """JSON, what engine.evaluate says of the same settings, and no file with --no-write."""
    from engine import evaluate

    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    run, base = _copy(trained, tmp_path), ["data.val=" + _val(trained), "data.threads=1", "eval.protocol=contest"]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    arguments = [f"checkpoint={run}", *base, "post.box_thresh=0.1", "--folds", "2", "--trials", "1", "--json"]
    assert tune.main([*arguments, "--no-write"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert not result["applied"] and result["settings_tried"] > 50 and result["start"]["box_thresh"] == 0.1
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    for which in ("start", "best"):
        post = [f"post.{key}={value}" for key, value in result[which].items()]
        assert evaluate.main([f"checkpoint={run}", *base, *post]) == 0
        assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(result["hmean"][which], abs=1e-12)
    assert abs(result["hmean"]["start"] - result["hmean_8bit"]["start"]) < 0.05


def test_a_gain_is_written_and_the_run_goes_on(trained, tmp_path, monkeypatch, capsys):
    from engine import train

    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    monkeypatch.setattr(tune, "verdict", lambda tuned, real: (True, "planted"))
    run = _copy(trained, tmp_path)
    base = [f"checkpoint={run}", "data.val=" + _val(trained), "data.threads=1", "eval.protocol=contest"]
    saved_before = checkpoint.load_settings(checkpoint.locate(run))["post"]
    assert tune.main([*base, "--folds", "2", "--trials", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    best = checkpoint.locate(run)
    assert result["applied"] and checkpoint.verify(best) == ""
    saved = checkpoint.load_settings(best)
    assert saved["post"] == result["best"] and saved["eval"]["protocol"] == "official", "only post.* is written"
    assert json.loads((best / record.NAME).read_text())["best"] == result["best"]
    assert (run / "tune.png").stat().st_size > 5000
    assert train.main([*TINY, "name=run", f"run_root={tmp_path}", "resume=auto", "trainer.max_epochs=3"]) == 0
    assert checkpoint.load_state(run / "checkpoints" / "last")["epoch"] == 3
    assert f"note: engine.tune has written post settings into {best.resolve().name}" in capsys.readouterr().err
    assert checkpoint.load_settings(run / "checkpoints" / "last")["post"] == saved_before


def test_what_cannot_be_done_is_said(trained, tmp_path):
    run, val = _copy(trained, tmp_path), "data.val=" + _val(trained)
    for arguments, words in (
        ([f"checkpoint={run}"], "data.val=PATH is missing"),
        ([val], "checkpoint=PATH is missing"),
        ([f"checkpoint={run}", val, "--trials", "0"], "--trials 0 --folds 5: at least 1 trial"),
        ([f"checkpoint={run}", val, "--folds", "1"], "at least 1 trial and 2 folds"),
        ([f"checkpoint={run}", val, "--folds", "9"], "--folds 9: data.val has 4 different pages"),
        ([f"checkpoint={run}", val, "--trials", "many"], "invalid int value"),
        ([f"checkpoint={run}", val, "post.bin_tresh=1"], "did you mean post.bin_thresh"),
        ([f"checkpoint={run}", val, "--folds", "4", "models.decoder.inner_channels=16"], "of another model"),
        ([f"checkpoint={run}", f"data.val={tmp_path / 'none'}"], "none"),
    ):
        with pytest.raises(UserError, match=words):
            tune.main(arguments)
    lock = Lock(run)
    try:
        with pytest.raises(UserError, match=r"in use by pid \d+ .*: tune it when that has ended, or with --no-write"):
            tune.main([f"checkpoint={run}", val])
    finally:
        lock.close()


def test_a_result_is_shown_as_it_is_when_it_cannot_be_written(trained, tmp_path, monkeypatch, capsys):
    """A training that began meanwhile, or a full disk: the settings are not lost, and not called applied."""
    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    monkeypatch.setattr(tune, "verdict", lambda tuned, real: (True, "planted"))

    def refuse(*_):
        raise UserError("in use")

    monkeypatch.setattr(record, "apply", refuse)
    run = _copy(trained, tmp_path)
    command = [f"checkpoint={run}", "data.val=" + _val(trained), "data.threads=1", "eval.image_size=[64,96]"]
    with pytest.raises(UserError, match="in use"):
        tune.main([*command, "--folds", "2", "--trials", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["applied"] is False
    tune._say_written(command, run, quiet=True)
    shown = capsys.readouterr()
    assert "found with eval.image_size=[64,96], which is not written" in shown.err


def test_an_ensemble_is_tuned_as_one_detector(trained, tmp_path, monkeypatch, capsys):
    """Of one model on its own canvas, so that engine.evaluate must say the same; its file keeps the settings."""
    from engine import evaluate

    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    monkeypatch.setattr(tune, "verdict", lambda tuned, real: (True, "planted"))
    file = tmp_path / "ensemble.yaml"
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained)}], "flips": "none"}
    file.write_text(yaml.safe_dump(values | {"post": {"box_thresh": 0.1}}))
    base = ["data.val=" + _val(trained), "data.threads=1", "eval.protocol=contest"]
    assert tune.main([f"checkpoint={tmp_path}", *base, "--folds", "2", "--trials", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["applied"] and result["start"]["box_thresh"] == 0.1 and result["checkpoint"] == str(file)
    assert yaml.safe_load(file.read_text()) == values | {"post": result["best"]}
    assert json.loads((tmp_path / record.NAME).read_text())["best"] == result["best"]
    assert (tmp_path / "tune.png").exists()
    post = [f"post.{key}={value}" for key, value in result["best"].items()]
    assert evaluate.main([f"checkpoint={trained}", *base, *post]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(result["hmean"]["best"], abs=1e-12)


def test_help_comes_without_a_checkpoint():
    done = subprocess.run(
        [sys.executable, "-m", "engine.tune", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--folds" in done.stdout and "tune.json" in done.stdout
