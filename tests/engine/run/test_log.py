"""The run's folder, metrics.jsonl, what is shown, and W&B that is never in the way."""

import io
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from engine.config.load import from_dict, load_config, to_dict
from engine.files import replace_text
from engine.run import log as run_log
from engine.run import tracker
from engine.run.folder import folder_of, refuse_taken
from engine.run.log import MetricsLog, open_run, read_metrics
from engine.run.progress import Progress, duration, score_line, train_line
from engine.run.provenance import git_state, provenance
from engine.run.tracker import Tracker, choose_mode
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


def test_names_of_folders(tmp_path):
    named = folder_of(load(f"run_root={tmp_path}", "name=a"))
    assert named == tmp_path / "a"
    first, second = (folder_of(load(f"run_root={tmp_path}")).name for _ in "ab")
    assert first.startswith("demo-20") and len(first) == len(second) == len("demo-20261124-020500-123")


def test_an_existing_run_is_not_overwritten(tmp_path):
    config = load(f"run_root={tmp_path}", "name=a")
    (tmp_path / "a").mkdir()
    refuse_taken(tmp_path / "a", config)  # an empty folder is fine
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"exists already: give another name=NAME, or resume=auto"):
        refuse_taken(tmp_path / "a", config)
    refuse_taken(tmp_path / "a", load(f"run_root={tmp_path}", "name=a", "resume=auto"))


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


def test_git_state(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "f").write_text("1")
    for words in (["init", "-q"], ["add", "f"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path)["dirty"]


def test_provenance_depends_on_the_settings():
    one, two, same = (provenance(load(f"seed={seed}"), 1, "x")["config_sha256"] for seed in (1, 2, 1))
    assert one == same != two


def test_lines_leave_out_what_is_missing():
    assert train_line({"lr": 1e-3}) == "lr 1.00e-03" and score_line({}) == ""
    assert train_line({"loss": None, "lr": 1.0, "prob_loss": None}) == "lr 1.00e+00  loss nan (prob nan)"
    assert [duration(s) for s in (0, 59.6, 3723, -1)] == ["0:00", "1:00", "1:02:03", "0:00"]


def test_time_left(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("engine.run.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    shown = Progress(100, 1, 0, Console(file=out))
    shown.train({"step": 20})
    shown.train({"step": 40})
    first, second = out.getvalue().splitlines()
    assert "left" not in first and second.endswith("left 0:30")


def test_a_bar_on_a_terminal():
    out = io.StringIO()
    shown = Progress(100, 3, 0, Console(file=out, force_terminal=True, width=160))
    shown.train(TRAIN)
    shown.say("a line [with brackets]")
    time.sleep(0.6)
    shown.close()
    text = out.getvalue()
    assert "epoch 2/3" in text and "loss 2.3100" in text and "a line [with brackets]" in text and "\x1b[" in text


@pytest.fixture
def lonely(monkeypatch, tmp_path):
    """No W&B key, mode or server in the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_the_mode_of_wandb(lonely, tmp_path):
    assert choose_mode()[0] == "offline" and "no API key" in choose_mode()[1]
    with socket.create_server(("127.0.0.1", 0)) as server:
        lonely.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert choose_mode()[0] == "offline"
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password x\n")
        assert choose_mode()[0] == "online"
    assert choose_mode()[0] == "offline" and "does not answer" in choose_mode()[1]
    lonely.setenv("WANDB_MODE", "disabled")
    assert choose_mode()[0] == "disabled"


def test_wandb_without_a_key_is_offline_and_costs_nothing(lonely, tmp_path, capfd):
    labels = {"group": "the-study", "job_type": "model"}
    sent = Tracker("project", "name", to_dict(load()), tmp_path, labels)
    start = time.perf_counter()
    for step in range(500):
        sent.log({"train/loss": 1.0}, step)
    assert time.perf_counter() - start < 0.25  # 0.5 ms a call at most; measured 5 us
    sent.summary({"best": 0.9})
    deadline = time.monotonic() + 60
    sent._queue.put({"end": True})
    sent._thread.join(60)
    assert time.monotonic() < deadline and not sent.alive and sent.dropped == 0
    sent.close()
    (offline,) = (tmp_path / "wandb").glob("offline-run-*")
    (record,) = (file.read_bytes() for file in offline.glob("*.wandb"))
    assert len(record) > 1000 and b"the-study" in record and b"model" in record
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "W&B is offline: no API key" in err


@pytest.mark.parametrize("trial", [False, True])
def test_a_server_that_never_answers_holds_up_nothing(lonely, tmp_path, capfd, trial):
    lonely.setenv("WANDB_API_KEY", "a" * 40)
    lonely.setattr(tracker, "CLOSE_TIMEOUT_S", 1.0)
    lonely.setattr(tracker, "LINGER_S", 3.0)
    if trial:  # all its processes are ended with it: it waits for the whole time of the W&B process
        lonely.setenv(tracker.TRIAL, "token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        lonely.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        sent = Tracker("project", "name", {}, tmp_path)
        for step in range(50):
            sent.log({"a": 1.0}, step)
        start = time.perf_counter()
        sent.close()
        assert (2.5 if trial else 0.5) < time.perf_counter() - start < (4.0 if trial else 2.0)
    assert "still sending" in capfd.readouterr().err
    sent._child.kill()
    sent._thread.join(10)
    assert not sent._thread.is_alive()


def test_a_dead_tracker_stops_nothing(lonely, tmp_path, capfd):
    lonely.setattr(sys, "executable", "/bin/false")
    sent = Tracker("project", "name", {}, tmp_path)
    sent._thread.join(10)
    sent.log({"a": 1.0}, 1)
    sent.close()
    assert not sent.alive and "code 1" in capfd.readouterr().err
    lonely.setattr(sys, "executable", str(tmp_path / "missing"))
    sent = Tracker("project", "name", {}, tmp_path)
    sent._thread.join(10)
    sent.log({"a": 1.0}, 1)
    sent.close()
    assert "W&B stopped" in capfd.readouterr().err


def test_a_slow_tracker_drops_records_and_says_so(lonely, tmp_path, capfd):
    blocked = threading.Event()
    lonely.setattr(Tracker, "_run", lambda self, head: blocked.wait(30))
    lonely.setattr(tracker, "QUEUE_SIZE", 3)
    lonely.setattr(tracker, "CLOSE_TIMEOUT_S", 0.2)
    sent = Tracker("project", "name", {}, tmp_path)
    for step in range(10):
        sent.log({"a": 1.0}, step)
    sent.close()
    blocked.set()
    assert sent.dropped == 7 and "too slow for 7 records" in capfd.readouterr().err


def test_wandb_false_starts_nothing(tmp_path):
    log = open_run(tmp_path / "a", load(), MAIN)
    assert log.tracker is None
    log.close()
    assert from_dict(to_dict(load())).wandb is False
