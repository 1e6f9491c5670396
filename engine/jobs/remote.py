"""What runs on another machine around an attempt's wrapper, for the Ray and Slurm executors.

The study must be on a folder that all machines see under one path; the code and the environment too. `run` is shipped
by value (cloudpickle), so that a worker process need not find this package; it uses the standard library only.
"""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.jobs.executor import Attempt, wrapper_command

PARENT = "the process that starts it"


def prepare(attempt: Attempt) -> dict[str, Any]:
    """Plain data for `run`; makes the attempt's folders and its log, which `run` looks for."""
    for file in (attempt.log, attempt.folder):
        file.parent.mkdir(parents=True, exist_ok=True)
    attempt.log.touch()
    root = str(Path(__file__).resolve().parents[2])  # where `engine` is imported from
    path = os.pathsep.join([root, *filter(None, [attempt.environment.get("PYTHONPATH", "")])])
    return {
        "command": wrapper_command(attempt, PARENT),
        "environment": {**attempt.environment, "PYTHONPATH": path},
        "python": sys.executable,
        "cwd": os.getcwd(),
        "log": str(attempt.log.absolute()),
    }


def run(order: dict[str, Any], forward: bool = False) -> dict[str, Any]:
    """On the other machine: starts the wrapper, waits until nothing of it is left.

    Args:
        order: from `prepare`.
        forward: pass SIGTERM on to the wrapper (Slurm ends a job so); else it is left as it is.

    Returns:
        {"code": the wrapper's, -number for a signal; "fault": why it could not be started, in one line, or ""}
    """
    for path in (order["cwd"], order["log"]):
        if not os.path.exists(path):
            where = f"{platform.node()} cannot see {path}"
            return {"code": 1, "fault": f"{where}: the study and the code must be on a folder that all nodes share"}
    python = order["python"] if os.path.exists(order["python"]) else sys.executable
    changed = {order["python"]: python, PARENT: str(os.getpid())}
    with open(order["log"], "ab") as log:
        process = subprocess.Popen(
            [changed.get(word, word) for word in order["command"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=order["cwd"],
            env={**os.environ, **order["environment"]},
            start_new_session=True,
        )
    assert process.stdin and process.stdout
    if forward:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    finally:  # a cancelled task: the end of its stdin ends the wrapper
        process.stdin.close()
        process.stdout.read()  # until wrapper and keeper are gone
    return {"code": code, "fault": ""}
