"""Two runs with one name, two processes on one folder, clocks that jump: nothing is overwritten."""

import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from engine.checkpoint import store
from engine.config.load import load_config
from engine.run import folder as run_folder
from engine.run.log import read_metrics
from pipelines.errors import UserError
from tests.conftest import ROOT, TINY
from tests.faults import harness

# Takes the lock of a named run, says so, makes its folder as a run does, and holds it.
HOLD = """
import sys, time
from engine import cli
from engine.config.load import load_config
from engine.run import folder as run_folder
def main(argv):
    with run_folder.claim(load_config(argv)[0]) as folder:
        folder.mkdir(exist_ok=True)
        (folder / "metrics.jsonl").open("x").write(f"{argv}")
        print("mine", folder.name, flush=True)
        sys.stdin.read()
cli.run(main)
"""


def hold(*settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, "preset=demo", *map(str, settings)],
        env=harness.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def config(*settings):
    return load_config(["preset=demo", *settings])[0]


def race(folder, rounds: int, *settings) -> None:
    """Two processes a round, at the same instant: exactly one gets in, the other says why not."""
    for number in range(rounds):
        names = [f"name=r{number}", f"run_root={folder}", *settings]
        two = [hold(*names), hold(*names)]
        harness.wait_for(lambda both=two: [p for p in both if p.poll() is not None], 30)
        first = [p for p in two if p.poll() is not None]
        assert len(first) == 1 and first[0].returncode == 2
        (other,) = (p for p in two if p not in first)
        assert other.stdout.readline() == f"mine r{number}\n"
        error = first[0].communicate()[1]
        assert f"r{number} is in use by pid {other.pid} on host {platform.node()} since 20" in error
        other.communicate("", timeout=20)
        assert other.returncode == 0 and not list(folder.glob(".*.lock"))


def test_of_two_that_start_at_the_same_instant_one_wins(tmp_path):
    race(tmp_path, 2)


@pytest.mark.slow
def test_of_two_that_start_at_the_same_instant_one_wins_20_times(tmp_path):
    race(tmp_path, 20)


def test_a_killed_owner_is_followed_at_once_and_its_folder_is_not_overwritten(tmp_path):
    first = hold("name=a", f"run_root={tmp_path}")
    first.stdout.readline()
    first.kill()
    first.communicate()
    start = time.monotonic()
    with run_folder.claim(config("name=a", f"run_root={tmp_path}", "resume=auto")) as folder:
        assert time.monotonic() - start < 1 and folder == tmp_path / "a"
        record = json.loads((tmp_path / ".a.lock").read_text())
        assert record["pid"] == os.getpid() and record["host"] == platform.node()
        with pytest.raises(UserError, match=f"a is in use by pid {os.getpid()} on host"):
            run_folder.Lock(folder)
    assert not (tmp_path / ".a.lock").exists()
    with (
        pytest.raises(UserError, match="exists already"),
        run_folder.claim(config("name=a", f"run_root={tmp_path}")),
    ):
        pass


def test_an_owner_on_another_host_whose_lock_is_free_is_named(tmp_path, capsys):
    """It has ended, or the mount does not pass its flock on to us."""
    (tmp_path / ".a.lock").write_text(json.dumps({"host": "n7", "pid": 1, "since": "2026"}))
    run_folder.Lock(tmp_path / "a").close()
    assert "names pid 1 on host n7, but its lock is free" in capsys.readouterr().err


def test_without_flock_a_process_of_this_host_is_refused_and_others_are_warned(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "flock", lambda file: None)
    first = run_folder.Lock(tmp_path / "a")
    assert "no locks on this file system; start no second run of this name" in capsys.readouterr().err
    with pytest.raises(UserError, match="in use"):
        run_folder.Lock(tmp_path / "a")
    first.close()
    run_folder.Lock(tmp_path / "a").close()


def test_runs_without_a_name_never_meet(tmp_path, monkeypatch):
    """Two in one millisecond, and a third after the clock was set back to it."""
    one = config(f"run_root={tmp_path}")
    monkeypatch.setattr(run_folder, "folder_of", lambda _: tmp_path / "demo-20261125-120000-000")
    with run_folder.claim(one) as first, run_folder.claim(one) as second:
        first.mkdir()
        second.mkdir()
        (first / "metrics.jsonl").write_text("x")
    with run_folder.claim(one) as third:
        names = [first.name, second.name, third.name]
    assert names == ["demo-20261125-120000-000", "demo-20261125-120000-000-2", "demo-20261125-120000-000-2"]
    (second / "metrics.jsonl").write_text("x")
    with run_folder.claim(one) as fourth:
        assert fourth.name == "demo-20261125-120000-000-3"


