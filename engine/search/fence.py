"""The fence of a run folder: of several attempts at one trial only the newest may write there.

`trials/007.lock`, beside the run folder (engine.train refuses a folder that is not empty), names the current attempt:

    {"attempt": 2, "id": "...", "token": "...", "host": "n1", "pid": 4711, "ended": false}

A newer attempt writes its own token there, then waits for the flock; the older one reads the file every second, finds
another token and ends. The token decides, since flock may not reach from host to host (NFS); it is one wrapper
process's, so that a requeued job fences its first life, whose attempt id is the same.
"""

import fcntl
import json
import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_S = 1.0  # between two looks of the holder at the file
KILL_AFTER_S = 4.0  # a holder on this host that has not left by then is stopped or stuck
WAIT_S = 60.0  # for the flock: a holder on another host that neither leaves nor lets go
OTHER_HOST_S = 4.0  # after taking over from another host without its goodbye: two looks and the kill


class Fenced(Exception):
    """This attempt may not write to the run folder; the text says why."""


def lock_path(folder: Path) -> Path:
    """The fence file of a run folder."""
    return folder.parent / f"{folder.name}.lock"


def read(folder: Path) -> dict[str, Any]:
    """The fence's record; {} where there is none or it is just being written."""
    try:  # opened anew each time: NFS shows another host's writes only to those who open
        record = json.loads(lock_path(folder).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def current(folder: Path, token: str) -> bool:
    """Whether the run folder is still this process's; an unreadable file changes nothing."""
    return read(folder).get("token", token) == token


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
    lock = os.open(lock_path(folder), os.O_RDWR | os.O_CREAT, 0o644)
    host = platform.node()
    _write(lock, {"attempt": attempt, "id": attempt_id, "token": token, "host": host, "pid": os.getpid()})
    start = time.monotonic()
    while not _try_lock(lock):
        waited = time.monotonic() - start
        if reason := over():
            raise Fenced(reason)
        if waited > WAIT_S:
            raise Fenced(f"{lock_path(folder)} is still held by a process on {before.get('host', 'some host')}")
        if waited > KILL_AFTER_S and before.get("host") == host:
            _kill_holder(before["pid"], folder)
        time.sleep(0.05)
    if before and not before.get("ended") and before.get("host") != host:
        time.sleep(OTHER_HOST_S)
    return lock


def leave(lock: int, folder: Path, token: str) -> None:
    """Says goodbye: whoever comes next need not wait for this process."""
    record = read(folder)
    if record.get("token") == token:
        _write(lock, {**record, "ended": True})


def _write(lock: int, record: dict) -> None:
    """One short line in place: a rename would take the flock's file away from under its holder."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, (json.dumps(record) + "\n").encode(), 0)
    os.fsync(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kill_holder(pid: int, folder: Path) -> None:
    """SIGKILL to an older wrapper of this host; its number may be another program's by now, so its words are read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"engine.search.attempt" in words and os.fsencode(folder) in words:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return  # gone
