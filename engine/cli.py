"""What every entry point does the same way: arguments, `--help`, `--print-config`, `--dry-run`, exit codes."""

import contextlib
import errno
import logging
import os
import sys
import time
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from engine.config import Config
from engine.config.load import help_text, load_config, preset_names, to_yaml
from pipelines.errors import OneLine, Parser, UserError, mendable, printable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
FLAGS = {
    "--help": "show this text, with the values of the preset and keys given",
    "--print-config": "show the merged settings as YAML and leave",
    "--dry-run": "check everything on a few samples and leave; nothing is trained for real",
}
TORCHRUN_GRACE_S = 10.0  # a busy machine takes seconds to end rank 0


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Calls `main(sys.argv[1:])` and leaves the process with its exit code; never returns.

    A UserError ends as `error: ...` on stderr with exit code 2, Ctrl-C with 130; anything else is a bug and keeps its
    traceback.
    """
    if logging.lastResort is not None:  # what shows warnings when nobody has set up logging
        logging.lastResort.setFormatter(OneLine())
    try:
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


def parser(module: str, describe: str) -> Parser:
    """What every command with flags begins with: its name, its docstring as help, `--json`.

        parser = cli.parser("engine.tune", __doc__)

    Its complaints are UserErrors, for `run` to show in one line.
    """
    made = Parser(prog=f"python -m {module}", description=describe, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print the result as one JSON object, and nothing else")
    return made


def alone(module: str) -> None:
    """Refuses several ranks for a command that is one process.

    Raises:
        UserError: torchrun has started it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(f"{module} runs as one process: start it with python -m")


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
    with _once_under_torchrun():
        flags = [item for item in argv if item in FLAGS or item == "-h"]
        config, extras = load_config([item for item in argv if item not in flags], extra=extra, base=base)
    if wants_help(flags):
        _print_once(_help(config, extra, describe))
        sys.exit(0)
    if "--print-config" in flags:
        _print_once(to_yaml(config).rstrip())
        sys.exit(0)
    return config, extras, "--dry-run" in flags


def split_settings(items: list[str]) -> tuple[list[str], list[str]]:
    """(settings section.key=value, paths) of positional arguments; a file whose name has a `=` is a path."""
    settings = [item for item in items if "=" in item and not Path(item).exists()]
    return settings, [item for item in items if item not in settings]


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _once_under_torchrun():
    """Lets only rank 0 report a UserError that every rank runs into."""
    try:
        yield
    except UserError:
        if _is_main():
            raise
        # torchrun ends all ranks as soon as one leaves; rank 0 must have printed by then.
        time.sleep(TORCHRUN_GRACE_S)
        sys.exit(EXIT_USER_ERROR)


def _print_once(text: str) -> None:
    if _is_main():
        print(text, flush=True)


def _help(config: Config, extra: Mapping[str, str] | None, describe: str) -> str:
    flags = "\n".join(f"  {name:<16}{words}" for name, words in FLAGS.items())
    presets = ", ".join(preset_names())
    return (
        f"{describe.strip()}\n\nflags:\n{flags}\n\n"
        f"presets (preset=NAME or preset=FILE.yaml): {presets}\n\n{help_text(extra, config)}"
    ).lstrip()
