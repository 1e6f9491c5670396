"""From a study and a trial to the child that runs it, and from the child's metrics.jsonl back to epochs."""

import secrets
from pathlib import Path
from typing import Any

from engine.config.load import load_config, shown
from engine.jobs.executor import Attempt, open_executor, train_command
from engine.search import objective
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
    return [*train_command(gpus), *settings(study, trial)]


def settings(study: Study, trial: Trial) -> list[str]:
    """`key=value` of a trial's training; what its run folder needs comes last."""
    values = [f"{key}={shown(value)}" for key, value in trial.values.items()]
    folder = run_folder(study, trial)
    own = [f"run_root={folder.parent}", f"name={folder.name}", "resume=auto", f"seed={trial.seed}"]
    tracked = load_config(study.arguments)[0].wandb
    group = [f"wandb_group={study.name}", f"wandb_job_type={trial.kind}"] if tracked else []
    return [*study.arguments, *values, *own, *group]


def executor_of(study: Study) -> Any:
    """The executor that runs a study's trials.

    Raises:
        UserError: it cannot be had.
    """
    on_cpu = not study.objective and load_config(study.arguments)[0].trainer.device == "cpu"  # whatever GPUs there are
    return open_executor(study.runner.executor, study.agents, [] if on_cpu else None)


def run_folder(study: Study, trial: Trial) -> Path:
    """STUDY/trials/007, absolute: nodes of a cluster start elsewhere."""
    return study.folder.resolve() / "trials" / f"{trial.number:03d}"


def attempt_of(study: Study, trial: Trial, gpus: int) -> Attempt:
    """The next attempt at a trial, as the executor takes it; its output goes to STUDY/logs/007.1.log."""
    number = trial.attempts + 1
    log = study.folder.resolve() / "logs" / f"{trial.number:03d}.{number}.log"
    return Attempt(
        trial=trial.number, attempt=number, id=secrets.token_hex(8), command=command(study, trial, gpus),
        environment={}, log=log, folder=run_folder(study, trial), gpus=gpus,
    )  # fmt: skip


def new_trial(
    study: Study, values: dict[str, Any], kind: str, seed: int, repeats: int | None = None, number: int | None = None
) -> Trial:
    """A trial that is not in the study yet: the next one, or `number` where several are decided together."""
    number = len(study.trials) if number is None else number
    ordered = {name: values[name] for name in study.space.names}
    return Trial(number, ordered, kind, seed, repeats, folder=f"trials/{number:03d}")
