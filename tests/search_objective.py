"""Functions that tests search instead of trainings: milliseconds each."""

import math
import os
import signal
import time
from pathlib import Path

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
