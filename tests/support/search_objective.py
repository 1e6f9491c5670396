"""An objective for tests of the search: a bowl in (x, y) with a learning curve; it can fail in several ways.

SEARCH_TEST_EPOCHS   length of the curve (5)      SEARCH_TEST_SLEEP   seconds an epoch (0)
SEARCH_TEST_MODE     crash | nan | hang | oom | memory | kill | children, from epoch SEARCH_TEST_AT (2) on
SEARCH_TEST_ONCE     a file: the mode is used only while it does not exist, then it is made
"""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"


def bowl(values: dict, report) -> float:
    """1 at x = 0.3, y = 0.6, less around; epoch e of n reaches 1 - exp(-3 e / n) of it."""
    print("GPUs", os.environ.get("CUDA_VISIBLE_DEVICES"), "raylet", os.environ.get("RAY_RAYLET_PID"), flush=True)
    best = 1.0 - (values.get("x", 0.3) - 0.3) ** 2 - (values.get("y", 0.6) - 0.6) ** 2
    epochs = int(os.environ.get("SEARCH_TEST_EPOCHS", "5"))
    for epoch in range(1, epochs + 1):
        time.sleep(float(os.environ.get("SEARCH_TEST_SLEEP", "0")))
        if epoch >= int(os.environ.get("SEARCH_TEST_AT", "2")) and _first_time():
            _fail(os.environ.get("SEARCH_TEST_MODE", ""), report, epoch)
        report(epoch, best * (1.0 - math.exp(-3.0 * epoch / epochs)))
    return best * (1.0 - math.exp(-3.0))


def _first_time() -> bool:
    once = os.environ.get("SEARCH_TEST_ONCE")
    if not once:
        return True
    first = not Path(once).exists()
    Path(once).touch()
    return first


def _fail(mode: str, report, epoch: int) -> None:
    if mode == "crash":
        raise ValueError("this configuration crashes")
    if mode == "nan":
        report(epoch, math.nan)
    if mode == "oom":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    if mode == "memory":
        raise MemoryError
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "children":  # as torchrun's ranks: in a session of its own, and deaf to SIGTERM
        subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    if mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)


# ---- of tests/engine/search/test_driver.py

OPTIMUM = {"lr": 1e-4, "decay": 4e-5, "T_max": 15}


def quadratic(values, report):
    """0.97 at the optimum, less with the squared distance in decades; a curve of five epochs."""
    distance = sum(math.log10(values[name] / best) ** 2 for name, best in OPTIMUM.items() if name in values)
    value = 0.97 - 0.01 * distance
    for epoch in range(1, 6):
        report(epoch, value - 0.02 * 2.0**-epoch)


def slow(values, report):
    """The same, with a pause after each epoch: time to be killed in."""
    for epoch in range(1, 6):
        time.sleep(0.1)
        report(epoch, 0.9 + 0.01 * epoch - 0.01 * math.log10(values["lr"] / 1e-4) ** 2)


def slow_T_max(values, report):
    """The same where only T_max is searched."""
    slow({"lr": 1e-4 * values["T_max"] / 15}, report)


def sick(values, report):
    """Each T_max another illness."""
    illness = {15: "nan", 18: "killed", 20: "error", 25: "none"}[values["T_max"]]
    if illness == "nan":
        report(1, math.nan)
    elif illness == "killed":  # the first time only
        marker = Path(os.environ["SICK_FOLDER"]) / f"killed-{values['lr']}"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    elif illness == "error":
        raise ZeroDivisionError("as told")
    return 0.9


def always_killed(values, report):
    """Killed from outside, whenever it runs."""
    report(1, 0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(values, report):
    """One evaluation, then nothing for ever."""
    report(1, 0.5)
    time.sleep(600)


# ---- of tests/engine/compare/test_main.py


def scheduled(values, report):
    """Cosine ends 0.01 above the others; a seed adds the same to all."""
    best = 0.9 + 0.01 * (values["models.scheduler.name"] == "cosine") + 0.003 * values["seed"]
    for epoch in range(1, 6):
        time.sleep(float(os.environ.get("SEARCH_TEST_SLEEP", "0")))
        report(epoch, best - 0.02 * 2.0**-epoch)
