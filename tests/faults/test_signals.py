"""SIGTERM, SIGINT and SIGUSR1 to a real run: a checkpoint after the step, exit code 75, resumed bit for bit."""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from . import harness
from .harness import Outcome

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LIMIT_S = 20.0  # torchrun kills after 30


EPOCHS = 10


def command(folder: Path, name: str, *more: str) -> list[str]:
    epochs = f"trainer.max_epochs={EPOCHS}"
    return [*harness.SETTINGS, f"run_root={folder}", f"name={name}", "resume=auto", epochs, *more]


def undisturbed(folder: Path, ranks: int) -> Path:
    """The run that nothing happens to."""
    job = harness.start(command(folder, "plain"), folder, ranks=ranks)
    assert harness.finish(job) == 0, harness.output(job)
    return folder / "plain"


def interrupted(
    folder: Path, name: str, ranks: int, numbers: Sequence[int], rng: random.Random
) -> tuple[Outcome, float]:
    """One run that gets a signal a session at random moments until it is done; torchrun gets it where there is one.

    Returns:
        outcome, most seconds from a signal to the end of all processes.
    """
    run, lost, seconds, ends = folder / name, [], [], []
    while True:
        job = harness.start(
            command(folder, name),
            folder,
            ranks=ranks,
            torchrun=("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",) * (ranks > 0),
        )
        if harness.saved_step(run) == EPOCHS * 24 // max(1, ranks) // 2:
            break  # the last step was done, its evaluation cut off
        first, took = harness.wait_resumed(job, run)
        seconds += [took] if ends else []
        if len(ends) == len(numbers):
            break
        time.sleep(rng.uniform(0, 0.6))
        sent = time.monotonic()
        job.process.send_signal(numbers[len(ends)])
        code = harness.finish(job, 60)
        if code == 0:
            break  # it came too late
        ends.append(time.monotonic() - sent)
        assert ranks or code == 75, harness.output(job)
        assert harness.output(job).count("with a checkpoint") >= 1, harness.output(job)
        assert ends[-1] < LIMIT_S, f"{ends[-1]:.1f} s"
        done, saved = harness.last_step(run), harness.saved_step(run)
        assert saved == done > first, f"{done} steps were done, {saved} are saved"
        lost.append(done - saved)
    assert harness.finish(job) == 0, harness.output(job)
    outcome = Outcome("SIGTERM, SIGINT, SIGUSR1", len(ends), len(ends), tuple(lost), tuple(seconds))
    return outcome, max(ends, default=0.0)


def signals(folder: Path, count: int) -> Outcome:
    """Runs of two ranks, stopped at `count` random moments, end with the bits of an undisturbed one."""
    plain, rng, outcomes, slowest = undisturbed(folder, 2), random.Random(count), [], 0.0
    while sum(outcome.tried for outcome in outcomes) < count:
        name, numbers = f"stopped{len(outcomes)}", [rng.choice(SIGNALS) for _ in range(min(5, count))]
        outcome, seconds = interrupted(folder, name, 2, numbers, rng)
        outcomes, slowest = [*outcomes, outcome], max(slowest, seconds)
        assert harness.differences(plain, folder / name) == []
    tried = sum(outcome.tried for outcome in outcomes)
    lost = tuple(step for outcome in outcomes for step in outcome.lost_steps)
    seconds = tuple(s for outcome in outcomes for s in outcome.resume_seconds)
    note = f"2 ranks, gone {slowest:.1f} s after the signal at most; {len(outcomes)} runs end with the same bits"
    return Outcome("SIGTERM, SIGINT, SIGUSR1 at random moments", tried, tried, lost, seconds, note=note)


@pytest.mark.parametrize(
    ("ranks", "numbers"),
    [
        pytest.param(0, SIGNALS, marks=pytest.mark.slow),
        pytest.param(2, SIGNALS, marks=pytest.mark.slow),
    ],
)
def test_signals_end_a_run_with_a_checkpoint_and_it_resumes_bit_for_bit(tmp_path, ranks, numbers):
    plain = undisturbed(tmp_path, ranks)
    outcome, _ = interrupted(tmp_path, "stopped", ranks, numbers, random.Random(ranks))
    assert outcome.tried
    assert harness.differences(plain, tmp_path / "stopped") == []
    steps = [record["step"] for record in harness.metrics(tmp_path / "stopped")]
    assert steps == sorted(set(steps)) == [record["step"] for record in harness.metrics(plain)]


