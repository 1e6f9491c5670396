"""SIGKILL of one rank or of all at random moments of a training on two ranks: nothing is lost beyond an interval.

The moments fall into starting up, reading a checkpoint, steps (half of them between the two forward passes of one),
evaluations and checkpoint writes. The killed run is started again with the same command until it is done.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from engine import train
from engine.checkpoint import store

from . import harness
from .harness import Outcome

EVERY, STEPS = 4, 6  # steps between checkpoints and in an epoch: checkpoints fall into its middle and its end
SETTINGS = (*harness.SETTINGS, f"trainer.checkpoint_every_steps={EVERY}", "resume=auto")
FAULT = "SIGKILL of one rank or of all, 2 ranks"


def command(folder: Path, name: str, epochs: int) -> list[str]:
    return [*SETTINGS, f"trainer.max_epochs={epochs}", f"name={name}", f"run_root={folder}"]


def being_written(run: Path) -> list[int]:
    """Steps of the checkpoints that a kill has left half written (not half deleted) under a temporary name."""
    return [int(p.name.split("_")[2].split(".")[0]) for p in (run / "checkpoints").glob(".tmp_step_*[0-9]")]


def strike(job: harness.Job, rng: random.Random, everyone: bool) -> str:
    """Kills all processes, or one rank, whose companions torchrun must end. Returns who, "" if the run was over."""
    ranks = harness.rank_pids(job)
    if job.process.poll() is not None:
        return ""
    if everyone or not ranks:
        harness.kill(job)
        return "all"
    rank = rng.choice(sorted(ranks))
    try:
        os.kill(ranks[rank], signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return f"rank {rank}" if harness.finish(job, 60) else ""


def check_after_kill(run: Path, before: int) -> tuple[int, int]:
    """What must hold after any kill: (steps known to be done, step of the checkpoint to go on from)."""
    known, saved = max(harness.last_step(run), before), harness.saved_step(run)
    faults = harness.faults_of(run)
    assert not faults, f"half a checkpoint: {faults}"
    assert saved >= before, "an older checkpoint than before"
    # While a checkpoint is being written the run is one interval and some steps behind it; or it is just handed over.
    late = max(1, known - min(being_written(run), default=known))
    assert known - saved <= EVERY + late, f"step {known} was done, step {saved} is saved, in writing {late}"
    return known, saved


def killed_until_done(folder: Path, name: str, epochs: int, rng: random.Random, most: int) -> Outcome:
    """One run, killed up to `most` times, alternately one rank and all, and started again until it ends."""
    run, lost, seconds, saved = folder / name, [], [], 0
    while True:
        job = harness.start(command(folder, name, epochs), folder, ranks=2)
        if len(lost) < most and rng.random() < 0.2:
            time.sleep(rng.uniform(0, 5))  # while starting up
        elif saved < epochs * STEPS:
            first, took = harness.wait_resumed(job, run)
            assert first == saved, f"went on from step {first}, saved was {saved}"
            seconds += [took] if lost else []
        if len(lost) == most:
            break
        time.sleep(rng.uniform(0, 2))
        who = strike(job, rng, everyone=len(lost) % 2 == 1)
        if not who:
            break
        known, saved = check_after_kill(run, saved)
        lost.append(known - saved)
        print(f"kill {len(lost)} ({who}) at step {known}, saved {saved}, in writing {being_written(run)}", flush=True)
    assert harness.finish(job) == 0, harness.output(job)[-4000:]
    return Outcome(FAULT, len(lost), len(lost), tuple(lost), tuple(seconds))


def compare(run: Path, undisturbed: Path) -> None:
    """The killed run has the undisturbed one's weights, average and optimizer, bit for bit, and each loss once."""
    assert not harness.differences(run, undisturbed)
    keys = ("step", "epoch", "lr", "loss", "grad_norm")
    one, other = ([[r[k] for k in keys] for r in harness.metrics(path)] for path in (run, undisturbed))
    assert one == other and [row[0] for row in one] == list(range(1, len(one) + 1))
    assert not being_written(run) and not harness.faults_of(run)


def kills(folder: Path, count: int, seed: int, epochs: int = 40, a_run: int = 12) -> Outcome:
    """`count` kills over as many runs as that takes, each compared with one undisturbed run of the same command."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    job = harness.start(command(folder, "undisturbed", epochs), folder, ranks=2)
    assert harness.finish(job) == 0, harness.output(job)[-4000:]
    outcomes: list[Outcome] = []
    while (tried := sum(o.tried for o in outcomes)) < count:
        name = f"killed_{len(outcomes)}"
        outcomes.append(killed_until_done(folder, name, epochs, rng, min(a_run, count - tried)))
        compare(folder / name, folder / "undisturbed")
        shutil.rmtree(folder / name)
    lost = tuple(step for o in outcomes for step in o.lost_steps)
    seconds = tuple(s for o in outcomes for s in o.resume_seconds)
    ends = f"{len(outcomes)} runs of {STEPS * epochs} steps end with an undisturbed one's bits"
    return Outcome(FAULT, tried, tried, lost, seconds, note=f"checkpoint every {EVERY} steps; {ends}")


@pytest.mark.slow
def test_a_killed_rank_of_two_and_one_rank_that_goes_on(tmp_path):
    """One kill, then the same command without torchrun: one rank takes over with accumulate=4."""
    epochs, seed = 6, time.time_ns()  # 36 steps: two seconds to strike in
    print(f"seed {seed}")
    run, rng = tmp_path / "run", random.Random(seed)
    job = harness.start(command(tmp_path, "run", epochs), tmp_path, ranks=2)
    harness.wait_for(lambda: harness.saved_step(run) >= EVERY, 120, job)
    assert strike(job, rng, everyone=False), "over before it was killed"
    known, saved = check_after_kill(run, EVERY)
    assert EVERY <= known < STEPS * epochs
    assert train.main(command(tmp_path, "run", epochs)) == 0
    steps = [r["step"] for r in harness.metrics(run)]
    assert steps == list(range(1, STEPS * epochs + 1)) and not harness.faults_of(run)
    session = harness.sessions(run)[-1]
    assert (session["first_step"], session["world_size"]) == (saved, 1)
    assert store.load_settings(run / "checkpoints" / "last")["trainer"]["accumulate"] == 4
    assert store.load_state(run / "checkpoints" / "last")["global_batch"] == 4


@pytest.mark.slow  # 8 minutes
def test_fifty_kills_of_two_ranks_change_no_bit(tmp_path):
    outcome = kills(tmp_path, 50, random.SystemRandom().randrange(10**6))
    assert outcome.survived == outcome.tried == 50 and len(outcome.lost_steps) == 50
