"""Attempts on two real slurmd on this machine.

Opt-in: `pytest -m slow tests/engine/jobs/test_slurm.py` as root with Debian's slurm-wlm and munge; nine minutes.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import slurm_cluster
from search_attempts import attempt_at, tree, wait_for

from engine.jobs import executor as executors
from engine.jobs import remote
from engine.jobs.executor import open_executor
from engine.jobs.fence import side_file
from engine.run.log import read_metrics
from pipelines.errors import UserError
from tests.conftest import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    if missing := slurm_cluster.missing():
        pytest.skip(missing)
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path has 107 characters at most
    with slurm_cluster.running(folder) as environment:
        before = dict(os.environ)
        os.environ.update(environment)
        idle = ["sinfo", "-h", "-N", "-o", "%T"]
        wait_for(lambda: subprocess.run(idle, capture_output=True, text=True).stdout.split() == ["idle", "idle"], 30)
        yield folder
        os.environ.clear()
        os.environ.update(before)
    shutil.rmtree(folder)


@pytest.fixture
def on_slurm(cluster):
    executor = open_executor("slurm:partition=main,time=30,gpus=2", 4)
    yield executor
    executor.close()
    wait_for(lambda: not _squeue("%i"), 60)


def _squeue(form: str) -> list[str]:
    return subprocess.run(["squeue", "-h", "-o", form], capture_output=True, text=True, check=True).stdout.split()


def test_trials_run_on_both_nodes_with_gpus_of_their_own(tmp_path, on_slurm):
    attempts = [attempt_at(tmp_path, trial, SEARCH_TEST_SLEEP="2") for trial in range(3)]
    attempts.append(attempt_at(tmp_path, 3, mode="crash", SEARCH_TEST_SLEEP="2", SEARCH_TEST_AT="4"))
    handles = [on_slurm.start(attempt) for attempt in attempts]
    wait_for(lambda: all("GPUs" in attempt.log.read_text() for attempt in attempts), 60)
    nodes = dict(line.split("|") for line in _squeue("%i|%N"))
    seen = {
        (nodes[handle.job.job_id], re.search(r"GPUs (\S+)", handle.attempt.log.read_text())[1]) for handle in handles
    }
    assert seen == {("n1", "0,1"), ("n1", "2,3"), ("n2", "0,1"), ("n2", "2,3")}
    wait_for(lambda: all(on_slurm.poll(handle) for handle in handles), 60)
    ends = [on_slurm.poll(handle) for handle in handles]
    assert ends == [executors.Exit(0, "", False)] * 3 + [
        executors.Exit(1, "ValueError: this configuration crashes", False)
    ]


def test_what_runs_is_stopped_and_what_waits_is_taken_back(tmp_path, on_slurm):
    attempts = [attempt_at(tmp_path, trial, SEARCH_TEST_SLEEP="100") for trial in range(5)]
    handles = [on_slurm.start(attempt) for attempt in attempts]
    wait_for(lambda: sum("GPUs" in attempt.log.read_text() for attempt in attempts) == 4, 60)
    waiting = next(handle for handle in handles if "GPUs" not in handle.attempt.log.read_text())
    wait_for(lambda: not any(on_slurm.poll(handle) for handle in handles) and _squeue("%T").count("PENDING") == 1)
    on_slurm.stop(waiting, 10.0)
    assert wait_for(lambda: on_slurm.poll(waiting), 30) == executors.Exit(137, "stopped", False)
    handles.remove(waiting)
    on_slurm.stop(handles[0], 10.0)
    assert wait_for(lambda: on_slurm.poll(handles[0]), 30) == executors.Exit(143, "stopped", False)
    subprocess.run(["scancel", handles[1].job.job_id], check=True)  # by somebody else
    end = wait_for(lambda: on_slurm.poll(handles[1]), 60)
    assert end.outside, end
    on_slurm.close()
    assert not any(tree(attempt) for attempt in attempts)


def test_the_jobs_of_a_driver_that_was_killed_are_cancelled_when_it_starts_them_again(tmp_path, on_slurm):
    first, second = attempt_at(tmp_path, number=1, SEARCH_TEST_SLEEP="100"), attempt_at(tmp_path, number=2)
    old = on_slurm.start(first)
    wait_for(lambda: "GPUs" in first.log.read_text(), 60)
    after = open_executor("slurm:partition=main,time=30,gpus=2", 4)  # knows nothing of the first
    new = after.start(second)
    assert wait_for(lambda: after.poll(new), 60) == executors.Exit(0, "", False)
    assert not tree(first) and wait_for(lambda: on_slurm.poll(old), 60).outside
    assert not side_file(first.folder, "job").exists()


def test_a_node_that_does_not_see_the_code_says_so(tmp_path, on_slurm, monkeypatch):
    whole = remote.prepare
    monkeypatch.setattr(remote, "prepare", lambda attempt: {**whole(attempt), "cwd": str(tmp_path / "elsewhere")})
    handle = on_slurm.start(attempt_at(tmp_path))
    with pytest.raises(UserError, match=r"--executor slurm: .* cannot see .*elsewhere"):
        wait_for(lambda: on_slurm.poll(handle), 60)
    on_slurm._running.remove(handle)


def test_a_job_that_slurm_refuses_is_one_line(tmp_path, cluster):
    executor = open_executor("slurm:partition=nowhere,time=30", 1)
    with pytest.raises(UserError, match=r"--executor slurm: .*[Ii]nvalid partition"):
        executor.start(attempt_at(tmp_path))


@pytest.mark.parametrize("how", ["scontrol requeue", "scancel --signal=USR2"])
def test_a_requeued_training_goes_on_from_its_checkpoint(tmp_path, on_slurm, how):
    """As the same attempt; the driver sees nothing of it. SIGUSR2 is Slurm's warning of the time limit."""
    folder = tmp_path / "trials" / "001"
    train = ["-m", "engine.train", *TINY, "trainer.max_epochs=60", "trainer.overlays=0", f"run_root={folder.parent}"]
    base = attempt_at(tmp_path, OMP_NUM_THREADS="1")
    attempt = dataclasses.replace(base, command=[sys.executable, *train, "name=001", "resume=auto"])
    handle = on_slurm.start(attempt)

    def epochs() -> list[int]:
        metrics = folder / "metrics.jsonl"
        return [r["epoch"] for r in read_metrics(metrics) if r["kind"] == "validation"] if metrics.exists() else []

    wait_for(lambda: len(epochs()) >= 3, 120)
    job = handle.job.job_id
    subprocess.run([*how.split(), job], check=True)
    wait_for(lambda: not tree(attempt), 30)
    reached = epochs()[-1]
    assert reached < 60
    deadline = time.monotonic() + 300  # Slurm holds a requeued job back for two minutes
    while "resumed from" not in attempt.log.read_text():
        assert on_slurm.poll(handle) is None and time.monotonic() < deadline
        time.sleep(0.5)
    assert wait_for(lambda: on_slurm.poll(handle), 240) == executors.Exit(0, "", False)
    resumed = int(re.search(r"resumed from .*: epoch (\d+)", attempt.log.read_text())[1])
    assert resumed >= reached - 1 and epochs() == list(range(1, 61))
    print(f"requeued at epoch {reached}, resumed from epoch {resumed}")


