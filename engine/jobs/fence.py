"""The fence of a run folder: of several attempts at one trial only the newest may write there.

`trials/007.lock`, beside the run folder (engine.train refuses a folder that is not empty), names the current attempt:

    {"attempt": 2, "id": "...", "token": "...", "host": "n1", "pid": 4711}

A newer attempt writes its own token there, then waits for the flock; the older one reads the file every second, finds
another token and ends. The token decides, since flock may not reach from host to host (NFS); it is one wrapper
process's, so that a requeued job fences its first life, whose attempt id is the same.
"""

import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.files import flock, owner_record, write_record

POLL_S = 1.0  # between two looks of the holder at the file
KILL_AFTER_S = 3.0  # a holder on this host that has not left by then is stopped or stuck
WAIT_S = 60.0  # for the flock: a holder on another host that neither leaves nor lets go
OTHER_HOST_S = 4.0  # after taking over from one that the flock does not tell of: two looks and the kill


class Fenced(Exception):
    """This attempt may not write to the run folder; the text says why."""


def side_file(folder: Path, kind: str) -> Path:
    """`007.lock`, `007.exit`, `007.stop`, `007.job` beside the run folder `007`."""
    return folder.parent / f"{folder.name}.{kind}"


def read(folder: Path) -> dict[str, Any]:
    """The fence's record."""
    return owner_record(side_file(folder, "lock"))


def current(folder: Path, token: str) -> bool:
    """Whether the run folder is still this process's; an unreadable file changes nothing."""
    return bool(read(folder).get("token", token) == token)


def enter(folder: Path, attempt: int, attempt_id: str, token: str, over: Callable[[], str]) -> int:
    """Makes this process the run folder's only writer.

    Args:
        folder: run folder; need not exist, its parent must.
        attempt: number of the attempt, from 1; attempt_id: the ledger's id of it.
        token: random, of this process.
        over: why there is no use in waiting any longer, "" while there is.

    Returns:
        A descriptor that holds the flock; closing it (in every process that inherited it) lets go.

    Raises:
        Fenced: a newer attempt has it, or the holder did not let go within WAIT_S.
    """
    before = read(folder)
    if before.get("attempt", 0) > attempt:
        raise Fenced(f"attempt {before['attempt']} is newer")
    path, host = side_file(folder, "lock"), platform.node()
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    write_record(lock, {"attempt": attempt, "id": attempt_id, "token": token, "host": host, "pid": os.getpid()})
    start = time.monotonic()
    while (locked := flock(lock)) is False:
        waited = time.monotonic() - start
        if reason := over():
            raise Fenced(reason)
        if waited > WAIT_S:
            raise Fenced(f"{path} is still held by a process on {before.get('host', 'some host')}")
        if waited > KILL_AFTER_S and before.get("host") == host:
            _kill_holder(before["pid"], folder)
        time.sleep(0.05)
    ended = owner_record(side_file(folder, "exit")).get("token") == before.get("token")
    if before and not ended and (before["host"] != host or locked is None):
        time.sleep(OTHER_HOST_S)
    return lock


def _kill_holder(pid: int, folder: Path) -> None:
    """SIGKILL to an older wrapper of this host; its number may be another program's by now, so its words are read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"engine.jobs.attempt" in words and os.fsencode(folder) in words:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return  # gone
