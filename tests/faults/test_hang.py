"""A rank that stops (SIGSTOP) or stands still: the others name it, show their stacks, and all are gone in time."""

import os
import signal
import time
from pathlib import Path

import pytest

from . import harness
from .harness import Outcome

LIMIT_S, GONE_S = 30.0, 75.0


def scenario(folder: Path, limit_s: float, restart: bool = True) -> Outcome:
    """Stops rank 1 of two in the middle of an epoch; restarts afterwards."""
    run = folder / "hung"
    settings = [*harness.SETTINGS, f"run_root={folder}", "name=hung", "trainer.checkpoint_every_steps=2"]
    settings += ["resume=auto", f"trainer.hang_timeout_s={limit_s:g}", "trainer.max_epochs=100"]
    job = harness.start(settings, folder, ranks=2)
    harness.wait_until_step(job, run, 5)
    os.kill(harness.rank_pids(job)[1], signal.SIGSTOP)
    begin = time.monotonic()
    harness.wait_for(lambda: "shows no sign of life" in harness.output(job), limit_s + 15, job)
    named = time.monotonic() - begin
    code = harness.finish(job, GONE_S)
    gone = time.monotonic() - begin
    said = harness.output(job)
    assert code != 0 and "exitcode  : 71" in said, said
    assert "error: rank 0 has waited" in said and "rank 1 shows no sign of life" in said
    assert "engine/train.py" in said[said.index("Stacks of rank 0") :], "its own stacks"
    assert named <= limit_s + 10 and gone <= limit_s + 45, (named, gone)
    known, saved = harness.last_step(run), harness.saved_step(run)
    note, seconds = f"named after {named:.0f} s (limit {limit_s:g} s), all gone after {gone:.0f} s", ()
    if restart:
        job = harness.start([*settings, f"trainer.max_steps={known + 3}"], folder, ranks=2)
        first, took = harness.wait_resumed(job, run)
        assert first == saved
        assert harness.finish(job) == 0, harness.output(job)
        seconds = (took,)
    return Outcome("one rank hangs (SIGSTOP)", 1, 1, (known - saved,), seconds, note=note)


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_all_are_gone_in_75_s(tmp_path):
    outcome = scenario(tmp_path, LIMIT_S)
    print(outcome.note)


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_too(tmp_path):
    settings = [*harness.SETTINGS, f"run_root={tmp_path}", "name=still", "trainer.hang_timeout_s=8"]
    fault = '{"kind": "sleep", "rank": 1, "steps": [4]}'
    job = harness.start(settings, tmp_path, ranks=2, module="tests.faults.inject", env={"FAULT": fault})
    assert harness.finish(job, 60) != 0
    said = harness.output(job)
    # rank 1 stands in its fourth step, rank 0 waits in it: both have done three, and where each is tells
    assert "no rank gets on: rank 0 in " in said and "rank 1 in faults/inject.py:" in said, said


def test_one_process_that_stands_still_ends_and_shows_where(tmp_path):
    settings = [*harness.SETTINGS, f"run_root={tmp_path}", "name=alone", "trainer.hang_timeout_s=3"]
    fault = '{"kind": "sleep", "rank": 0, "steps": [3]}'
    job = harness.start(settings, tmp_path, module="tests.faults.inject", env={"FAULT": fault})
    assert harness.finish(job, 60) == 71
    said = harness.output(job)
    assert "rank 0 does not get on" in said and "in planted" in said
