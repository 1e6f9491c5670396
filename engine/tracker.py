"""Weights & Biases, kept out of the way: everything happens on a thread of its own, and no failure of it stops a run.

Facts it is built around (wandb 0.31): `init` without a key raises and would end the run; `init` against a server that
does not answer blocks for its whole time limit; a log call takes 0.4 ms. So the mode is decided here by a look at the
key and a 2 s knock on the server, and the training thread does nothing but put a dictionary into a bounded queue.
"""

import hashlib
import netrc
import os
import queue
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config import Config, to_dict

QUEUE_SIZE = 1000
PROBE_TIMEOUT_S = 2.0
INIT_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 5.0
DEFAULT_SERVER = "https://api.wandb.ai"


def start_tracker(config: Config, folder: Path) -> "Tracker | None":
    """A running tracker, or None where `wandb=false`. Returns at once."""
    return Tracker(config, folder) if config.wandb else None


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


class Tracker:
    """Sends metrics to W&B from a background thread.

    `log` and `summary` never block and never raise; records that do not fit into the queue are dropped and counted.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.dropped = 0
        self._queue: queue.Queue = queue.Queue(maxsize=QUEUE_SIZE)
        self._dead = threading.Event()
        arguments = (config.wandb_project, to_dict(config), folder.resolve())
        self._thread = threading.Thread(target=self._run, args=arguments, name="tracker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether records still go anywhere."""
        return not self._dead.is_set()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Hands over the scalars of a step."""
        self._put(("log", dict(values), step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Hands over final figures."""
        self._put(("summary", dict(values), 0))

    def _put(self, item: tuple) -> None:
        if self._dead.is_set():
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Waits at most CLOSE_TIMEOUT_S for what is queued; what is left then stays in the run folder's wandb/."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.put(None, timeout=0.05)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            _warn(f"W&B has not finished in {CLOSE_TIMEOUT_S:g} s; metrics.jsonl is complete")
        if self.dropped:
            _warn(f"W&B was too slow for {self.dropped} records; metrics.jsonl has them")

    def _run(self, project: str, config: dict, folder: Path) -> None:
        try:
            import wandb  # 1 to 2 s, only where it is wanted

            faults = (wandb.Error, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError)
        except ImportError as error:
            self._dead.set()
            _warn(f"wandb cannot be imported ({error}); the run goes on without it")
            return
        try:
            self._serve(_init(wandb, project, config, folder))
        except faults as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            _warn(f"W&B stopped ({reason}); the run goes on, metrics.jsonl is complete")
        finally:
            self._dead.set()

    def _serve(self, run: Any) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                run.finish()
                return
            kind, values, step = item
            if kind == "log":
                run.log(values, step=step)
            else:
                run.summary.update(values)


def _init(wandb: Any, project: str, config: dict, folder: Path) -> Any:
    """Starts W&B's run. Its id comes from the folder, so that a resumed run goes on in the same one."""
    mode, reason = choose_mode()
    if mode != "online":
        _warn(f"W&B is {mode}: {reason}; `wandb sync {folder / 'wandb'}/offline-*` sends it later", "note")
    settings = wandb.Settings(init_timeout=INIT_TIMEOUT_S, silent=True, console="off", disable_git=True)
    return wandb.init(
        project=project,
        name=folder.name,
        id=hashlib.sha256(f"{os.uname().nodename}:{folder}".encode()).hexdigest()[:16],
        resume="allow" if mode == "online" else None,
        dir=folder,
        config=config,
        mode=mode,
        settings=settings,
    )


def _warn(text: str, word: str = "WARNING") -> None:
    print(f"{word}: {text}", file=sys.stderr, flush=True)
