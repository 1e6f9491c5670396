"""Attempts as child processes on this machine."""

import os
import re

import pytest
from search_attempts import attempt_at, run_all, tree, wait_for

from engine.jobs import executor as executors
from engine.jobs.local import LocalExecutor, visible_gpus


@pytest.mark.parametrize(
    ("agents", "gpus", "each", "idle"),
    [(1, "01234567", 8, ""), (8, "01234567", 1, ""), (3, "01234567", 2, "2 of 8 GPUs stay idle"), (4, "", 0, "")],
)
def test_gpus_are_split_evenly(agents, gpus, each, idle):
    executor = LocalExecutor(agents, list(gpus))
    assert (executor.slots, executor.gpus) == (agents, each) and executor.notice.startswith(idle)
    assert bool(executor.notice) == bool(idle)


def test_running_attempts_have_gpus_of_their_own_and_a_free_share_is_used_again(tmp_path):
    executor = LocalExecutor(2, ["0", "3", "5", "GPU-7"])
    attempts = [attempt_at(tmp_path, trial, SEARCH_TEST_SLEEP="0.05") for trial in range(4)]
    assert run_all(executor, attempts) == [executors.Exit(0, "", False)] * 4
    seen = [re.search(r"GPUs (\S+)", attempt.log.read_text())[1] for attempt in attempts]
    assert set(seen[:2]) == {"0,3", "5,GPU-7"} and set(seen) == {"0,3", "5,GPU-7"}
    executor.close()


def test_without_gpus_the_cores_are_split(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert LocalExecutor(1)._own(0) == {}
    assert LocalExecutor(5)._own(3) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert LocalExecutor(5)._own(3) == {}


@pytest.mark.parametrize(
    ("given", "found"), [("", []), ("-1", []), ("NoDevFiles", []), ("2", ["2"]), ("0, 1,GPU-ab", ["0", "1", "GPU-ab"])]
)
def test_gpus_come_from_the_environment_first(monkeypatch, given, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == found


def test_gpus_come_from_nvidia_smi_else(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


def test_close_leaves_nothing(tmp_path):
    executor = LocalExecutor(2)
    attempts = [
        attempt_at(tmp_path, trial, mode="children", SEARCH_TEST_SLEEP="0.1", SEARCH_TEST_EPOCHS="50")
        for trial in (1, 2)
    ]
    for attempt in attempts:
        executor.start(attempt)
    wait_for(lambda: all(any("time.sleep(300)" in line for line in tree(a).values()) for a in attempts))
    executor.close()
    assert not any(tree(attempt) for attempt in attempts)
