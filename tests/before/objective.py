"""What the studies beside this file search in place of a training: a function whose best is known."""

import math
import os
import time

BEST = {"lr": 1e-4, "decay": 4e-5, "T_max": 15}


def quadratic(values, report):
    """0.97 at BEST, less with the squared distance in decades; a curve of five epochs, BEFORE_EPOCH_S seconds each."""
    distance = sum(math.log10(values[name] / best) ** 2 for name, best in BEST.items())
    for epoch in range(1, 6):
        time.sleep(float(os.environ.get("BEFORE_EPOCH_S", "0")))
        report(epoch, 0.97 - 0.01 * distance - 0.02 * 2.0**-epoch)
