"""One attempt at a trial: the process around one training, which takes the whole of it along wherever it goes.

    python -m engine.jobs.attempt --folder STUDY/trials/007 --log STUDY/logs/007.1.log --attempt 1 --id ID -- COMMAND

    executor --stdin--> wrapper (this) --> training (torchrun) --> ranks, scoring processes, ...
                          `--> keeper

- `engine.jobs.fence`: of several attempts at one trial only the newest writes.
- Its executor is the parent and holds the other end of stdin: end of file, or another parent, means that it is gone.
  Then, and on SIGTERM, the training gets SIGTERM, after a grace everything of it SIGKILL.
- Everything: torchrun's ranks have sessions of their own, so a process group is not enough. All processes of an attempt
  carry its token in their environment (MARK), and the wrapper is their subreaper, so orphans become its children.
- SIGKILL of the wrapper: the keeper, a fork of it with a session of its own, waits for that on a pipe and kills
  everything that carries the mark. It holds the fence until it is done. SIGKILL of the keeper: there is a new one.
- `STUDY/trials/007.exit` says how it ended, `007.stop` asks it to end, for executors on other machines.

The exit code is the training's, 128 + number for a signal, 75 when a newer attempt has the folder.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import argparse
import ctypes
import dataclasses
import json
import os
import platform
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from engine.files import owner_record, replace_text
from engine.jobs import fence

MARK = "DBNET_ATTEMPT"  # environment variable that every process of an attempt carries
EXIT_FENCED = 75  # EX_TEMPFAIL
EXIT_NO_COMMAND = 127
GRACE_S = 20.0  # between SIGTERM and SIGKILL, unless `.stop` says otherwise
GONE_GRACE_S = 2.0  # the same when the driver is gone: a checkpoint's last bytes are not worth a GPU held for nobody
SWEEP_S = 10.0  # for killing what an attempt leaves
TAIL_BYTES = 65536  # of the log, read for the reason
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

STOPPED, DRIVER_ENDED, TOOK_OVER = "stopped", "driver ended", "a newer attempt took over"
# torch.OutOfMemoryError, MemoryError, RuntimeError of the CPU allocator, slurmstepd, torchrun about a killed rank.
MEMORY = re.compile(r"out of memory|\bMemoryError\b|can't allocate memory|cannot allocate memory|oom[-_ ]kill", re.I)
# engine.training.watchdog's codes, of the training or of a rank in torchrun's summary: asked to stop, or a rank hung.
ASKED, HUNG = 75, 71
LEFT = re.compile(rf"exitcode\s*: ({ASKED}|{HUNG})\b")
REFUSED, REFUSED_RANK = 2, re.compile(r"exitcode\s*: 2\b")  # engine.cli's EXIT_USER_ERROR; torchrun itself ends with 1
RANK_KILLED = re.compile(r"exitcode\s*: -(\d+)|Signal (\d+) \(SIG")


@dataclasses.dataclass(frozen=True)
class End:
    """How an attempt ended: what `007.exit` holds."""

    attempt: int
    id: str
    token: str  # of the wrapper process
    code: int  # of the process; 128 + number for a signal
    signal: int  # that ended the training, 0 for none
    reason: str  # one line; "" for a success
    outside: bool  # the cause lies outside the trial: signals, memory, the driver, the machine
    peak_mib: int  # largest resident set of one of its processes
    seconds: float
    host: str


def verdict(status: int, cause: str, tail: str) -> tuple[int, int, str, bool]:
    """What an end means.

    Args:
        status: of the training, as `os.wait` gives it.
        cause: why this wrapper ended it; "" when it ended by itself.
        tail: last lines of the log.

    Returns:
        Exit code, signal or 0, reason in one line, whether the cause lies outside the trial.
    """
    code = os.waitstatus_to_exitcode(status)
    number = max(-code, 0)
    if number:
        code = 128 + number
    if cause:
        return (EXIT_FENCED if cause == TOOK_OVER else code), number, cause, cause != STOPPED
    if code == 0:
        return 0, 0, "", False
    if MEMORY.search(tail):
        return code, number, "out of memory", True
    left = code if code in (ASKED, HUNG) else next((int(c) for c in LEFT.findall(tail)), 0)
    if left:  # a preemption that reached the training alone, or a machine in trouble: not the trial's doing
        return 128 + signal.SIGTERM, number, "stopped by a signal" if left == ASKED else "a rank hung", True
    ranks = [int(a or b) for a, b in RANK_KILLED.findall(tail)]
    killed = number or next((n for n in ranks if n != signal.SIGTERM), 0)  # torchrun itself ends the others by SIGTERM
    if killed:
        crash = killed in (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)  # the program's own doing
        return code, number, f"killed ({_signal_name(killed)})", not crash
    if REFUSED_RANK.search(tail):
        code = REFUSED
    return code, 0, last_words(tail) or f"exit code {code}", False


def last_words(tail: str) -> str:
    """The line of a log that says why: `error: ...` of an entry point, or else the last line with an exception."""
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    errors = [line[7:] for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    found = errors[-1:] or raised[-1:] or lines[-1:]
    return found[0][: 1000 if errors else 300] if found else ""  # of an error's line the end is the mend


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _carriers(token: str) -> list[int]:
    """Living processes that carry the mark, or are children of this one."""
    mark, me, found = f"{MARK}={token}".encode(), os.getpid(), []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
            with open(f"/proc/{name}/environ", "rb") as file:
                marked = mark in file.read().split(b"\0")
        except OSError:  # gone, or another user's
            continue
        if state != b"Z" and (marked or int(parent) == me):
            found.append(int(name))
    return found


def sweep(token: str, spare: int = 0) -> None:
    """SIGKILL to everything of the attempt until nothing is found three times in a row, a moment apart.

    Killing a parent shows its children, so this ends with the last of them. `spare` is a process to leave alone.
    """
    deadline, clean = time.monotonic() + SWEEP_S, 0
    while clean < 3 and time.monotonic() < deadline:
        found = [pid for pid in _carriers(token) if pid != spare]
        for pid in found:
            _kill(pid, signal.SIGKILL)
        clean = 0 if found else clean + 1
        time.sleep(0.02)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")


class Wrapper:
    """State of the process: the training's number, why it is being ended, what was reaped."""

    def __init__(self, folder: Path, token: str, parent: int) -> None:
        self.folder, self.token, self.parent = folder, token, parent
        self.child = self.keeper = 0
        self.status: int | None = None  # of the training, once it has ended
        self.peak_kib = 0
        self.signalled = False  # somebody sent SIGTERM or SIGINT
        self.gone = False  # the executor is
        self._pipe = -1
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning to all of a job; inherited by the training
        signal.signal(signal.SIGCHLD, lambda *_: None)  # wakes `wait`
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def _note(self, *_: object) -> None:
        self.signalled = True

    def keep(self) -> None:
        """Forks the keeper: it waits until this process is gone, kills what carries the mark, and leaves."""
        if self._pipe >= 0:
            os.close(self._pipe)
        end, self._pipe = os.pipe()
        self.keeper = os.fork()  # a single thread, so a fork is safe
        if self.keeper:
            os.close(end)
            return
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        os.close(self._pipe)
        while os.read(end, 1):
            pass
        sweep(self.token)
        os._exit(0)

    def start(self, command: list[str], log: int) -> None:
        """Starts the training. It gets SIGKILL when this process ends in any way (PR_SET_PDEATHSIG)."""
        me = os.getpid()

        def die_with_parent() -> None:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != me:
                os._exit(1)

        environment = {**os.environ, MARK: self.token, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, preexec_fn=die_with_parent
        )
        self.child, process.returncode = process.pid, 0  # reaped here, with its memory, not by Popen

    def reap(self) -> None:
        """Takes in all children that have ended; a keeper that was killed gets a successor."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.keeper:
                self.keep()
                continue
            self.peak_kib = max(self.peak_kib, usage.ru_maxrss)
            if pid == self.child:
                self.status = status

    def wait(self, seconds: float) -> None:
        """Sleeps until a signal (a child's end is one), the end of stdin, or `seconds` have passed."""
        watched = [self._wake, *([0] if self.parent and not self.gone else [])]
        if self._wake in select.select(watched, [], [], seconds)[0]:
            os.read(self._wake, 512)

    def cause(self, attempt_id: str) -> tuple[str, float]:
        """(why the training must end, grace in seconds), ("", 0) while it may go on."""
        if self.parent and not self.gone:
            self.gone = os.getppid() != self.parent or _at_end_of_file()
        if self.gone:
            return DRIVER_ENDED, GONE_GRACE_S
        if not fence.current(self.folder, self.token):
            return TOOK_OVER, 0.0
        asked = owner_record(fence.side_file(self.folder, "stop"))
        if asked.get("id") == attempt_id:
            return STOPPED, float(asked["grace"])
        return (STOPPED, GRACE_S) if self.signalled else ("", 0.0)

    def watch(self, attempt_id: str) -> str:
        """Waits for the training's end, or brings it about; returns why (""= it ended by itself)."""
        cause = ""
        while not cause:
            self.reap()
            if self.status is not None:
                return ""
            cause, grace = self.cause(attempt_id)
            if not cause:
                self.wait(fence.POLL_S)
        _kill(self.child, signal.SIGTERM if grace else signal.SIGKILL)
        begin = time.monotonic()
        while self.status is None:
            reason, shorter = self.cause(attempt_id)  # a driver that goes now, a newer attempt: less patience
            if reason:
                grace = min(grace, shorter)
            left = begin + grace - time.monotonic()
            if left <= 0:
                _kill(self.child, signal.SIGKILL)
            self.wait(max(min(left, fence.POLL_S), 0.05))
            self.reap()
        return cause


def _at_end_of_file() -> bool:
    """Whether the executor has let go of stdin; what it may have written there is thrown away."""
    while select.select([0], [], [], 0)[0]:
        if not os.read(0, 4096):
            return True
    return False


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Replaces a small JSON file in one move; a disk that is full is reported on stderr, no more."""
    try:
        replace_text(path, json.dumps(record) + "\n")
    except OSError as error:
        print(f"WARNING: {path} cannot be written ({error})", file=sys.stderr, flush=True)


def attempt(folder: Path, log: Path, number: int, attempt_id: str, command: list[str], parent: int) -> int:
    """Runs one attempt to its end; see the module's docstring.

    Args:
        folder: run folder of the trial; its parent must exist, here are the fence and `.exit`.
        log: file that the output is appended to.
        number, attempt_id: which attempt, as in the ledger.
        command: of the training.
        parent: process that started this one and holds the other end of stdin; 0 to depend on nobody.
    """
    begin, token = time.monotonic(), secrets.token_hex(8)
    wrapper = Wrapper(folder, token, parent)

    def ended(code: int, number_of_signal: int, reason: str, outside: bool) -> int:
        peak, seconds = wrapper.peak_kib // 1024, round(time.monotonic() - begin, 3)
        end = End(number, attempt_id, token, code, number_of_signal, reason, outside, peak, seconds, platform.node())
        if fence.current(folder, token):
            write_json(fence.side_file(folder, "exit"), dataclasses.asdict(end))
        return code

    try:
        fence.enter(folder, number, attempt_id, token, lambda: wrapper.cause(attempt_id)[0])
    except fence.Fenced as error:
        print(f"error: {folder}: {error}", file=sys.stderr, flush=True)
        return ended(EXIT_FENCED, 0, str(error), True)
    output = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    offset = os.fstat(output).st_size
    wrapper.keep()
    try:
        wrapper.start(command, output)
    except OSError as error:  # no such program, or not to be executed
        os.write(output, f"error: {command[0]}: {error.strerror}\n".encode())
        return ended(EXIT_NO_COMMAND, 0, f"{command[0]}: {error.strerror}", False)
    cause = wrapper.watch(attempt_id)
    sweep(token, spare=wrapper.keeper)
    wrapper.reap()
    size = os.fstat(output).st_size
    tail = os.pread(output, TAIL_BYTES, max(offset, size - TAIL_BYTES)).decode(errors="replace")
    assert wrapper.status is not None, "watch and sweep end with it"
    return ended(*verdict(wrapper.status, cause, tail))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="engine.jobs.attempt", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--parent", type=int, default=0, help="process that holds the other end of stdin")
    parser.add_argument("command", nargs="+")
    words = parser.parse_args(argv)
    return attempt(words.folder, words.log, words.attempt, words.id, words.command, words.parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
