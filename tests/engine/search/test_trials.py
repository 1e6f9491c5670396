"""Commands of trials."""

import sys
from pathlib import Path

from engine.search import trials
from engine.search.space import Parameter, Space
from engine.search.study import Study
from tests.engine.search.conftest import RATE


def test_commands_of_trainings():
    study = Study(
        Path("studies/s"), "s", Space((RATE,)), arguments=["preset=demo", "wandb=true", "trainer.compile=false"]
    )
    study.space = Space((Parameter("models.optimizer.lr", "float", 1e-5, 2e-4, "log"),))
    trial = trials.new_trial(study, {"models.optimizer.lr": 1.5e-5, "other": 3}, "model", 4)
    one, eight = (trials.command(study, trial, gpus) for gpus in (1, 8))
    root = Path("studies/s").resolve() / "trials"
    assert one == [
        sys.executable, "-m", "engine.train", "preset=demo", "wandb=true", "trainer.compile=false",
        "models.optimizer.lr=1.5e-05", f"run_root={root}", "name=000", "resume=auto", "seed=4", "wandb_group=s",
        "wandb_job_type=model",
    ]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=8", "-m"]
    assert eight == [sys.executable, *launcher, *one[2:]]