def test_one_rank_is_asked_and_all_stop_at_the_same_step(tmp_path):
    job = harness.start(command(tmp_path, "one", "trainer.max_epochs=1000"), tmp_path, ranks=2)
    harness.wait_until_step(job, tmp_path / "one", 4)
    os.kill(harness.rank_pids(job)[1], signal.SIGUSR1)
    assert harness.finish(job, 60) != 0
    assert harness.saved_step(tmp_path / "one") == harness.last_step(tmp_path / "one") >= 4
    assert "stopped (SIGUSR1) at step" in harness.output(job)


def test_a_second_signal_stops_at_once(tmp_path):
    # a step of a minute: the first signal waits for its end
    fault = '{"kind": "sleep", "rank": 0, "steps": [3]}'
    job = harness.start(command(tmp_path, "twice"), tmp_path, module="tests.faults.inject", env={"FAULT": fault})
    harness.wait_until_step(job, tmp_path / "twice", 2)
    time.sleep(0.5)
    job.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    job.process.send_signal(signal.SIGTERM)  # the same one passed on twice, as torchrun and Slurm do
    time.sleep(2.5)
    assert job.process.poll() is None
    begin = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert harness.finish(job, 10) == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 5


@pytest.mark.slow
def test_a_signal_before_the_first_step_just_ends(tmp_path):
    job = harness.start(command(tmp_path, "early"), tmp_path)
    harness.wait_for(lambda: (tmp_path / "early" / "run.json").exists(), 60, job)
    job.process.send_signal(signal.SIGTERM)
    assert harness.finish(job, 20) == 75
    job = harness.start(command(tmp_path, "early", "trainer.max_epochs=1"), tmp_path)
    assert harness.finish(job) == 0, harness.output(job)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_leaves_it_to_the_next_session(tmp_path):
    settings = ("data.synthetic_val=200", "eval.every_epochs=1", "trainer.max_epochs=2", "eval.batch_size=1")
    job = harness.start(command(tmp_path, "plain", *settings), tmp_path)
    assert harness.finish(job) == 0
    job = harness.start(command(tmp_path, "cut", *settings), tmp_path)
    harness.wait_until_step(job, tmp_path / "cut", 12)  # the last of the first epoch
    time.sleep(0.1)
    job.process.send_signal(signal.SIGTERM)
    assert harness.finish(job, 30) == 75
    assert harness.metrics(tmp_path / "cut", "validation") == [] and harness.saved_step(tmp_path / "cut") == 12
    job = harness.start(command(tmp_path, "cut", *settings), tmp_path)
    assert harness.finish(job) == 0
    assert harness.differences(tmp_path / "plain", tmp_path / "cut") == []
    told = [
        [(r["step"], r["hmean"], r["best"]) for r in harness.metrics(tmp_path / name, "validation")]
        for name in ("plain", "cut")
    ]
    assert told[0] == told[1] and len(told[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_every_process_of_a_job_leaves_the_workers_at_work(tmp_path, number):
    """As Slurm, systemd and a terminal send it."""
    settings = ("data.workers=1", "eval.workers=1", "trainer.max_epochs=1000", "wandb=true")
    job = harness.start(command(tmp_path, "all", *settings), tmp_path, env={"WANDB_MODE": "offline"})
    harness.wait_until_step(job, tmp_path / "all", 3)
    harness.send(job, number)
    assert harness.finish(job, 60) == 75, harness.output(job)
    assert "Traceback" not in harness.output(job)
    assert harness.saved_step(tmp_path / "all") == harness.last_step(tmp_path / "all") >= 3


@pytest.mark.slow
def test_a_log_that_cannot_be_written_keeps_no_signal_from_its_work(tmp_path):
    words = [*harness.launcher(), "engine.train", *command(tmp_path, "full", "trainer.max_epochs=1000")]
    job = harness.start_command(["sh", "-c", 'exec "$@" 2> /dev/full', "sh", *words], tmp_path)
    harness.wait_until_step(job, tmp_path / "full", 4)
    job.process.send_signal(signal.SIGTERM)
    assert harness.finish(job, 30) == 75
    assert harness.saved_step(tmp_path / "full") == harness.last_step(tmp_path / "full") >= 4


@pytest.mark.slow
def test_ranks_whose_torchrun_was_killed_end_with_a_checkpoint(tmp_path):
    job = harness.start(command(tmp_path, "orphans", "trainer.max_epochs=1000"), tmp_path, ranks=2)
    harness.wait_until_step(job, tmp_path / "orphans", 4)
    job.process.kill()  # torchrun alone
    harness.wait_for(lambda: not harness.pids(job), 20)
    assert "torchrun has gone" in harness.output(job)
    assert harness.saved_step(tmp_path / "orphans") == harness.last_step(tmp_path / "orphans") >= 4
