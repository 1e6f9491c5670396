"""Weights & Biases, kept out of the way: it lives in a process of its own, and no failure of it stops a run.

What wandb 0.31 does, and why a thread is not enough: `init` without a key raises and would end the run; `init` against
a server that accepts and never answers blocks for its time limit, and even from a daemon thread holds the interpreter
at exit (measured: 20 s); a log call takes 0.4 ms. So the training process only puts dictionaries into a bounded queue;
a thread writes them as JSON lines to `python -m engine.run.tracker`, which decides the mode by a look at the key and a
2 s knock on the server, and which ends by itself when its input does.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import hashlib
import json
import math
import netrc
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine.console import one_line, warn

QUEUE_SIZE = 1000
PROBE_TIMEOUT_S = 2.0
INIT_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0
DISK_MARGIN = 2**20  # free bytes below which W&B's files are in danger; a record takes some 500
LINGER_S = 120.0  # the child's time for the last uploads once the run has ended
TRIAL = "DBNET_ATTEMPT"  # set in a search's trial (engine.jobs.attempt), whose processes all end with the training
DEFAULT_SERVER = "https://api.wandb.ai"
ROOT = Path(__file__).resolve().parents[2]


class Tracker:
    """Hands metrics to the W&B process.

    `log` and `summary` never block and never raise; records that do not fit into the queue are dropped and counted.

    Args:
        project, name: of the W&B run.
        config: nested dict of plain types, shown as the run's configuration.
        folder: the run's folder; W&B's files go to `folder/wandb`.
        labels: group and job_type of the run; empty ones are left out.
    """

    def __init__(
        self, project: str, name: str, config: Mapping[str, Any], folder: Path, labels: Mapping[str, str] | None = None
    ) -> None:
        self.dropped = 0
        self._queue: queue.Queue = queue.Queue(maxsize=QUEUE_SIZE)
        self._dead = threading.Event()
        self._child: subprocess.Popen | None = None
        head = {"project": project, "name": name, "config": config, "folder": str(folder.resolve()), "pid": os.getpid()}
        head["labels"] = {key: text for key, text in (labels or {}).items() if text}
        self._thread = threading.Thread(target=self._run, args=(head,), name="tracker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether records still go anywhere."""
        return not self._dead.is_set()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Hands over the scalars of a step."""
        self._put({"log": dict(values), "step": step})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Hands over final figures."""
        self._put({"summary": dict(values)})

    def _put(self, item: dict) -> None:
        if self._dead.is_set():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Waits at most CLOSE_TIMEOUT_S; the W&B process may go on sending for LINGER_S more, then it ends itself.

        In a trial of a search it would be killed, so there LINGER_S is waited for.
        """
        deadline = time.monotonic() + (LINGER_S if TRIAL in os.environ else CLOSE_TIMEOUT_S)
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.put({"end": True}, timeout=0.05)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            warn(f"note: W&B is still sending; it ends itself within {LINGER_S:g} s, metrics.jsonl is complete")
        if self.dropped:
            warn(f"WARNING: W&B was too slow for {self.dropped} records; metrics.jsonl has them")

    def _run(self, head: dict) -> None:
        """Feeds the child until the run ends or the child dies."""
        try:
            self._child = child = subprocess.Popen(
                [sys.executable, "-m", "engine.run.tracker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                cwd=ROOT, text=True, start_new_session=True,  # Ctrl-C is for the training; W&B is told by the end
            )  # fmt: skip
            messages = threading.Thread(target=_relay, args=(child.stdout,), daemon=True)
            messages.start()
            self._feed(child, head)
            messages.join()  # the child closes its output when it is done
            if child.wait():
                warn(f"WARNING: the W&B process ended with code {child.returncode}; metrics.jsonl is complete")
        except (OSError, ValueError, TypeError) as error:
            warn(f"WARNING: W&B stopped ({error}); the run goes on, metrics.jsonl is complete")
        finally:
            self._dead.set()

    def _feed(self, child: subprocess.Popen, head: dict) -> None:
        assert child.stdin is not None
        item = head
        try:
            while True:
                child.stdin.write(json.dumps(item) + "\n")
                child.stdin.flush()
                if "end" in item:
                    break
                item = self._queue.get()
        except BrokenPipeError:  # the child has ended and said why
            self._dead.set()
        try:
            child.stdin.close()
        except BrokenPipeError:
            self._dead.set()


def _relay(lines: Any) -> None:
    for line in lines:
        warn(line.rstrip())


def choose_mode() -> tuple[str, str]:
    """(mode, reason): WANDB_MODE if set; offline without a key or when the server does not answer; else online."""
    asked = os.environ.get("WANDB_MODE", "")
    if asked:
        return asked, f"WANDB_MODE={asked}"
    server = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL") or DEFAULT_SERVER)
    host = server.hostname or ""
    if not has_key(host):
        return "offline", "no API key (WANDB_API_KEY or `wandb login`)"
    try:
        port = server.port or (80 if server.scheme == "http" else 443)
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return "offline", f"{host} does not answer ({error})"
    return "online", "key and server found"


def has_key(host: str) -> bool:
    """Whether a W&B key for a server is in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _serve(output: Any) -> None:
    """The child: the first line of stdin says which run it is, the others are records. Messages go to `output`."""

    def tell(text: str) -> None:
        print(text, file=output, flush=True)

    head = json.loads(sys.stdin.readline())
    for name in [name for name, text in os.environ.items() if name.startswith("WANDB") and not text]:
        del os.environ[name]  # empty is unset here; wandb takes an empty WANDB_MODE for a wrong one
    try:
        import wandb
    except ImportError as error:
        tell(f"WARNING: wandb cannot be imported ({error}); the run goes on without it")
        return
    faults = (wandb.Error, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError)
    try:
        run = _start(wandb, head, tell)
        code = _copy(run, Path(head["folder"]) / "wandb", tell)
        alarm = threading.Timer(LINGER_S, os._exit, (1,))  # finish() waits for ever for a server that has gone
        alarm.daemon = True
        alarm.start()
        run.finish(exit_code=code)
    except faults as error:
        tell(f"WARNING: W&B stopped ({one_line(error)}); the run goes on, metrics.jsonl is complete")


