"""The executor that a command line names: `local`, `ray`, `slurm`, imported when it is asked for."""

from collections.abc import Sequence

from engine.jobs.executor import Executor
from pipelines.errors import UserError

NAMES = ("local", "ray", "slurm")


def open_executor(text: str, agents: int, gpus: Sequence[str] | None = None) -> Executor:
    """The executor that `--executor NAME[:key=value,...]` names.

    Args:
        text: `local`, `ray`, `ray:gpus=2,cpus=8`, `slurm:partition=gpu,time=600,gpus=4`.
        agents: attempts at a time.
        gpus: numbers of this machine's GPUs for `local`, [] for the CPU; None finds them.

    Raises:
        UserError: unknown name or option, its extra is not installed, no cluster, more agents than GPUs.
    """
    name, _, rest = text.partition(":")
    options = dict(item.partition("=")[::2] for item in rest.split(",") if item)
    if name == "local":
        from engine.jobs.local import LocalExecutor, visible_gpus

        if options:
            raise UserError(f"--executor {text}: local takes no options; give --agents and CUDA_VISIBLE_DEVICES")
        return LocalExecutor(agents, visible_gpus() if gpus is None else gpus)
    if name == "ray":
        from engine.jobs.ray import RayExecutor

        return RayExecutor(agents, options)
    if name == "slurm":
        from engine.jobs.slurm import SlurmExecutor

        return SlurmExecutor(agents, options)
    raise UserError(f"--executor {text}: expected one of {', '.join(NAMES)}")
