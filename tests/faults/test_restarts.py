"""torchrun starts workers again, with as many or with fewer ranks: the run goes on, each page once an epoch."""

import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from engine.config.load import load_config
from engine.run.folder import folder_of, refuse_taken, same_job
from pipelines import sampler
from pipelines.errors import UserError

from . import harness
from .harness import Outcome

MODULE = "tests.faults.recorded_train"
EVERY, STEPS, GLOBAL, PAGES = 4, 6, 4, 24  # steps between checkpoints and an epoch, pages a step and an epoch
EPOCHS = 12
SETTINGS = (*harness.SETTINGS, f"trainer.checkpoint_every_steps={EVERY}", f"trainer.max_epochs={EPOCHS}")


def start(folder: Path, *torchrun: str) -> harness.Job:
    """torchrun without a name and without resume=auto, which notes the rows that it takes."""
    (folder / "rows").mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", *torchrun, "-m", MODULE]
    alone = "1" if "--nnodes=1:2" in torchrun else "0"
    given = {"ROWS_FOLDER": f"{folder}/rows", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": alone}
    return harness.start_command([*launch, *SETTINGS, f"run_root={folder}/runs"], folder, given)


def only_run(folder: Path) -> Path | None:
    """The one run folder, None before there is one."""
    found = [path.parent for path in (folder / "runs").glob("*/metrics.jsonl")]
    assert len(found) <= 1, f"torchrun's workers made {len(found)} runs of one"
    return found[0] if found else None


def ranks_of(*jobs: harness.Job) -> dict[int, int]:
    """{rank: process id} over several agents."""
    return {rank: pid for job in jobs for rank, pid in harness.rank_pids(job, MODULE).items()}


def at_work(jobs: list[harness.Job], folder: Path, step: int, ranks: int, timeout: float = 120.0) -> Path:
    """Waits until the run has done `step` steps and has that many ranks; returns its folder."""

    def there() -> bool:
        run = only_run(folder)
        return run is not None and harness.last_step(run) >= step and len(ranks_of(*jobs)) == ranks

    harness.wait_for(there, timeout, jobs[0])
    run = only_run(folder)
    assert run is not None
    return run


def rows_seen(folder: Path, faults: list[float]) -> dict[tuple[int, int], list[int]]:
    """{(epoch, step): rows} that made the weights: of a step done again after a fault, those of the last time.

    Args:
        folder: where the jobs ran.
        faults: time.time() of each fault; a process belongs to the attempt in which it took its first batch.
    """
    attempts: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for path in (folder / "rows").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        attempt = sum(lines[0]["time"] > fault for fault in faults) if lines else 0
        for line in lines:
            attempts[line["epoch"], line["step"]][attempt] += line["rows"]
    return {where: tries[max(tries)] for where, tries in attempts.items()}


def check_rows(folder: Path, faults: list[float], epochs: int) -> None:
    """Each step was made of the very pages that an undisturbed run takes, each page once an epoch."""
    seen = rows_seen(folder, faults)
    for epoch in range(epochs):
        order = sampler.epoch_order(0, epoch, [PAGES])
        for step in range(STEPS):
            assert sorted(seen[epoch, step]) == sorted(order[step * GLOBAL : (step + 1) * GLOBAL].tolist())
        rows = [row for step in range(STEPS) for row in seen[epoch, step]]
        assert sorted(rows) == list(range(PAGES)), f"epoch {epoch}: a page twice"


def restarts(folder: Path, count: int, seed: int) -> Outcome:
    """A rank is killed `count` times under one torchrun --max-restarts; the job ends with an undisturbed one's bits."""
    rng, faults, lost, seconds, step = random.Random(seed), [], [], [], 0
    job = start(folder, "--nproc_per_node=2", f"--max-restarts={count}")
    for _ in range(count):
        run = at_work([job], folder, step + rng.randrange(1, 12), 2)
        os.kill(ranks_of(job)[rng.randrange(2)], signal.SIGKILL)
        faults.append(time.time())
        time.sleep(0.3)  # a step at most is still written
        known = harness.last_step(run)
        step, took = harness.wait_resumed(job, run, faults[-1])
        lost.append(known - step)
        seconds.append(took)
        print(f"killed at step {known}, went on from {step} after {took:.1f} s", flush=True)
    assert harness.finish(job) == 0, harness.output(job)[-4000:]
    check_rows(folder, faults, EPOCHS)
    plain = harness.start([*SETTINGS, "name=plain", f"run_root={folder}"], folder, ranks=2)
    assert harness.finish(plain) == 0, harness.output(plain)[-4000:]
    assert not harness.differences(only_run(folder), folder / "plain")
    assert max(lost) <= EVERY + 1  # one more while a checkpoint is being written
    note = "same command without a name, ends with an undisturbed run's bits, each page once an epoch"
    return Outcome("torchrun --max-restarts, a rank dies", count, count, tuple(lost), tuple(seconds), note=note)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def elastic(folder: Path) -> Outcome:
    """Two agents of a rank each: one is killed with its rank, the other goes on alone, then a new one joins."""
    port = free_port()
    agent = (
        "--nnodes=1:2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}",
        "--rdzv-id=faults",
        "--local-addr=localhost",
        "--rdzv-conf=last_call_timeout=5",
    )
    host = start(folder, *agent)  # the first one holds the rendezvous; without it the job would be over
    harness.wait_for(lambda: answers(port), 60, host)
    guest = start(folder, *agent)
    run = at_work([host, guest], folder, 9, 2)
    harness.kill(guest)
    faults = [time.time()]
    known = harness.last_step(run)
    first, alone = harness.wait_resumed(host, run, faults[0])
    assert len(ranks_of(host)) == 1 and "trainer.accumulate=4 instead of 2" in harness.output(host)
    at_work([host], folder, first + 3, 1)
    guest = start(folder, *agent)
    at_work([host, guest], folder, 0, 2)
    faults.append(time.time())
    again, joined = harness.wait_resumed(host, run, guest.started)
    assert [harness.finish(job) for job in (host, guest)] == [0, 0], harness.output(host)[-4000:]
    check_rows(folder, faults, EPOCHS)
    assert [r["step"] for r in harness.metrics(run)] == list(range(1, EPOCHS * STEPS + 1))
    assert known - first <= EVERY + 1 and again >= first
    note = f"2 ranks, from step {first} on 1, from step {again} on 2 again; each page once an epoch"
    fault = "torchrun --nnodes=1:2, an agent dies with its rank, another joins"
    return Outcome(fault, 2, 2, (known - first,), (alone, joined), note=note)


@pytest.mark.slow  # 2 minutes
def test_workers_started_again_by_torchrun_go_on_in_the_same_run(tmp_path):
    outcome = restarts(tmp_path, 3, random.SystemRandom().randrange(10**6))
    assert outcome.survived == 3


@pytest.mark.slow  # 2 minutes
def test_one_rank_fewer_and_one_more_again(tmp_path):
    assert elastic(tmp_path).survived == 2


JOB = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"}


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, True),
        ({"TORCHELASTIC_RUN_ID": "b"}, False),  # another job
        ({"TORCHELASTIC_RUN_ID": None}, False),  # no torchrun at all
        ({"arguments": ["seed=1"]}, False),  # another command
        ({"finished": True}, False),  # refused as ever: it would be overwritten
        ({"recorded": "none", "TORCHELASTIC_RUN_ID": "none"}, False),  # the id of all jobs of the static rendezvous,
        ({"recorded": "none", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}, True),  # restarted
    ],
)
def test_which_folder_is_the_run_of_this_job(tmp_path, monkeypatch, change, expected):
    """Only then is a folder that is taken, or a name with the time of an earlier start, used again."""
    recorded = {"environment": {"TORCHELASTIC_RUN_ID": change.get("recorded", "a")}}
    run = tmp_path / "demo-20261125-120000-000"
    run.mkdir()
    session = {**recorded, "command": ["python", "train.py", *change.get("arguments", []), "preset=demo"]}
    (run / "run.json").write_text(json.dumps({"sessions": [session]}))
    if change.get("finished"):
        (run / "summary.json").write_text("{}")
    for name, value in {**JOB, **{k: v for k, v in change.items() if k.isupper()}}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", "preset=demo"])
    nameless = load_config(["preset=demo", f"run_root={tmp_path}"])[0]
    assert same_job(run) == expected
    assert (folder_of(nameless) == run) == expected
    named = load_config(["preset=demo", f"run_root={tmp_path}", f"name={run.name}"])[0]
    assert folder_of(named) == run
    with contextlib.nullcontext() if expected else pytest.raises(UserError, match="exists already"):
        refuse_taken(run, named)
