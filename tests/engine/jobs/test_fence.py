"""Of several attempts at one trial only the newest writes."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import time
import uuid

import pytest
from search_attempts import TREE, attempt_at, tree, wait_for

from engine.jobs import attempt as wrapper
from engine.jobs import executor as executors
from engine.jobs import fence
from engine.run.log import read_metrics
from tests.engine.jobs.conftest import trainings


def test_of_two_attempts_the_newer_one_writes(tmp_path, local):
    first = attempt_at(tmp_path, number=1, SEARCH_TEST_SLEEP="0.05", SEARCH_TEST_EPOCHS="10000")
    second = attempt_at(tmp_path, number=2)
    old = local.start(first)
    metrics = first.folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and read_metrics(metrics))
    new = local.start(second)
    assert wait_for(lambda: local.poll(new)) == executors.Exit(0, "", False)
    assert not tree(first)  # it had to be gone before the second began
    assert [r["epoch"] for r in read_metrics(metrics)] == [1, 2, 3, 4, 5]
    assert wait_for(lambda: local.poll(old)).outside and executors.read_record(first) == {}
    late = local.start(attempt_at(tmp_path, number=1))
    end = wait_for(lambda: local.poll(late))
    assert (end.code, end.outside) == (wrapper.EXIT_FENCED, True)
    assert executors.read_record(second)["code"] == 0  # its record stays


def test_a_requeued_job_fences_its_first_life(tmp_path, local):
    first = attempt_at(tmp_path, SEARCH_TEST_SLEEP="30")
    again = dataclasses.replace(
        first, environment={**first.environment, TREE: uuid.uuid4().hex, "SEARCH_TEST_SLEEP": "0"}
    )
    local.start(first)
    wait_for(lambda: trainings(tree(first)))
    new = local.start(again)
    assert wait_for(lambda: local.poll(new)).code == 0
    assert not tree(first)


def test_an_older_attempt_that_is_stopped_is_killed(tmp_path, local):
    first, second = attempt_at(tmp_path, SEARCH_TEST_SLEEP="30"), attempt_at(tmp_path, number=2)
    old = local.start(first)
    wait_for(lambda: trainings(tree(first)))
    os.kill(old.job.pid, signal.SIGSTOP)
    new = local.start(second)
    assert wait_for(lambda: local.poll(new)).code == 0
    assert not tree(first)


def test_a_takeover_from_another_host_waits_for_it_to_notice(tmp_path, monkeypatch):
    """flock may not reach from host to host; the token does."""
    monkeypatch.setattr(fence, "OTHER_HOST_S", 0.3)
    monkeypatch.setattr(fence, "WAIT_S", 0.3)
    folder = tmp_path / "007"

    def enter(token):
        return fence.enter(folder, 2, "b", token, lambda: "")

    record = {"attempt": 1, "id": "a", "token": "old", "host": "elsewhere", "pid": os.getpid()}
    for end, least, most in [({"token": "old"}, 0.0, 0.2), ({"token": "older"}, 0.3, 2.0), ({}, 0.3, 2.0)]:
        fence.side_file(folder, "lock").write_text(json.dumps(record))
        fence.side_file(folder, "exit").write_text(json.dumps(end))
        begin = time.monotonic()
        lock = enter("new")
        assert least <= time.monotonic() - begin < most
        assert fence.current(folder, "new") and not fence.current(folder, "old")
        os.close(lock)
    with open(fence.side_file(folder, "lock")) as held, pytest.raises(fence.Fenced, match=r"still held by .* on vm-7"):
        fence.side_file(folder, "lock").write_text(json.dumps({**record, "host": "vm-7"}))
        fcntl.flock(held, fcntl.LOCK_EX)
        enter("third")


def test_without_flock_the_token_decides(tmp_path, monkeypatch):
    def no_flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    monkeypatch.setattr(fence, "OTHER_HOST_S", 0.3)
    folder, begin = tmp_path / "007", time.monotonic()
    os.close(fence.enter(folder, 1, "a", "first", lambda: ""))
    assert time.monotonic() - begin < 0.2
    os.close(fence.enter(folder, 1, "a", "second", lambda: ""))  # on the same host, but nothing tells of the first
    assert time.monotonic() - begin >= 0.3 and not fence.current(folder, "first")


def test_a_torn_fence_changes_nothing(tmp_path):
    fence.side_file(tmp_path / "007", "lock").write_text('{"attempt": 1, "tok')
    assert fence.current(tmp_path / "007", "mine")
