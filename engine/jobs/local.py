"""Attempts as child processes of the driver, on this machine; the GPUs are split evenly over the agents.

Each wrapper's stdin is a pipe that only the driver holds, so that it learns of the driver's death, and its stdout
another that wrapper and keeper hold: its end of file says that both, and with them everything of the attempt, are gone.
"""

import math
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

from engine.jobs.executor import Attempt, Executor, Exit, Handle, end_without_record, read_exit, wrapper_command
from pipelines.errors import UserError

NVIDIA_SMI_S = 30.0  # a node with 8 sleeping GPUs takes 10 s to answer


def visible_gpus() -> list[str]:
    """Numbers (or names) of the GPUs this process may use, without torch: CUDA_VISIBLE_DEVICES, or nvidia-smi's."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [item.strip() for item in given.split(",")]
        return [name for name in names if re.match(r"\d+$|GPU-|MIG-", name)]  # not "", -1, Slurm's NoDevFiles
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # a driver that does not answer has no GPU for us
    return done.stdout.split()


class LocalExecutor(Executor):
    """See `engine.jobs.executor`; attempts die with their driver."""

    close_grace_s, force_after_s, close_wait_s, look_s = 3.0, 2.0, math.inf, 0.02

    def __init__(self, agents: int, gpus: Sequence[str] = ()) -> None:
        if agents < 1:
            raise UserError(f"--agents {agents}: expected 1 or more")
        if gpus and agents > len(gpus):
            raise UserError(f"--agents {agents}: there are {len(gpus)} GPUs; use --agents {len(gpus)} or fewer")
        each, left = divmod(len(gpus), agents)
        notice = f"{left} of {len(gpus)} GPUs stay idle: they do not divide by {agents} agents" if left else ""
        super().__init__(agents, each, notice)
        self._shares = [list(gpus[k * each : (k + 1) * each]) for k in range(agents)]

    def start(self, attempt: Attempt) -> Handle:
        """Starts the wrapper; at most `slots` at a time."""
        free = set(range(self.slots)) - {handle.share for handle in self._running}
        assert free, "more attempts than slots"
        share = min(free)
        for path in (attempt.log, attempt.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(attempt.log, "ab") as log:
            process = subprocess.Popen(
                wrapper_command(attempt, os.getpid()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._own(share), **attempt.environment},
                start_new_session=True,  # Ctrl-C is the driver's: it ends its attempts in order
            )
        handle = Handle(attempt, process, share=share)
        self._running.append(handle)
        return handle

    def _own(self, share: int) -> dict[str, str]:
        """Environment of a share: its GPUs, or its part of the cores.

        Two torch threads on a core that another trial uses wait for each other: 0.8 images/s where one gave 2.1.
        """
        if self.gpus:
            return {"CUDA_VISIBLE_DEVICES": ",".join(self._shares[share])}
        if self.slots == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self.slots))}

    def poll(self, handle: Handle) -> Exit | None:
        """None while the attempt, or anything of it, runs; then its end."""
        if handle.exit is not None:
            return handle.exit
        if handle.job.poll() is None:
            if time.monotonic() >= handle.deadline:
                handle.job.kill()  # the keeper does the rest
            return None
        stdin, stdout = handle.job.stdin, handle.job.stdout
        assert stdin and stdout
        if not select.select([stdout], [], [], 0)[0]:
            return None  # the keeper still sweeps
        stdin.close()
        stdout.close()
        self._running.remove(handle)
        handle.exit = read_exit(handle.attempt, handle.asked) or end_without_record(handle.job.returncode, handle.asked)
        return handle.exit

    def _tell(self, handle: Handle) -> None:
        handle.job.send_signal(signal.SIGTERM)
