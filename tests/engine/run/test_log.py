"""The run's folder, metrics.jsonl, what is shown, and W&B that is never in the way."""

import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest

from engine.config.load import load_config
from engine.files import replace_text
from engine.run import log as run_log
from engine.run.folder import folder_of
from engine.run.log import MetricsLog, open_run, read_metrics
from pipelines.errors import UserError

MAIN = SimpleNamespace(main=True, world_size=2, device=SimpleNamespace(type="cpu"))
OTHER = SimpleNamespace(main=False, world_size=2, device=SimpleNamespace(type="cpu"))
TRAIN = {
    "step": 20, "epoch": 1, "lr": 1e-4, "images_per_second": 96.24, "data_wait_share": 0.013, "loss": 2.31,
    "prob_loss": 0.2, "thresh_loss": 0.1, "binary_loss": 0.31,
}  # fmt: skip


def load(*argv):
    return load_config(["preset=demo", "trainer.max_epochs=6", *argv])[0]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_config_provenance_and_metrics(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    monkeypatch.setenv("NCCL_AUTH_TOKEN", "s3cret")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    config = load(f"run_root={tmp_path}", "name=a")
    folder = folder_of(config)
    log = open_run(folder, config, MAIN, steps_per_epoch=10)
    log.say("hello")
    log.train(TRAIN)
    log.validation({"step": 20, "epoch": 2, "hmean": 0.9, "seconds": 61.0})
    log.summary({"best": 0.9})
    log.close()
    assert load_config([f"preset={folder}/config.yaml"])[0] == config
    (session,) = json.loads((folder / "run.json").read_text())["sessions"]
    assert session["world_size"] == 2 and session["device"] and session["first_step"] == 0
    assert {"python", "torch", "triton", "timm", "numpy", "dali"} <= session["versions"].keys()
    assert session["environment"]["NCCL_DEBUG"] == "WARN" and "s3cret" not in (folder / "run.json").read_text()
    assert [(r["kind"], r["step"]) for r in lines(folder / "metrics.jsonl")] == [("train", 20), ("validation", 20)]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "hello"
    assert shown[1].startswith("epoch 2/6  step 20/60  96.2 img/s  data 1%  lr 1.00e-04  loss 2.3100 (prob 0.200")
    assert shown[2] == "epoch 2/6  validation  hmean 0.9000  in 1:01"


def test_other_ranks_are_silent(tmp_path, capfd):
    log = open_run(tmp_path / "a", load("wandb=true"), OTHER)
    log.say("x")
    log.train(TRAIN)
    log.summary({})
    log.close()
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_a_resume_cuts_later_records_and_keeps_earlier_sessions(tmp_path):
    config = load(f"run_root={tmp_path}", "name=a", "resume=auto")
    log = open_run(tmp_path / "a", config, MAIN)
    for step in (5, 10, 15, 20):
        log.train({**TRAIN, "step": step})
    log.close()
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2')  # torn by the kill
    log = open_run(tmp_path / "a", config, MAIN, step=10)
    log.train({**TRAIN, "step": 15, "loss": 9.0})
    log.close()
    assert [r["step"] for r in lines(tmp_path / "a" / "metrics.jsonl")] == [5, 10, 15]
    assert lines(tmp_path / "a" / "metrics.jsonl")[-1]["loss"] == 9.0
    assert [s["first_step"] for s in json.loads((tmp_path / "a" / "run.json").read_text())["sessions"]] == [0, 10]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_run(tmp_path / "file" / "a", load(), MAIN)


def test_numbers_that_json_lacks(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(
        {"a": math.nan, "b": -math.inf, "c": np.float32(0.5), "d": np.arange(2), "e": tmp_path, "f": [np.nan, True]}
    )
    assert lines(tmp_path / "m.jsonl") == [
        {"a": None, "b": None, "c": 0.5, "d": [0, 1], "e": str(tmp_path), "f": [None, True]}
    ], "on disk before close"
    log.close()


def test_a_full_disk_tears_and_loses_no_record(tmp_path, monkeypatch, capsys):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"step": 1})
    real = os.write
    room = [5, 0, 0]  # bytes a filling disk still takes

    def filling(file, data):
        left = room.pop(0)
        if not left:
            raise OSError(28, "No space left on device")
        return real(file, data[:left])

    with monkeypatch.context() as patch:
        patch.setattr(run_log.os, "write", filling)
        log.write({"step": 2})
        log.write({"step": 3})
        assert (tmp_path / "m.jsonl").read_text() == '{"step": 1}\n{"ste' and not room
    log.write({"step": 4})
    log.close()
    assert [r["step"] for r in lines(tmp_path / "m.jsonl")] == [1, 2, 3, 4]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "(No space left on device)" in errors[0] and "written again" in errors[1]


def test_records_that_never_found_room_are_counted(tmp_path, monkeypatch, capsys):
    log = MetricsLog(tmp_path / "m.jsonl")
    monkeypatch.setattr(run_log, "BACKLOG_BYTES", 30)
    monkeypatch.setattr(run_log.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for step in range(5):
        log.write({"step": step})
    log.close()
    assert log.lost == 2 and "5 records are missing" in capsys.readouterr().err


def test_files_are_replaced_in_one_move(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    replace_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left")

    monkeypatch.setattr(run_log.os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_metrics_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "none.jsonl")
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n[1]\n\n{"st\n3\n')
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1}]