def _start(wandb: Any, head: dict, tell: Callable[[str], None]) -> Any:
    """The W&B run: online where key and server allow it, else offline, and says so."""
    mode, reason = choose_mode()
    if mode == "online":
        try:
            return _init(wandb, head, mode)
        except (wandb.Error, OSError, RuntimeError, ValueError) as error:
            mode, reason = "offline", one_line(error)
            wandb.teardown()  # its service still holds the run's id
    run = _init(wandb, head, mode)
    tell(f"note: W&B is {mode}: {reason}; `wandb sync {head['folder']}/wandb/offline-*` sends it later")
    return run


def _copy(run: Any, folder: Path, tell: Callable[[str], None]) -> int:
    """Logs every record of stdin; 0 when the run ended in order, 1 when its process just went away.

    wandb loses records on a full disk without a word, so the disk is looked at here.
    """
    full = False
    for line in sys.stdin:
        item = json.loads(line)
        if not full and _free_bytes(folder) < DISK_MARGIN:
            full = True
            tell(f"WARNING: the disk of {folder} is full: W&B loses records; metrics.jsonl is kept apart from it")
        if "end" in item:
            return 0
        if "log" in item:
            run.log(item["log"], step=item["step"])
        else:
            run.summary.update(item["summary"])
    return 1


def _free_bytes(folder: Path) -> float:
    """Free space of a folder's disk; infinite where it cannot be told."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return math.inf
    return disk.f_bavail * disk.f_frsize


def _init(wandb: Any, head: dict, mode: str) -> Any:
    """Starts W&B's run. Its id comes from the folder, so that a resumed run goes on in the same one."""
    folder = head["folder"]
    return wandb.init(
        project=head["project"],
        name=head["name"],
        id=hashlib.sha256(f"{os.uname().nodename}:{folder}".encode()).hexdigest()[:16],
        resume="allow" if mode == "online" else None,
        dir=folder,
        config=head["config"],
        **head["labels"],
        mode=mode,
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT_S, silent=True, console="off", disable_git=True, x_stats_pid=head["pid"]
        ),
    )


if __name__ == "__main__":
    if sys.argv[1:] or sys.stdin is None or sys.stdin.isatty():
        sys.exit("error: engine.run.tracker is started by a training with wandb=true; it is no command of its own")
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what wandb prints is not for the user's terminal
    _serve(messages)
