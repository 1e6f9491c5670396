"""The thread that stays awake while the loop works: it takes signals, and finds the rank that hangs.

SIGTERM, SIGINT and SIGUSR1 (Slurm's preemption) ask the run to stop: the step ends, a checkpoint is written, exit code
75. A second one stops at once. Signals arrive here through a pipe, since Python's own handlers run only when the main
thread returns from C, which a rank that waits for a dead one never does.

Every rank ticks after each step (and each evaluated batch) and publishes the count once a second in torchrun's store.
A rank whose own tick is `limit_s` late looks at the others': one whose count of seconds stands still is frozen (or its
machine is gone), else the one with the fewest ticks hangs. It is named, all threads' stacks are dumped, the process
ends with code 71; torchrun then ends the others, by SIGKILL after 30 s. While the loop pauses the watch (compilation,
opening data, a slow disk) only a frozen rank counts; what else waits there has the process group's hour.
"""

import contextlib
import datetime
import faulthandler
import json
import os
import secrets
import select
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker
from typing import Any

import torch.distributed as dist

from engine.console import one_line
from engine.distributed import Ranks, broadcast_object

EXIT_ASKED = 75  # EX_TEMPFAIL: start the same command again
EXIT_HANG = 71  # EX_OSERR
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
REPEAT_S = 2.0  # torchrun and Slurm may both pass one on: the same within this is no second request
BEAT_S = 1.0
ASLEEP_S = 5.0  # in a sleep of BEAT_S: a busy machine takes 2 or 3 s
STORE_TIMEOUT = datetime.timedelta(seconds=5)


