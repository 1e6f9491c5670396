"""A disk that is full or read-only, a run folder deleted under the run: training goes on, and nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint import store, writer
from engine.run.log import MetricsLog, read_metrics
from pipelines.errors import UserError
from tests.conftest import TINY
from tests.faults import harness

# A real training whose writer tries again sooner than after 10 s, and is patient for 2 s at the end.
TRAIN = (
    "from engine import cli, train\n"
    "from engine.checkpoint import writer\n"
    "writer.RETRY_S, writer.PATIENCE_S = (0.3, 0.6), 2.0\n"
    "writer.Writer.wait.__defaults__ = (2.0,)\n"
    "cli.run(train.main)"
)
SETTINGS = (
    *TINY,
    "name=run",
    "trainer.max_epochs=30",  # of 4 steps, 25 ms each
    "trainer.checkpoint_every_steps=3",
    "eval.every_epochs=5",
    "trainer.max_failed_saves=0",
)


@pytest.fixture
def disk(tmp_path):
    """A file system of 64 MB of its own; a checkpoint of the tiny model takes 5."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The same run, undisturbed."""
    folder = tmp_path_factory.mktemp("calm")
    job = start(folder, folder)
    assert harness.finish(job) == 0, harness.output(job)
    return folder / "run"


def start(root: Path, log: Path, *settings: str) -> harness.Job:
    command = [sys.executable, "-c", TRAIN, *SETTINGS, f"run_root={root}", *settings]
    return harness.start_command(command, log)


