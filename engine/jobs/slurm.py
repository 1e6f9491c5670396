"""Attempts as jobs of a Slurm cluster, submitted by submitit (extra `slurm`).

    python -m engine.search --executor slurm:partition=gpu,time=600,gpus=4 --agents 8 ...      # on a login node

Options: time (minutes, DAY unless given), gpus, cpus, mem (GB) of each trial; every other one is sbatch's (partition,
account, qos, constraint, ...); sbatch's own environment (SBATCH_PARTITION, ...) counts as well.

A job that Slurm requeues (node lost, preempted, `scontrol requeue`, its time is over) starts the same attempt again,
which fences its first life and goes on from the last checkpoint. While Slurm has the job, the attempt is not over,
whatever its last life left. Jobs outlive a driver that is killed; the next one cancels what it starts again (007.job).
States come from squeue, so no accounting (sacct) is needed.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.jobs import remote
from engine.jobs.executor import Attempt, Executor, Exit, Handle, read_exit, whole_number
from engine.jobs.fence import side_file
from pipelines.errors import UserError

DAY = "1440"  # minutes; a partition with a lower limit refuses a job of more
ASK_EVERY_S = 2.0  # squeue, for all jobs at once
LOST_AFTER_S = 20.0  # without a job or a record of its end, which a shared folder may show late
# Of squeue %T: with these Slurm is done with a job; any other state is one of waiting, running or being requeued.
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
    "",
}  # fmt: skip
AT_WORK = {"RUNNING", "SIGNALING", "COMPLETING", "STAGE_OUT"}


class Job:
    """What submitit ships (by value) and calls on the node; `checkpoint` makes it requeue a job whose time is over."""

    def __init__(self, order: dict[str, Any], mark: str) -> None:
        self.order, self.mark = order, mark
        self.run = remote.run  # functions travel by value, the modules they are in do not

    def __call__(self) -> dict[str, Any]:
        result = self.run(self.order, forward=True)
        if result["fault"]:
            print(f"{self.mark}{result['fault']}", flush=True)
        return result

    def checkpoint(self) -> Any:
        """The same again; leaving `run` ends the training, whose checkpoints are on the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmExecutor(Executor):
    """See `engine.jobs.executor`."""

    close_wait_s, look_s = 60.0, 0.2

    def __init__(self, agents: int, options: Mapping[str, str]) -> None:
        self._submitit = _import_submitit()
        for program in ("sbatch", "srun", "squeue", "scancel"):
            if not shutil.which(program):
                raise UserError(f"--executor slurm: no program {program} here; start on a login node of the cluster")
        rest = {"time": DAY, "gpus": "0", "cpus": "1", "mem": "0", **options}
        number = {name: whole_number(f"slurm:{name}", rest.pop(name)) for name in ("time", "gpus", "cpus", "mem")}
        super().__init__(agents, number["gpus"])
        self._settings = {
            "timeout_min": number["time"],
            "cpus_per_task": number["cpus"],
            "slurm_additional_parameters": {"requeue": True, **rest},
        }
        if self.gpus:
            self._settings["gpus_per_node"] = self.gpus
        if number["mem"]:
            self._settings["mem_gb"] = number["mem"]
        self._states: dict[str, str] = {}
        self._asked_at = -ASK_EVERY_S

    def start(self, attempt: Attempt) -> Handle:
        """Submits the job; submitit's own files lie in STUDY/slurm.

        Raises:
            UserError: sbatch refuses it.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        order = remote.prepare(attempt)
        self.forget(attempt.folder)
        executor = self._submitit.AutoExecutor(attempt.folder.parent.parent / "slurm", cluster="slurm")
        executor.update_parameters(name=f"trial-{attempt.trial}.{attempt.attempt}", **self._settings)
        try:
            job = executor.submit(Job(order, fault_mark(attempt)))
        except (FailedJobError, FailedSubmissionError) as error:
            line = str(error).strip().splitlines()[-1].removeprefix("sbatch: error: ")
            raise UserError(f"--executor slurm: {line}") from None
        side_file(attempt.folder, "job").write_text(f"{job.job_id}\n")
        handle = Handle(attempt, job)
        self._running.append(handle)
        self._states[job.job_id] = "PENDING"
        return handle

    def poll(self, handle: Handle) -> Exit | None:
        """None while Slurm has the job, in whatever state; then the attempt's end.

        Raises:
            UserError: its node does not see the study's folder.
        """
        if handle.exit is not None:
            return handle.exit
        self._ask()
        now = time.monotonic()
        state = self._states.get(handle.job.job_id, "")
        if state not in OVER:
            handle.over_since = float("inf")
            if now >= handle.deadline:
                handle.deadline = float("inf")
                _cancel(handle.job.job_id)
            return None
        handle.over_since = min(handle.over_since, now)
        handle.exit = read_exit(handle.attempt, handle.asked) or self._without_record(handle, state)
        if handle.exit is not None:
            self._running.remove(handle)
            side_file(handle.attempt.folder, "job").unlink(missing_ok=True)
        return handle.exit

    def _ask(self) -> None:
        """Brings the jobs' states up to date; a controller that does not answer changes nothing."""
        if time.monotonic() < self._asked_at + ASK_EVERY_S:
            return
        ids = ",".join(handle.job.job_id for handle in self._running)
        done = subprocess.run(
            ["squeue", "-h", "-t", "all", "-o", "%i %T", "-j", ids], capture_output=True, text=True, check=False
        )
        self._asked_at = time.monotonic()
        if done.returncode == 0 or "Invalid job id" in done.stderr:  # said of one job that it has forgotten
            self._states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())

    def _without_record(self, handle: Handle, state: str) -> Exit | None:
        """The end of a job whose wrapper left none; None while it may still come."""
        if handle.asked:
            return Exit(137, "stopped", False)
        if time.monotonic() < handle.over_since + LOST_AFTER_S:
            return None
        fault = _fault(handle.job.paths.stdout, fault_mark(handle.attempt))
        if fault:
            raise UserError(f"--executor slurm: {fault}")
        return Exit(1, f"job {handle.job.job_id} ended as {state or 'unknown'}: see {handle.job.paths.stderr}", True)

    def _tell(self, handle: Handle) -> None:
        """A job that waits is cancelled at once."""
        if self._states.get(handle.job.job_id) == "PENDING":
            _cancel(handle.job.job_id)

    def waits(self, handle: Handle) -> bool:
        """Whether the job waits for a node, at first or requeued, or is suspended; as `poll` has seen it last."""
        return self._states.get(handle.job.job_id, "") not in OVER | AT_WORK

    def forget(self, folder: Path) -> None:
        """Cancels the job of a run folder that a driver which was killed has left with Slurm."""
        note = side_file(folder, "job")
        if note.exists():
            _cancel(note.read_text().strip())
            note.unlink()


def fault_mark(attempt: Attempt) -> str:
    """How a job begins the line in its log that says why it could not start; submitit's result is a pickle, never read.

    The attempt's id is in it: others write to that log too, and no line of theirs may end the search.
    """
    return f"attempt {attempt.id} could not start: "


def _fault(log: Path, mark: str) -> str:
    """Why a job could not start its wrapper, from the end of its log; "" for nothing said."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.removeprefix(mark) for line in reversed(lines) if line.startswith(mark)), "")


def _cancel(job: str) -> None:
    subprocess.run(["scancel", job], capture_output=True, check=False)  # a job that is over needs none


def _import_submitit() -> Any:
    try:
        import cloudpickle
        import submitit
    except ImportError:
        raise UserError("--executor slurm: the package submitit is not installed; pip install -e '.[slurm]'") from None
    for module in (remote, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    return submitit
