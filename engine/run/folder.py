"""One process at a time writes to a run folder: a lock beside it that names its owner.

    runs/.NAME.lock    {"host": "n1", "pid": 4711, "since": "2026-11-25T12:00:00+00:00", "command": "..."}

Rank 0 holds its flock for the life of the process; the kernel lets go of it when the process ends in any way. It lies
beside the folder, so that deleting the folder under a run does not let a second one in. An orderly end removes it.

Between hosts: Linux passes flock on to an NFS server, which keeps it, unless the mount says nolock or local_lock.
There, and on file systems without flock, a second process on another host is warned, not refused.
"""

import contextlib
import datetime
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.console import reason, warn
from engine.files import flock, owner_record, write_record
from pipelines.errors import UserError

DYING_S = 5.0  # for the last moments of an owner that was killed, and for one that has not written its name yet
RECENT_S = 900.0  # between two records of a run that lives, and for torchrun to start its ranks again


class InUse(UserError):
    """Another process has the run folder."""


@contextlib.contextmanager
def claim(config: Config) -> Iterator[Path]:
    """The run's folder, with this process as its only writer inside the context; for rank 0. Creates no run folder.

    Raises:
        UserError: another process has it; or it holds a run already and this one does not resume.
    """
    first = folder_of(config)
    with contextlib.ExitStack() as held:
        for number in range(1, 1000):
            folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
            try:
                held.enter_context(contextlib.closing(Lock(folder)))
                refuse_taken(folder, config)  # under the lock: before, another process could have made it in between
                break
            except (InUse, Taken):
                held.close()
                if config.name:
                    raise  # without a name: two runs in a millisecond, or a clock that was set back
        yield folder


class Lock:
    """Holds the lock of a run folder until `close`.

    Raises:
        InUse: another process has it.
        UserError: the folder above cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder.parent / f".{folder.name}.lock"
        self._owner = {
            "host": platform.node(),
            "pid": os.getpid(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(sys.argv),
        }
        try:
            self._file = self._enter()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({reason(error)})") from None

    def _enter(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + DYING_S
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            owner, locked = owner_record(self.path), flock(file)
            here = owner.get("host") == platform.node()
            if locked is False or (locked is None and here and _alive(owner)):
                os.close(file)
                if _alive(owner) or time.monotonic() > deadline:
                    raise InUse(_refusal(self.folder, owner))
                time.sleep(0.1)
            elif not _is(self.path, file):  # removed by its last owner between our open and our flock
                os.close(file)
                if time.monotonic() > deadline:  # some user file systems never tell two stats of one file alike
                    raise UserError(f"{self.path}: cannot be locked on this file system; choose another run_root")
                time.sleep(0.01)
            else:
                if locked is None:
                    warn(f"WARNING: {self.path.parent}: no locks on this file system; start no second run of this name")
                elif owner and not here:
                    words = f"names pid {owner.get('pid')} on host {owner.get('host')}, but its lock is free"
                    warn(f"note: {self.path} {words}: end that process if it still runs")
                write_record(file, self._owner)
                return file

    def close(self) -> None:
        """Lets go and removes the file."""
        with contextlib.suppress(OSError):
            if _is(self.path, self._file):
                self.path.unlink()
        os.close(self._file)


def _is(path: Path, file: int) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _alive(owner: dict) -> bool:
    """Whether an owner lives, as far as this host can tell; another host's does, since its lock is held."""
    if not owner:
        return False
    return owner.get("host") != platform.node() or Path(f"/proc/{owner.get('pid')}").exists()


def _refusal(folder: Path, owner: dict) -> str:
    if not owner:
        return f"{folder} is in use by another process: give another name=NAME, or end that one"
    return (
        f"{folder} is in use by pid {owner.get('pid')} on host {owner.get('host')} since {owner.get('since')}: give "
        "another name=NAME, or end that one"
    )


def folder_of(config: Config) -> Path:
    """The folder of a run: run_root/name, or run_root/PRESET-UTCTIME without a name.

    Workers that torchrun starts again get the folder they had (`same_job`), whatever its time stamp.
    """
    name = config.name
    if not name and "TORCHELASTIC_RUN_ID" in os.environ:
        before = [path.parent for path in Path(config.run_root).glob("*/run.json") if same_job(path.parent)]
        if before:
            return max(before, key=lambda folder: (folder / "run.json").stat().st_mtime)
    if not name:
        now = datetime.datetime.now(datetime.UTC)
        name = f"{Path(config.preset).stem}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"
    return Path(config.run_root) / name


class Taken(UserError):
    """The run's folder holds another run."""


def refuse_taken(folder: Path, config: Config) -> None:
    """Refuses a folder that holds a run already when this one does not resume, and is not started again by torchrun.

    Raises:
        Taken: it is so.
    """
    if config.resume != "none" or not folder.exists() or same_job(folder):
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise Taken(f"{folder} exists already: give another name=NAME, or resume=auto to go on with that run")


def same_job(folder: Path) -> bool:
    """Whether a folder holds the unfinished run of this very torchrun job, whose workers are started again.

    It does if its last session had our torchrun id and our arguments, and either this is a restart or the run was alive
    within RECENT_S: an agent that joins late counts no restarts, but some start every job with the same id. The id
    "none" (the static rendezvous) says nothing.
    """
    job, restarts = os.environ.get("TORCHELASTIC_RUN_ID"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if not job or (folder / "summary.json").exists():
        return False
    signs = [p.stat().st_mtime for p in (folder / "run.json", folder / "metrics.jsonl") if p.exists()]
    if not signs or (restarts == "0" and (job == "none" or time.time() - max(signs) > RECENT_S)):
        return False
    known = sessions(folder / "run.json")[-1:]
    if not known or not isinstance(known[0], dict):
        return False
    environment, command = known[0].get("environment"), known[0].get("command")
    recorded = environment.get("TORCHELASTIC_RUN_ID") if isinstance(environment, dict) else None
    return recorded == job and isinstance(command, list) and command[2:] == sys.argv[1:]


def sessions(path: Path) -> list[Any]:
    """Those of a run.json; [] of an older or damaged one: settings and metrics are kept elsewhere."""
    found = owner_record(path).get("sessions")
    return found if isinstance(found, list) else []