def fill(disk: Path) -> Path:
    """Takes all the space there is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def saved(job: harness.Job, run: Path) -> None:
    """Waits for the first checkpoint."""
    harness.wait_for((run / "checkpoints" / "last").exists, 120, job)


def whole(run: Path) -> bool:
    """Everything of a finished run is there, and nothing else."""
    steps = [r["step"] for r in harness.metrics(run)]
    assert steps == list(range(1, 121)), steps
    assert {"config.yaml", "run.json", "summary.json", "curves.png", "overlays"} <= {p.name for p in run.iterdir()}
    assert harness.faults_of(run) == {} and not list(run.rglob(".*"))
    return json.loads((run / "summary.json").read_text())["step"] > 0


def parts(value: float = 0.0) -> dict:
    return {"model": {"w": torch.full((2**18,), value)}}  # 1 MB


def test_a_writer_tries_again_until_the_disk_has_room(disk, monkeypatch, capsys):
    monkeypatch.setattr(writer, "RETRY_S", (0.1,))
    folder = disk / "checkpoints"
    saver = writer.Writer(folder, 2, 1, max_failed=3)
    saver.save(parts(), {"step": 1, "score": 0.5}, "", best=True)
    saver.wait()
    filler = fill(disk)
    saver.save(parts(), {"step": 2, "score": 0.9}, "", best=True)
    harness.wait_for(lambda: saver.failures, 10)
    time.sleep(0.3)
    assert os.listdir(folder) and not list(folder.glob(".tmp*")), "half a checkpoint keeps a full disk full"
    saver.save(parts(), {"step": 3, "score": 0.7}, "")
    harness.wait_for(lambda: saver.failures == 2, 10)
    saver.refuse()
    filler.unlink()
    harness.wait_for(lambda: not saver.failures, 10)
    # The best of the run, step 2, was never written: the best of those that were takes its place.
    assert store.newest(folder).name == (folder / "best").resolve().name == "step_00000003"
    assert (folder / "last").resolve().name == "step_00000003"
    error = capsys.readouterr().err
    assert error.count("WARNING") == 2 and "checkpoint of step 2 not written" in error and "No space left" in error
    assert "step_00000003 is written, after 2 that could not be" in error
    fill(disk)
    for step in (4, 5, 6):
        saver.save(parts(), {"step": step}, "")
        harness.wait_for(lambda step=step: saver.failures == step - 3, 10)
    with pytest.raises(UserError, match=r"the last 3 checkpoints could not be written \(No space left on device\)"):
        saver.refuse()
    assert store.verify(folder / "last") == ""


def test_metrics_on_a_full_disk_and_in_a_deleted_folder(disk, capsys):
    run = disk / "run"
    run.mkdir()
    log = MetricsLog(run / "metrics.jsonl", beside={"config.yaml": "seed: 0\n"})
    log.write({"step": 1})
    filler = fill(disk)
    for step in range(2, 400):
        log.write({"step": step, "loss": 1 / step})
    filler.unlink()
    log.write({"step": 400})
    shutil.rmtree(run)
    log.write({"step": 401})
    log.close()
    records = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in records] == list(range(1, 402))
    assert (run / "config.yaml").read_text() == "seed: 0\n"
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 3 and "No space left" in error[0] and "nothing is missing" in error[1]
    assert "was deleted under the run" in error[2]


@pytest.mark.slow
@pytest.mark.parametrize("log_there_too", [False, True])
def test_a_disk_that_fills_up_and_is_freed(disk, tmp_path, calm, log_there_too):
    job = start(disk, disk if log_there_too else tmp_path, "trainer.profile=true")
    saved(job, disk / "run")
    filler = fill(disk)
    before = store.newest(disk / "run" / "checkpoints")
    if log_there_too:
        time.sleep(1.5)
    else:  # the last page of metrics.jsonl has room for some records
        harness.wait_for(lambda: "records wait in memory" in harness.output(job), 60, job)
    assert job.process.poll() is None and store.verify(before) == ""
    filler.unlink()
    assert harness.finish(job) == 0, harness.output(job)
    assert whole(disk / "run") and harness.differences(disk / "run", calm) == []
    said = harness.output(job)
    if not log_there_too:
        assert "not written" in said and "No space left on device" in said and "is written, after" in said
        assert "nothing is missing" in said
    assert said.count("WARNING: checkpoint") <= 7  # of the 1st, 2nd, 4th, ... of at most 50 intervals


@pytest.mark.slow
def test_a_disk_that_turns_read_only_and_back(disk, tmp_path, calm):
    """A second, read-only mount over the first: files that are open stay writable, as no mount takes that away."""
    job = start(disk, tmp_path)
    saved(job, disk / "run")
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
    try:
        with pytest.raises(OSError, match="Read-only"):
            (disk / "x").touch()
        harness.wait_for(lambda: "(Read-only file system)" in harness.output(job), 20, job)
        before = store.newest(disk / "run" / "checkpoints")
        time.sleep(0.5)
        assert store.verify(before) == "" and job.process.poll() is None
    finally:
        subprocess.run(["umount", disk], check=True)
    assert harness.finish(job) == 0, harness.output(job)
    assert whole(disk / "run") and harness.differences(disk / "run", calm) == []


@pytest.mark.slow
def test_a_run_folder_deleted_under_the_run(tmp_path, calm):
    """The checkpoints of before are gone with it; the run ends with the same weights and all of its metrics."""
    root = tmp_path / "runs"
    job = start(root, tmp_path)
    harness.wait_until_step(job, root / "run", 30)
    subprocess.run(["rm", "-rf", root / "run"], check=False)
    assert harness.finish(job) == 0, harness.output(job)
    assert whole(root / "run") and harness.differences(root / "run", calm) == []
    assert "was deleted under the run" in harness.output(job)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_disk_that_stays_full_ends_the_run_in_one_line_and_it_can_go_on(disk, tmp_path, ranks):
    settings = ["trainer.max_failed_saves=3", "resume=auto", "data.batch_size=1", "trainer.accumulate=1"]
    command = [*SETTINGS, f"run_root={disk}", *settings]
    if ranks:
        job = harness.start(command, tmp_path, ranks=ranks)
    else:
        job = start(disk, tmp_path, *settings)
    saved(job, disk / "run")
    filler = fill(disk)
    assert harness.finish(job) == (1 if ranks else 2), harness.output(job)  # torchrun's own code is 1
    errors = [line for line in harness.output(job).splitlines() if "error: " in line and "could not be written" in line]
    assert len(errors) == 1 and "free the disk and start again with resume=auto" in errors[0]
    assert re.search(r"the last [345] checkpoints could not", errors[0])  # asked when the next one is due
    assert "Traceback (most recent call last)" not in "".join(harness.output(job).split("torch/distributed")[:1])
    left = store.newest(disk / "run" / "checkpoints")
    assert store.load_state(left)["step"] > 0
    filler.unlink()
    again = harness.start(command, tmp_path, ranks=ranks)
    assert harness.wait_resumed(again, disk / "run")[0] == store.load_state(left)["step"]
    assert harness.finish(again) == 0, harness.output(again)
    steps = [r["step"] for r in read_metrics(disk / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 120


@pytest.mark.slow
def test_a_last_checkpoint_that_finds_no_room_is_exit_code_2(disk, tmp_path):
    job = start(disk, tmp_path, "trainer.checkpoint_every_steps=0", "trainer.max_epochs=4", "eval.every_epochs=4")
    harness.wait_until_step(job, disk / "run", 9)
    os.kill(job.process.pid, signal.SIGSTOP)
    fill(disk)
    os.kill(job.process.pid, signal.SIGCONT)
    assert harness.finish(job) == 2, harness.output(job)
    last = harness.output(job).splitlines()[-1]
    assert last.startswith("error: ") and "checkpoints could not be written (No space left on device)" in last
