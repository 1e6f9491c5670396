"""`engine.train` with a fault planted in one rank's loss: what bad hardware or a bad batch does, at a chosen step.

    FAULT='{"kind": "nan", "rank": 1, "steps": [5, 6]}' torchrun ... -m tests.faults.inject preset=demo ...

Kinds: nan, inf (the loss becomes that, and its gradient), gradient (the loss stays a number, its gradient does not),
memory (torch's own error), sleep (the rank stands still). The rest of the run is the real thing.
"""

import json
import os
import time

import torch

from engine import cli, train
from engine.training import step

FAULT = json.loads(os.environ.get("FAULT", "{}"))
real = step.compute_loss
calls = 0


class BadGradient(torch.autograd.Function):
    """The number itself; NaN for its gradient."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def planted(logits, targets, config):
    """The real loss, with the fault in the chosen steps."""
    global calls
    number = calls // config.trainer.accumulate + 1  # of this process, from 1
    calls += 1
    loss = real(logits, targets, config)
    if number not in FAULT["steps"] or int(os.environ.get("RANK", 0)) != FAULT["rank"]:
        return loss
    if FAULT["kind"] == "memory":
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0 has 3.00 GiB free")
    if FAULT["kind"] == "sleep":
        time.sleep(3600)
    if FAULT["kind"] == "gradient":
        return loss._replace(total=BadGradient.apply(loss.total))
    return loss._replace(total=loss.total * float(FAULT["kind"]))


def main(argv):
    """Plants the fault and trains."""
    if FAULT:
        step.compute_loss = planted
    return train.main(argv)


if __name__ == "__main__":
    cli.run(main)