def test_the_newest_checkpoint_goes_by_step_whatever_the_clock_says(tmp_path):
    rng, now = random.Random(0), time.time()
    first = store.write(tmp_path, {"model": {"weight": torch.zeros(1)}}, {"step": 9, "score": None}, "")
    ends = ("100", "100000001", *(f"100000001.{number}" for number in range(1, 12)))
    paths = [first, *(shutil.copytree(first, tmp_path / f"step_{end:0>8}") for end in ends)]
    dates = [now + d for d in rng.sample(range(-(10**8), 10**8), len(paths))]
    for path, date in zip(paths, dates, strict=True):
        for file in [path, *path.iterdir()]:
            os.utime(file, (date, date))
    assert store.newest(tmp_path) == paths[-1] and paths[-1].name.endswith("01.11")
    store.prune(tmp_path, keep_last=2, keep_top_k=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000100", "step_100000001.11"]


@pytest.mark.slow
def test_a_second_training_on_a_run_is_refused_and_a_restarted_one_is_not(tmp_path):
    """Two real trainings of one name; then SIGKILL, and the same command by torchrun with a rank that dies once."""
    command = [*TINY, "name=a", f"run_root={tmp_path}", "resume=auto", "trainer.max_epochs=40"]
    first = harness.start(command, tmp_path)
    harness.wait_until_step(first, tmp_path / "a", 3)
    before = (tmp_path / "a" / "run.json").read_bytes()
    second = harness.start(command, tmp_path)
    assert harness.finish(second) == 2
    said = harness.output(second).splitlines()
    assert len(said) == 1 and f"is in use by pid {first.process.pid} on host" in said[0]
    assert (tmp_path / "a" / "run.json").read_bytes() == before
    harness.kill(first)
    third = harness.start(command, tmp_path, ranks=1, torchrun=("--max-restarts=1",))
    at = harness.wait_resumed(third, tmp_path / "a")[0]
    harness.wait_until_step(third, tmp_path / "a", at + 3)
    os.kill(harness.rank_pids(third)[0], signal.SIGKILL)
    assert harness.finish(third) == 0, harness.output(third)
    assert len(harness.sessions(tmp_path / "a")) == 3
    assert [r["step"] for r in read_metrics(tmp_path / "a" / "metrics.jsonl") if r["kind"] == "train"] == [
        *range(1, 161)
    ]


JUMPING = """
import datetime, itertools, os, time
real, steps = time.time, itertools.count()
def jumps():  # by a day back and forth, every few calls, and an hour back for good each time
    n = next(steps)
    return real() + (86400 if n // 3 % 2 else -86400) - 3600 * (n // 3) - float(os.environ["CLOCK_BACK"])
time.time = jumps
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(jumps(), tz)
datetime.datetime = Clock
"""


@pytest.mark.slow
def test_a_wall_clock_that_jumps_changes_nothing(tmp_path):
    """time.time and datetime are what a jump of the machine's clock changes; time.monotonic is not."""
    (tmp_path / "jumping").mkdir()
    (tmp_path / "jumping" / "sitecustomize.py").write_text(JUMPING)
    common = [*TINY, f"run_root={tmp_path}", "resume=auto", "trainer.checkpoint_every_steps=1"]
    env = {"PYTHONPATH": f"{tmp_path / 'jumping'}:{ROOT}"}
    for limit, back in (("3", "0"), ("0", "1e6")):
        job = harness.start(
            [*common, "name=jumps", f"trainer.max_steps={limit}"], tmp_path, env={**env, "CLOCK_BACK": back}
        )
        assert harness.finish(job) == 0, harness.output(job)
    started = [s["started"] for s in harness.sessions(tmp_path / "jumps")]
    assert started[1] < started[0], "the clock did not jump"
    assert harness.finish(harness.start([*common, "name=plain"], tmp_path)) == 0
    assert harness.differences(tmp_path / "jumps", tmp_path / "plain") == []
    state = store.load_state(tmp_path / "jumps" / "checkpoints" / "last")
    assert 0 < state["minutes"] < 5
    speeds = [r["images_per_second"] for r in read_metrics(tmp_path / "jumps" / "metrics.jsonl") if "lr" in r]
    assert all(0 < speed < 1e4 for speed in speeds)
