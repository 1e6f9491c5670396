"""Real runs for the fault suite: start them, watch them, hurt them, read what they left.

    job = start([*SETTINGS, "name=a", f"run_root={folder}"], folder, ranks=2)
    wait_until_step(job, folder / "a", 5)
    os.kill(rank_pids(job)[1], signal.SIGKILL)
    code = finish(job)

A job's processes are found by a mark in their environment, so orphans of a killed parent are found too. Nothing here
waits without a limit, and a limit that passes shows the end of the job's output.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from engine.checkpoint import store
from engine.run.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "FAULT_JOB"

# One step takes 30 ms on one rank and 60 ms on two, a start 4 to 6 s; two ranks make 6 steps an epoch, one 12.
SETTINGS = (
    "preset=demo",
    "data.image_size=[64,96]",
    "data.synthetic_size=[80,110]",
    "data.synthetic_train=24",
    "data.synthetic_val=2",
    "data.batch_size=1",
    "data.threads=1",
    "models.encoder.name=lcnet_035",
    "models.decoder.inner_channels=8",
    "models.decoder.output_channels=4",
    "models.head.hidden_channels=4",
    "trainer.max_epochs=4",
    "trainer.accumulate=2",
    "trainer.log_every=1",
    "trainer.ema=true",
    "trainer.ema_decay=0.9",
    "trainer.overlays=0",
    "trainer.threads=1",
    "trainer.device=cpu",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A started command: its first process, the mark of all of them, the file of their output, time.time() of start."""

    process: subprocess.Popen
    mark: str
    log: Path
    started: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One row of the report: a fault, how often it was tried and survived, and what it cost."""

    fault: str
    tried: int
    survived: int
    lost_steps: tuple[int, ...] = ()  # work done again, one number a fault
    resume_seconds: tuple[float, ...] = ()  # from the start of the new process to its first new step
    growth: float | None = None  # of host memory, as a share
    note: str = ""


def environment(**more: str) -> dict[str, str]:
    """A user's environment on one core a process, without the tests' interpreter switch."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", MARK)}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def launcher(ranks: int = 0, *torchrun: str) -> list[str]:
    """`python -m`, or with ranks `torchrun --standalone --nproc_per_node RANKS [torchrun ...] -m`."""
    if not ranks:
        return [sys.executable, "-m"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*run, *torchrun, "-m"]


def start(
    arguments: list[str],
    folder: Path,
    ranks: int = 0,
    torchrun: tuple[str, ...] = (),
    module: str = "engine.train",
    env: dict[str, str] | None = None,
) -> Job:
    """Starts `module` with arguments from `folder`, output into a file there."""
    return start_command([*launcher(ranks, *torchrun), module, *arguments], folder, env)


def start_command(command: list[str], folder: Path, env: dict[str, str] | None = None) -> Job:
    """Starts any command as a job."""
    mark = uuid.uuid4().hex
    log = Path(folder) / f"job_{mark[:8]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment(), **(env or {}), MARK: mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return Job(process, mark, log, time.time())


def output(job: Job) -> str:
    """What the job has printed so far, stdout and stderr together."""
    return job.log.read_text(errors="replace")


def wait_for(condition: Callable[[], object], timeout: float = 120.0, job: Job | None = None, pause: float = 0.01):
    """Waits until `condition()` is true and returns its value.

    Raises:
        AssertionError: with the job's output, after `timeout` seconds or once it has ended with a false condition.
    """
    deadline = time.monotonic() + timeout
    while True:
        ended = job is not None and job.process.poll() is not None
        value = condition()
        if value:
            return value
        late = time.monotonic() > deadline
        assert not (ended or late), ("ended" if ended else f"not within {timeout} s") + (
            f":\n{output(job)[-4000:]}" if job else ""
        )
        time.sleep(pause)


def finish(job: Job, timeout: float = 240.0) -> int:
    """Waits for the end of the first process and of all others of the job; returns its exit code."""
    wait_for(lambda: job.process.poll() is not None, timeout, None)
    wait_for(lambda: not pids(job), 30.0, None)
    return job.process.returncode


# ---- processes


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it has ended
        return b""


def variables(pid: int) -> dict[str, str]:
    """Environment with which a process was started; {} for one that is gone or a zombie."""
    items = _read(f"/proc/{pid}/environ").decode(errors="replace").split("\0")
    return dict(item.split("=", 1) for item in items if "=" in item)


