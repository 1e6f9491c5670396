"""Attempts as tasks of an existing Ray cluster (extra `ray`).

    ray start --head                        # on one machine, then on each of the others:
    ray start --address=HEAD:6379
    python -m engine.search --executor ray --agents 8 ...        # on any of them

Each attempt is one task with `gpus` GPUs, which Ray sets in CUDA_VISIBLE_DEVICES, and no retries of Ray's own: a lost
node is an outside cause, and the driver starts the next attempt, which fences what may still live of the old one. Tasks
end with the driver's job, and wrappers with their tasks. Options: gpus of each trial (the cluster's, split over the
agents), cpus of each trial (1), address (RAY_ADDRESS, else this machine's cluster).
"""

import os
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from engine.jobs import fence, remote
from engine.jobs.executor import Attempt, Executor, Exit, Handle, end_without_record, read_exit, whole_number
from pipelines.errors import UserError

OPTIONS = ("gpus", "cpus", "address")
CONNECT_S = 5.0


class RayExecutor(Executor):
    """See `engine.jobs.executor`; tasks end with their driver's job."""

    def __init__(self, agents: int, options: Mapping[str, str]) -> None:
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise UserError(f"--executor ray: unknown option {unknown[0]}; expected {', '.join(OPTIONS)}")
        try:
            import ray
        except ImportError:
            raise UserError("--executor ray: the package ray is not installed; pip install -e '.[ray]'") from None
        self._ray = ray
        _connect(self._ray, options.get("address") or os.environ.get("RAY_ADDRESS") or "auto")
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        total, largest = (int(f(n.get("GPU", 0) for n in nodes)) for f in (sum, max))
        share = max(1, min(largest, total // agents)) if total else 0
        gpus = whole_number("ray:gpus", options.get("gpus", str(share)))
        self._cpus = whole_number("ray:cpus", options.get("cpus", "1"))
        for name, wanted, key in (("gpus", gpus, "GPU"), ("cpus", self._cpus, "CPU")):
            most = int(max(node.get(key, 0) for node in nodes))
            if wanted > most:
                raise UserError(f"--executor ray:{name}={wanted}: the largest node of the cluster has {most} {key}s")
        super().__init__(agents, gpus, f"Ray cluster of {len(nodes)} nodes and {total} GPUs; each trial takes {gpus}")

    def start(self, attempt: Attempt) -> Handle:
        """Hands the attempt to the cluster, where it may wait for its GPUs."""
        order = remote.prepare(attempt)
        settings = {"num_gpus": self.gpus, "num_cpus": self._cpus, "max_retries": 0}
        task = self._ray.remote(**settings)(remote.run)
        handle = Handle(attempt, task.options(name=f"trial {attempt.trial}.{attempt.attempt}").remote(order))
        self._running.append(handle)
        return handle

    def poll(self, handle: Handle) -> Exit | None:
        """None while the task waits or runs; then the attempt's end.

        Raises:
            UserError: its node does not see the study's folder.
        """
        if handle.exit is None and self._ray.wait([handle.job], timeout=0)[0]:
            self._running.remove(handle)
            handle.exit = self._end(handle)
        elif handle.exit is None and time.monotonic() >= handle.deadline:
            handle.deadline = float("inf")
            self._ray.cancel(handle.job, force=True)
        return handle.exit

    def _end(self, handle: Handle) -> Exit:
        """The end of a task that is over."""
        try:
            result = self._ray.get(handle.job)
        except self._ray.exceptions.TaskCancelledError:
            return Exit(137, "stopped", False)
        except self._ray.exceptions.RayError as error:  # node lost, worker killed, out of memory (Ray's monitor)
            found = read_exit(handle.attempt, handle.asked)
            if handle.asked:
                return found or Exit(137, "stopped", False)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Exit(1, f"{type(error).__name__}: {lines[0] if lines else ''}"[:300], True)
        if result["fault"]:
            raise UserError(f"--executor ray: {result['fault']}")
        return read_exit(handle.attempt, handle.asked) or end_without_record(result["code"], handle.asked)

    def _tell(self, handle: Handle) -> None:
        """One that still waits for its GPUs is taken back."""
        if fence.read(handle.attempt.folder).get("id") != handle.attempt.id:  # its wrapper has not begun
            self._ray.cancel(handle.job)

    def close(self) -> None:
        """As all executors, and leaves the cluster, which ends what is left."""
        super().close()
        self._ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Joins the cluster as a driver, keeping this process's own handling of SIGTERM."""
    mend = "begin a cluster with `ray start --head`, or name it: --executor ray:address=HOST:PORT"
    host, _, port = address.rpartition(":")
    if address != "auto":  # Ray itself tries an address where nobody listens for minutes
        try:
            socket.create_connection((host, int(port)), CONNECT_S).close()
        except (OSError, ValueError):
            raise UserError(f"--executor ray: no cluster at {address}; {mend}") from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="warning")
    except ConnectionError:
        raise UserError(f"--executor ray: no cluster on this machine; {mend}") from None
    except (RuntimeError, ValueError) as error:  # e.g. another version of Ray or Python
        raise UserError(f"--executor ray: {str(error).strip().splitlines()[0]}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    ray.cloudpickle.register_pickle_by_value(remote)