class Watchdog:
    """One a process, started before the first step; `with` ends it and gives the signals back.

    Args:
        ranks: who we are; with several, made by all of them together.
        limit_s: longest time between two ticks, or from a tick to a pause; 0 = no watch.
    """

    def __init__(self, ranks: Ranks, limit_s: float) -> None:
        self.asked = ""  # name of the signal that asks this run to stop, of any rank
        self.written = False  # the last checkpoint is: a second signal has nothing to cut off
        self.ranks, self.limit_s = ranks, limit_s
        self._defer = False  # a request waits for the end of the step; else it ends the process
        self._asked_at, self._own = 0.0, ""
        self._ticks, self._paused, self._ticked = 0, True, time.monotonic()
        self._seen: dict[int, tuple[int, float]] = {}  # rank -> its last beat and when that came
        self._beat, self._main = 0, threading.get_ident()  # made in the thread that trains
        self._store = self._open_store() if ranks.world_size > 1 else None
        self._parent = os.getppid()
        self._done = threading.Event()
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._before: dict[signal.Signals, Any] = {}  # what handled them
        self._wakeup = -1
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if threading.current_thread() is threading.main_thread():  # Python's condition for handlers
            self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            # Python's resource tracker lets SIGTERM and SIGINT pass, and SIGUSR1 if it was started with that ignored.
            before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            resource_tracker.ensure_running()
            signal.signal(signal.SIGUSR1, before)
            for number in (signal.SIGTERM, signal.SIGUSR1):  # Ctrl-C before the first step is just that
                self._before[number] = signal.signal(number, lambda *_: None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with contextlib.suppress(BlockingIOError):
            os.write(self._pipe[1], b"\0")
        self._thread.join()
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        for end in self._pipe:
            os.close(end)

    def _open_store(self) -> "dist.Store":
        """A connection of our own to the rendezvous store: it is used from our thread, with a short time limit."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)
        # The store outlives a restart of the ranks: a name of its own for each life.
        return dist.PrefixStore(f"dbnet/{broadcast_object(secrets.token_hex(8))}", store)

    def defer(self, yes: bool) -> None:
        """With True a request to stop waits for the loop to look at `asked`; with False it ends the process at once.

        True from the first step to the last checkpoint: before and after there is nothing to save.
        """
        self._defer = yes
        if not self._before:
            return
        if yes and signal.SIGINT not in self._before:
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
        elif not yes and signal.SIGINT in self._before and not self.asked:
            signal.signal(signal.SIGINT, self._before.pop(signal.SIGINT))

    def tick(self, step: bool = True) -> None:
        """The loop has got on: the watch runs until the next tick or `pause`.

        Args:
            step: an optimizer step, which all ranks do as many of, and not a page of an evaluation.
        """
        self._ticks, self._ticked, self._paused = self._ticks + step, time.monotonic(), False

    def pause(self) -> None:
        """Something that may take long comes next: compilation, opening data, a slow disk."""
        self._ticked, self._paused = time.monotonic(), True

    def page_judged(self, over: bool) -> bool:
        """For an evaluation: a page is judged or, with `over`, all are, and ranks wait for each other next.

        Returns:
            whether a stop is asked for, which cuts the evaluation off.
        """
        if over:
            self.pause()
        else:
            self.tick(step=False)
        return bool(self.asked)

    def _watch(self) -> None:
        warned = False
        while not self._done.is_set():
            begin = time.monotonic()
            ready = select.select([self._pipe[0]], [], [], BEAT_S)[0]
            slept = time.monotonic() - begin
            if ready:
                for number in os.read(self._pipe[0], 64):
                    if number in SIGNALS:
                        self._take(signal.Signals(number))
            self._orphaned()
            if slept > ASLEEP_S:  # Ctrl-Z, Slurm's suspend: time in which nothing here ran is nobody's delay
                self._ticked += slept
                self._seen.clear()
            try:
                self._publish()
                self._look()
            except dist.DistError as error:
                if self._late() >= self.limit_s > 0 and not self._paused:
                    self._end("the rendezvous store (torchrun's, or rank 0's) does not answer")
                if not warned and not self._done.is_set():
                    say(f"WARNING: rank {self.ranks.rank}: the rendezvous store does not answer ({one_line(error)})")
                warned = True

    def _late(self) -> float:
        return time.monotonic() - self._ticked

    def _take(self, number: signal.Signals) -> None:
        """A signal has come."""
        if not self._defer:
            if number == signal.SIGINT and signal.SIGINT not in self._before:
                return  # Python's own KeyboardInterrupt
            say(f"rank {self.ranks.rank}: {number.name}: stopped; every step that was to be kept is in a checkpoint")
            os._exit(EXIT_ASKED)
        now = time.monotonic()
        if self._own and now - self._asked_at > REPEAT_S:
            if self.written:
                os._exit(EXIT_ASKED)
            say(f"rank {self.ranks.rank}: {number.name} again: stopped at once, without a checkpoint")
            os._exit(128 + number)
        if not self._own:
            self._own, self._asked_at, before = number.name, now, self.asked
            self.asked = before or number.name
            if not before:
                say(
                    f"rank {self.ranks.rank}: {number.name}: stopping after this step with a checkpoint; again: at once"
                )

    def _orphaned(self) -> None:
        """torchrun was killed: nobody would end or restart this rank, so it ends itself, with a checkpoint."""
        if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != self._parent and not self.asked:
            self._parent = os.getppid()
            if not self._defer:
                os._exit(EXIT_ASKED)
            self.asked = "the end of torchrun"
            say(f"rank {self.ranks.rank}: torchrun has gone: stopping after this step, with a checkpoint")

    def _publish(self) -> None:
        """Once a second: our beat, ticks and place, and a request to stop, for the others to see."""
        self._beat += 1
        if self._store is None:
            return
        state = [self._beat, self._ticks, self._paused, _place(self._main)]
        self._store.set(f"rank{self.ranks.rank}", json.dumps(state))
        if self.asked:
            self._store.set("stop", self.asked)
        elif self._store.check(["stop"]):
            self.asked = self._store.get("stop").decode()

    def _look(self) -> None:
        """Looks for the reason when the loop is late, and ends the process when it is clear."""
        late = self._late()
        if not self.limit_s or not self._ticks or late < self.limit_s / 2:  # the watch starts with the first step
            self._seen.clear()
            return
        states, now = self._others(), time.monotonic()
        still = max(self.limit_s / 2, 10 * BEAT_S)
        frozen = [rank for rank, (_, since) in self._seen.items() if now - since >= still]
        if late >= self.limit_s and frozen:
            self._end(f"{_ranks(frozen)} shows no sign of life: stopped, or its machine is gone")
        if late < self.limit_s or self._paused:
            return
        states[self.ranks.rank] = (self._ticks, False, _place(self._main))
        fewest = min(ticks for ticks, _, _ in states.values())
        behind = sorted(rank for rank, (ticks, _, _) in states.items() if ticks == fewest)
        # Also of as many steps as the others: a slow disk holds rank 0 after its last collective.
        if any(paused for _, paused, _ in states.values()):
            return
        if len(behind) == len(states) > 1:  # each waits in the same step: the odd place is the one to look at
            places = ", ".join(f"rank {rank} in {place}" for rank, (_, _, place) in sorted(states.items()))
            self._end(f"no rank gets on: {places}")
        self._end(f"{_ranks(behind)} does not get on")

    def _others(self) -> dict[int, tuple[int, bool, str]]:
        """Ticks, whether paused, and place of the other ranks; notes whose beat has changed since the last look."""
        if self._store is None:
            return {}
        ranks = [rank for rank in range(self.ranks.world_size) if rank != self.ranks.rank]
        values = self._store.multi_get([f"rank{rank}" for rank in ranks])
        states, now = {}, time.monotonic()
        for rank, value in zip(ranks, values, strict=True):
            beat, *state = json.loads(value)
            states[rank] = tuple(state)
            if self._seen.get(rank, (-1, 0.0))[0] != beat:
                self._seen[rank] = (beat, now)
        return states

    def _end(self, reason: str) -> None:
        waited = f"has waited {self._late():.0f} s (trainer.hang_timeout_s={self.limit_s:g}, 0 = off)"
        say(f"error: rank {self.ranks.rank} {waited}: {reason}. Stacks of rank {self.ranks.rank}:")
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(EXIT_HANG)


def say(text: str) -> None:
    """One line on stderr, whole and at once; a log that cannot be written must not keep a signal from its work."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _place(thread: int) -> str:
    """Where a thread is: file and line of its innermost Python frame."""
    frame = sys._current_frames().get(thread)
    return "/".join(frame.f_code.co_filename.split("/")[-2:]) + f":{frame.f_lineno}" if frame else "no frame"


def _ranks(numbers: list[int]) -> str:
    return "rank " + ", ".join(str(number) for number in numbers)