def command_line(pid: int) -> list[str]:
    """Arguments of a process; [] for one that is gone or a zombie."""
    return _read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")[:-1]


def pids(job: Job) -> list[int]:
    """All living processes of a job, orphans among them, oldest first."""
    own = f"{MARK}={job.mark}".encode()
    every = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return [pid for pid in every if own in _read(f"/proc/{pid}/environ")]


def rank_pids(job: Job, module: str = "engine.train") -> dict[int, int]:
    """{rank: process id} of the job's training processes; {0: pid} without torchrun, {} while they are not there."""
    found = {}
    for pid in pids(job):
        words = command_line(pid)
        if module in words and "torch.distributed.run" not in words and "--multiprocessing-fork" not in words:
            found.setdefault(int(variables(pid).get("RANK", 0)), pid)
    return found


def send(job: Job, number: int = signal.SIGKILL) -> None:
    """Sends a signal to every process of the job."""
    for pid in pids(job):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill(job: Job) -> None:
    """SIGKILL to every process of the job, until none is left."""

    def gone() -> bool:
        send(job)
        return not pids(job)

    wait_for(gone, 30.0)
    job.process.wait()


# ---- what a run has left


def metrics(run: Path, kind: str = "train") -> list[dict]:
    """Records of metrics.jsonl so far; [] while there is none."""
    path = run / "metrics.jsonl"
    return [r for r in read_metrics(path) if r.get("kind") == kind] if path.exists() else []


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, 0 without one; with trainer.log_every=1 the step last done or one less."""
    return max((record["step"] for record in metrics(run)), default=0)


def wait_until_step(job: Job, run: Path, step: int, timeout: float = 120.0) -> int:
    """Waits until `step` steps are in metrics.jsonl; returns the last one."""
    wait_for(lambda: last_step(run) >= step, timeout, job)
    return last_step(run)


def sessions(run: Path) -> list[dict]:
    """Entries of run.json: one for each start of the run, `first_step` among them."""
    path = run / "run.json"
    return json.loads(path.read_text())["sessions"] if path.exists() else []


def wait_resumed(job: Job, run: Path, since: float | None = None) -> tuple[int, float]:
    """Waits for the first new step after `since` (time.time(), the job's start when not given).

    Returns:
        the step that the run went on from, seconds from `since` to its first new step.
    """
    since = job.started if since is None else since
    record, done = run / "run.json", run / "metrics.jsonl"
    wait_for(lambda: record.exists() and record.stat().st_mtime >= since, 120.0, job)
    first = sessions(run)[-1]["first_step"]
    # metrics.jsonl is cut off after run.json was written, so an older one still holds later steps.
    wait_for(lambda: done.exists() and done.stat().st_mtime >= record.stat().st_mtime, 120.0, job)
    wait_for(lambda: last_step(run) > first, 120.0, job)
    return first, time.time() - since


def checkpoints(run: Path) -> list[Path]:
    """Folders of the run's checkpoints under their final names, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step_*") if path.is_dir())


def faults_of(run: Path) -> dict[str, str]:
    """{checkpoint: what is wrong with it} of all checkpoints and links of a run; {} when every one is whole."""
    links = [run / "checkpoints" / name for name in store.LINKS if (run / "checkpoints" / name).is_symlink()]
    found = {path.name: store.verify(path) for path in [*checkpoints(run), *links]}
    return {name: fault for name, fault in found.items() if fault}


def saved_step(run: Path) -> int:
    """Step of the newest undamaged checkpoint, 0 without one."""
    newest = store.newest(run / "checkpoints")
    return store.load_state(newest)["step"] if newest else 0


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint: {"model.NAME", "ema.NAME", "optimizer.NAME"}."""
    last = run / "checkpoints" / "last"
    files = [(part, last / f"{part}.safetensors") for part in store.PARTS]
    return {
        f"{part}.{name}": tensor
        for part, file in files
        if file.exists()
        for name, tensor in safetensors.torch.load_file(file).items()
    }


def differences(one: Path, other: Path) -> list[str]:
    """Names of the tensors in which the last checkpoints of two runs differ in any bit; [] = identical."""
    a, b = tensors(one), tensors(other)
    assert a and b, "no tensors"

    def same(x: torch.Tensor, y: torch.Tensor) -> bool:
        alike = x.shape == y.shape and x.dtype == y.dtype
        return alike and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))

    return sorted(set(a) ^ set(b)) + [name for name in sorted(set(a) & set(b)) if not same(a[name], b[name])]
