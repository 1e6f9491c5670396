"""What every entry point does the same way: arguments, `--help`, `--print-config`, `--dry-run`, exit codes."""

import errno
import logging
import os
import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NoReturn

from engine.config import Config
from engine.config.load import help_text, keys, load_config, preset_names, to_yaml
from engine.config.words import undashed
from pipelines.errors import OneLine, Parser, UserError, mendable, printable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
FLAGS = {
    "--help": "show this text, with the values of the preset and keys given",
    "--print-config": "show the merged settings as YAML and leave",
    "--dry-run": "check everything on a few samples and leave; nothing is trained for real",
}
NAMED = "checkpoint="
TORCHRUN_GRACE_S = 10.0  # a busy machine takes seconds to end rank 0


class SettingsParser(Parser):
    """argparse's for flags and settings: `--section.key=value` is a setting where the command has no such flag."""

    def parse_intermixed_args(self, args: list[str]) -> Namespace:  # type: ignore[override]  # one way to call it
        """The flags; settings as `key=value`."""
        return super().parse_intermixed_args(plain_settings(args, self._option_string_actions))


def plain_settings(argv: list[str], flags: Collection[str]) -> list[str]:
    """The arguments with every `--section.key=value`, as `wandb agent` writes settings, as `section.key=value`.

    Args:
        flags: of the command; they stay as they are.
    """

    def is_setting(item: str) -> bool:
        flag = item.partition("=")[0]
        return flag not in flags and ("." in flag or flag[2:] in keys())

    return [undashed(item) if is_setting(item) else item for item in argv]


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Calls `main(sys.argv[1:])` and leaves the process with its exit code; never returns.

    A UserError ends as `error: ...` on stderr with exit code 2, Ctrl-C with 130; anything else is a bug and keeps its
    traceback.
    """
    if logging.lastResort is not None:  # what shows warnings when nobody has set up logging
        logging.lastResort.setFormatter(OneLine())
    try:
        _refuse_tasks()
        code = main(sys.argv[1:])
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno == errno.EPIPE:  # `... --help | head`; stdout must not be flushed again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if not mendable(error):
            raise
        _refuse(mendable(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(code)


def _refuse(text: str) -> NoReturn:
    """One line, and out. A rank above 0 holds back: where rank 0 says the same, torchrun ends it before it speaks."""
    if not _is_main():
        time.sleep(TORCHRUN_GRACE_S)
    print(f"error: {printable(text.strip())}", file=sys.stderr, flush=True)
    sys.exit(EXIT_USER_ERROR)


def parser(module: str, describe: str) -> SettingsParser:
    """What every command with flags begins with: its name, its docstring as help, `--json`.

        parser = cli.parser("engine.tune", __doc__)

    Raises:
        UserError: torchrun has started it, as several ranks. So are the parser's complaints, for `run` to show.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"{module} runs as one process: start it with python -m")
    made = SettingsParser(prog=f"python -m {module}", description=describe, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
    return made


def wants_help(argv: list[str]) -> bool:
    """Whether `--help` or `-h` is among the arguments."""
    return "--help" in argv or "-h" in argv


def parse(
    argv: list[str], extra: Mapping[str, str] | None = None, describe: str = "", base: Mapping | None = None
) -> tuple[Config, dict[str, str], bool]:
    """Reads a command line; answers `--help` and `--print-config` itself and exits.

    Args:
        argv: arguments without the program name.
        extra: the entry point's own keys with their defaults.
        describe: text on top of `--help`, usually the module's docstring.
        base: nested dict of settings that replaces the preset, e.g. a checkpoint's.

    Returns:
        config, values of the extra keys, whether `--dry-run` was given.

    Raises:
        UserError: in one line, whatever is wrong. Under torchrun only rank 0 raises; the others, which read the same
            arguments, exit with the same code.
    """
    try:
        flags = [item for item in argv if item in FLAGS or item == "-h"]
        config, extras = load_config([item for item in argv if item not in flags], extra=extra, base=base)
    except UserError:
        if _is_main():
            raise
        # torchrun ends all ranks as soon as one leaves; rank 0 must have printed by then.
        time.sleep(TORCHRUN_GRACE_S)
        sys.exit(EXIT_USER_ERROR)
    if wants_help(flags):
        known = "\n".join(f"  {name:<16}{words}" for name, words in FLAGS.items())
        presets = f"presets (preset=NAME or preset=FILE.yaml): {', '.join(preset_names())}"
        _print_once(f"{describe.strip()}\n\nflags:\n{known}\n\n{presets}\n\n{help_text(extra, config)}".lstrip())
        sys.exit(0)
    if "--print-config" in flags:
        _print_once(to_yaml(config).rstrip())
        sys.exit(0)
    return config, extras, "--dry-run" in flags


def split_settings(items: list[str]) -> tuple[list[str], list[str]]:
    """(settings section.key=value, paths) of positional arguments; a file whose name has a `=` is a path.

    `checkpoint=PATH` is the path.
    """
    settings = [item for item in items if "=" in item and not item.startswith(NAMED) and not Path(item).exists()]
    return settings, [item.removeprefix(NAMED) for item in items if item not in settings]


def checkpoints(argv: list[str]) -> list[str]:
    """The arguments with `--checkpoint R` and `--checkpoint=R` as `checkpoint=R`.

    Raises:
        UserError: nothing follows.
    """
    words, rest = [], iter(argv)
    for item in rest:
        if item == "--checkpoint":
            item = f"{item}={next(rest, '')}"
        if item == "--checkpoint=":
            raise UserError("--checkpoint: name a run folder (runs/NAME) or one of its checkpoints")
        words.append(undashed(item) if item.startswith("--checkpoint=") else item)
    return words


def _refuse_tasks() -> None:
    """Several tasks of srun or mpirun that torchrun has made no ranks of would each do the whole work, side by side.

    A batch script of Slurm is one process, whatever number of tasks it may start.

    Raises:
        UserError: on the first task; the others leave with the same code when it has spoken.
    """
    if "WORLD_SIZE" in os.environ:
        return
    steps = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    slurm = next((os.environ[name] for name in steps if name in os.environ), "") if "SLURM_PROCID" in os.environ else ""
    if os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in os.environ:
        slurm = ""
    sizes = [("srun", slurm), *(("mpirun", os.environ.get(name, "")) for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))]
    several = [(who, int(size)) for who, size in sizes if size.isdecimal() and int(size) > 1]
    if not several:
        return
    who, tasks = several[0]
    if any(os.environ.get(name, "0") != "0" for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")):
        time.sleep(TORCHRUN_GRACE_S)  # mpirun ends all tasks as soon as one leaves
        sys.exit(EXIT_USER_ERROR)
    nodes = f"srun --ntasks-per-node=1 torchrun --nnodes={os.environ.get('SLURM_NNODES', '1')}"
    raise UserError(
        f"{who} has started {tasks} tasks that know nothing of one another: start ranks by torchrun, one a GPU "
        f"(torchrun --nproc_per_node {tasks} -m engine.train ...; over several machines one task a node, {nodes} "
        "--nproc_per_node N --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 -m engine.train ...), other commands once"
    )


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_once(text: str) -> None:
    if _is_main():
        print(text, flush=True)
