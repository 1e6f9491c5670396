"""For the tests of attempts and executors: attempts at the test objective, and what is left of them."""

import os
import sys
import time
import uuid
from pathlib import Path

from engine.jobs import executor as executors
from engine.jobs.executor import open_executor
from engine.search import objective
from tests.conftest import ROOT

TREE = "SEARCH_TEST_TREE"  # environment variable that the wrapper and all below it carry


def attempt_at(study: Path, trial: int = 1, number: int = 1, mode: str = "", **environment: str) -> executors.Attempt:
    """An attempt at `search_objective.bowl` that fails as `mode` says; its environment holds a TREE of its own."""
    folder = study / "trials" / f"{trial:03d}"
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
        TREE: uuid.uuid4().hex,
        "SEARCH_TEST_MODE": mode,
        **environment,
    }
    command = objective.command("search_objective:bowl", {"x": 0.1, "y": 0.5}, folder, "val/hmean")
    log = study / "logs" / f"{trial:03d}.{number}.log"
    return executors.Attempt(trial, number, uuid.uuid4().hex, command, environment, log, folder)


def tree(attempt: executors.Attempt) -> dict[int, str]:
    """Living processes of an attempt: {number: its words}."""
    mark, found = f"{TREE}={attempt.environment[TREE]}".encode(), {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                alive = folder.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if alive and mark in folder.joinpath("environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def wait_for(condition, seconds: float = 20.0):
    """The first true value of `condition()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"still not so after {seconds} s")


def run_all(executor, attempts: list, seconds: float = 120.0) -> list[executors.Exit]:
    """Runs attempts with as many at a time as the executor has slots; their ends in order."""
    waiting, handles = list(attempts), []

    def done() -> bool:
        while waiting and sum(executor.poll(handle) is None for handle in handles) < executor.slots:
            handles.append(executor.start(waiting.pop(0)))
        return not waiting and all(executor.poll(handle) for handle in handles)

    wait_for(done, seconds)
    return [executor.poll(handle) for handle in handles]


def main(study: str, name: str, mode: str, sleep: str, mark: str) -> None:
    """A driver as its own process: one attempt, polled to its end, which is printed."""
    executor = open_executor(name, 1, [])
    attempt = attempt_at(Path(study), mode=mode, SEARCH_TEST_SLEEP=sleep, SEARCH_TEST_EPOCHS="50", **{TREE: mark})
    handle = executor.start(attempt)
    while executor.poll(handle) is None:
        time.sleep(0.05)
    print(executor.poll(handle), flush=True)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main(*sys.argv[1:])
