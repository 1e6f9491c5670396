"""From a study and a trial to the child that runs it, and from the child's metrics.jsonl back to epochs."""

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config.load import load_config, shown
from engine.jobs.executor import Attempt
from engine.search import objective
from engine.search.space import Space
from engine.search.study import GIVEN, Study, Trial


def command(study: Study, trial: Trial, gpus: int) -> list[str]:
    """The command of a trial's child, the same for each attempt: it goes on from the trial's checkpoint, if any.

    Args:
        gpus: of the agent; 0 = CPU.
    """
    folder = run_folder(study, trial)
    if study.objective:
        values = study.runner.fixed | trial.values  # the sweep file's single values are the function's too
        if study.method == GIVEN:
            values |= {"seed": trial.seed}  # what a comparison repeats a configuration with
        return objective.command(study.objective, values, folder, study.metric)
    launch = [sys.executable, "-m"]
    if gpus > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}", "-m"]
    return [*launch, "engine.train", *settings(study, trial)]


def settings(study: Study, trial: Trial) -> list[str]:
    """`key=value` of a trial's training; what its run folder needs comes last."""
    values = [f"{key}={shown(value)}" for key, value in trial.values.items()]
    folder = run_folder(study, trial)
    own = [f"run_root={folder.parent}", f"name={folder.name}", "resume=auto", f"seed={trial.seed}"]
    group = [f"wandb_group={study.name}", f"wandb_job_type={trial.kind}"] if _tracked(study) else []
    return [*study.arguments, *values, *own, *group]


def _tracked(study: Study) -> bool:
    return load_config(study.arguments)[0].wandb


def on_cpu(study: Study) -> bool:
    """Whether a training of this study uses no GPU whatever there is."""
    return not study.objective and load_config(study.arguments)[0].trainer.device == "cpu"


def run_folder(study: Study, trial: Trial) -> Path:
    """STUDY/trials/007, absolute: nodes of a cluster start elsewhere."""
    return study.folder.resolve() / "trials" / f"{trial.number:03d}"


def log_file(study: Study, trial: Trial, attempt: int) -> Path:
    """STUDY/logs/007.1.log, absolute."""
    return study.folder.resolve() / "logs" / f"{trial.number:03d}.{attempt}.log"


def attempt_of(study: Study, trial: Trial, gpus: int) -> Attempt:
    """The next attempt at a trial, as the executor takes it."""
    number = trial.attempts + 1
    return Attempt(
        trial=trial.number, attempt=number, id=secrets.token_hex(8), command=command(study, trial, gpus),
        environment={}, log=log_file(study, trial, number), folder=run_folder(study, trial), gpus=gpus,
    )  # fmt: skip


def new_trial(
    study: Study, values: dict[str, Any], kind: str, seed: int, repeats: int | None = None, number: int | None = None
) -> Trial:
    """A trial that is not in the study yet: the next one, or `number` where several are decided together."""
    number = len(study.trials) if number is None else number
    return Trial(number, plain_values(study.space, values), kind, seed, repeats, folder=f"trials/{number:03d}")


def plain_values(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """The searched keys of `values` in the order of the space."""
    return {name: values[name] for name in space.names}


def scores_of(record: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """The numbers of a validation record that a report shows."""
    return {name: record[name] for name in names if isinstance(record.get(name), (int, float))}
