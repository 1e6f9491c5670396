"""Weights & Biases is kept out of the way of a training."""

import os
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from engine.config.load import from_dict, load_config, to_dict
from engine.run import tracker
from engine.run.log import open_run
from engine.run.tracker import Tracker, choose_mode

MAIN = SimpleNamespace(main=True, world_size=2, device=SimpleNamespace(type="cpu"))


def load(*argv):
    return load_config(["preset=demo", "trainer.max_epochs=6", *argv])[0]


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