def test_slurm_forgets_a_trial_by_cancelling_the_job_that_an_earlier_driver_left(tmp_path, monkeypatch):
    from engine.jobs import slurm

    for program in ("sbatch", "srun", "squeue", "scancel"):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/{program}.log\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "_import_submitit", lambda: None)
    executor = slurm.SlurmExecutor(1, {})
    executor.forget(tmp_path / "006")  # never submitted
    note = tmp_path / "007.job"
    note.write_text("4711\n")
    executor.forget(tmp_path / "007")
    jobs = [SimpleNamespace(job=SimpleNamespace(job_id=text)) for text in "1234"]
    executor._states = {"1": "PENDING", "2": "RUNNING", "3": "COMPLETED"}  # Slurm knows nothing of 4
    assert [executor.waits(job) for job in jobs] == [True, False, False, False]
    assert not note.exists() and (tmp_path / "scancel.log").read_text() == "4711\n"


def test_a_slurm_job_says_in_its_log_why_it_could_not_start_and_no_other_line_counts(tmp_path, capsys):
    from engine.jobs import slurm

    attempt, log = attempt_at(tmp_path), tmp_path / "job.out"
    mark = slurm.fault_mark(attempt)
    log.write_text("fault: a line of the trial's own\n")
    assert slurm._fault(log, mark) == "" == slurm._fault(tmp_path / "none", mark)
    order = {**remote.prepare(attempt), "cwd": str(tmp_path / "elsewhere")}
    slurm.Job(order, mark)()
    log.write_text(log.read_text() + capsys.readouterr().out + "fault: another\nattempt 0 could not start: x\n")
    assert slurm._fault(log, mark).endswith(
        f"cannot see {tmp_path}/elsewhere: the study and the code must be on a folder that all nodes share"
    )
