"""How long a training of a comparison will take, from a few steps of the first one, for --dry-run."""

import json
import math
import re
import subprocess
import tempfile
import time
from pathlib import Path

from engine.config import load_config
from engine.search import trials
from engine.search.study import Study
from pipelines.errors import UserError

STEPS, EVERY = 6, 3  # steps tried; the last window of 3 is measured, as compiling and first reads are before it


def minutes(study: Study, gpus: int) -> float:
    """Minutes of one training: its start, its steps and its evaluations, at the speed of a few steps on this machine.

    Raises:
        UserError: the settings do not train; the message is the training's own last line.
    """
    with tempfile.TemporaryDirectory(prefix="dbnet-compare-") as folder:
        own = [f"run_root={folder}", "name=probe", f"trainer.max_steps={STEPS}", f"trainer.log_every={EVERY}"]
        command = [*trials.command(study, study.trials[0], gpus), *own, "resume=none", "wandb=false"]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall = time.monotonic() - began
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "no words").splitlines()
            raise UserError(f"a few steps of the first training failed: {lines[-1].removeprefix('error: ')}")
        metrics = Path(folder, "probe", "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in metrics.splitlines()]
    step = [record["step_ms"] for record in records if record["kind"] == "train"][-1] / 1000
    evaluation = next(record["seconds"] for record in records if record["kind"] == "validation")
    config, _ = load_config(study.arguments)
    epochs = config.trainer.max_epochs
    steps = epochs * int(re.search(r"(\d+) steps an epoch", done.stdout)[1])
    start = max(0.0, wall - STEPS * step - evaluation)
    return (start + steps * step + math.ceil(epochs / config.eval.every_epochs) * evaluation) / 60
