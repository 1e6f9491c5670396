"""Signals in worker processes: a request to stop reaches all processes of a job, but is the training's to answer.

Slurm, systemd and a terminal send their signal to every process. A training that ends its step and writes a checkpoint
needs its workers until then, so they let SIGINT and SIGUSR1 pass, and put off SIGTERM: DALI ends a worker that does not
leave by itself with it. A worker is gone with its parent in any case.
"""

import os
import signal
import threading
from types import FrameType

PUT_OFF_S = 60.0  # more than torchrun's 30 s between SIGTERM and SIGKILL


def leave_later(number: int, _frame: FrameType | None) -> None:
    """Ends this process in PUT_OFF_S, or as soon as its parent has gone; a handler of SIGTERM."""

    def leave() -> None:
        gone = threading.Event()
        for _ in range(int(PUT_OFF_S)):
            if os.getppid() != parent:
                break
            gone.wait(1.0)
        os._exit(128 + number)

    parent = os.getppid()
    threading.Thread(target=leave, daemon=True).start()


def leave_to_parent() -> None:
    """Makes the signals above the parent's affair; to be called in the worker's main thread."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave_later)
