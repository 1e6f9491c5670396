"""Writing checkpoints beside the training: a thread of its own, which goes on trying when the disk fails it."""

import dataclasses
import itertools
import math
import threading
import time
from pathlib import Path
from typing import Any

import safetensors

from engine.checkpoint import store
from engine.console import reason, warn
from pipelines.errors import UserError

RETRY_S = (10.0, 30.0, 60.0)  # before the first, second, every further try of a checkpoint the disk has failed
PATIENCE_S = 30.0  # for the last checkpoint of a run
DISK = (OSError, safetensors.SafetensorError)  # the latter wraps the operating system's
BUGS = (RuntimeError, TypeError, ValueError, KeyError, AttributeError, AssertionError, MemoryError)


@dataclasses.dataclass
class Job:
    """One checkpoint to be written: what `checkpoint.write` takes, and where it is once it is written."""

    parts: dict[str, store.Tensors]
    state: dict[str, Any]
    config_yaml: str
    best: bool
    path: Path | None = None


class Writer:
    """Writes checkpoints one after another, in the order they were given.

    A write that the disk fails is a warning: training goes on, the snapshot is kept and tried again after RETRY_S until
    a newer one comes and takes its place. `refuse` ends the run when too many in a row have failed. Any other exception
    is a bug, raised by the next `save` or `wait`.

    Args:
        folder: the run's checkpoints folder; this process is its only writer.
        keep_last, keep_top_k: as `checkpoint.prune` takes them.
        max_failed: checkpoints in a row that may fail; 0 = any number.
    """

    def __init__(self, folder: Path, keep_last: int, keep_top_k: int, max_failed: int = 0) -> None:
        self.folder, self.keep, self.max_failed = folder, (keep_last, keep_top_k), max_failed
        self.failures = 0  # checkpoints in a row that could not be written
        self.saved: Path | None = None  # the last one written
        self._why = ""
        self._bug: BaseException | None = None
        self._changed = threading.Condition()
        self._next: Job | None = None  # one waits at most: a slow disk holds the loop back, not the memory full
        self._current: Job | None = None
        self._give_up: float | None = None  # time.monotonic() after which a failed one is not tried again
        store.sweep(folder)
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    def save(
        self, parts: dict[str, store.Tensors], state: dict[str, Any], config_yaml: str, best: bool = False
    ) -> None:
        """Hands over one checkpoint; `best` also moves the `best` link."""
        self._raise()
        with self._changed:
            self._changed.wait_for(lambda: self._next is None or self._bug is not None)
            self._next = Job(parts, state, config_yaml, best)
            self._changed.notify_all()

    def wait(self, patience: float = PATIENCE_S) -> None:
        """Returns when everything handed over is on disk, or has failed and `patience` seconds have passed.

        A write under way is waited for however long it takes; one that waits for its next try is tried at once.
        """
        with self._changed:
            self._give_up = time.monotonic() + patience
            self._changed.notify_all()
            self._changed.wait_for(lambda: (self._next is None and self._current is None) or self._bug is not None)
            self._give_up = None
        self._raise()

    def refuse(self, limit: int | None = None) -> None:
        """Ends the run when `limit` checkpoints in a row could not be written (max_failed by default).

        Raises:
            UserError: they could not, and one more try has not helped either.
        """
        limit = self.max_failed if limit is None else limit
        if not limit or self.failures < limit:
            return
        self.wait(0)
        if self.failures:
            kept = f"the last one written is {self.saved.name}" if self.saved else "none was written in this session"
            raise UserError(
                f"{self.folder}: the last {self.failures} checkpoints could not be written ({self._why}), {kept}; free "
                "the disk and start again with resume=auto"
            )

    def _raise(self) -> None:
        if self._bug is not None:
            raise RuntimeError("the checkpoint writer failed") from self._bug

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                job = self._next
                assert job is not None
                self._current, self._next = job, None
                self._changed.notify_all()
            ended = False
            try:
                self._finish(job)
                ended = True
            except BUGS as error:
                self._bug = error
                ended = True
            finally:
                if not ended:  # this thread dies of something nobody thought of: nobody may wait for it
                    self._bug = RuntimeError("its thread has ended")
                with self._changed:
                    self._current = None
                    self._changed.notify_all()

    def _finish(self, job: Job) -> None:
        """Writes a checkpoint, at once or later; returns without when it is given up for a newer one."""
        for number, delay in enumerate(itertools.chain(RETRY_S, itertools.repeat(RETRY_S[-1]))):
            try:
                self._write(job)
            except DISK as error:
                self._why = reason(error)
                if number == 0:
                    self.failures += 1
                    self._complain(job.state["step"])
            else:
                if self.failures:
                    warn(f"note: {self.saved} is written, after {self.failures} that could not be at first")
                self.failures = 0
                return
            if not self._again(delay):
                return

    def _complain(self, step: int) -> None:
        if self.failures & (self.failures - 1):
            return  # the 1st, 2nd, 4th, 8th ... in a row are enough
        before = f", like {self.failures - 1} before it" if self.failures > 1 else ""
        kept = self.saved.name if self.saved else "none of this session"
        warn(
            f"WARNING: checkpoint of step {step} not written to {self.folder} ({self._why}){before}; training goes on, "
            f"it will be tried again; the last one written: {kept}"
        )

    def _again(self, delay: float) -> bool:
        """Waits for the next try; False when there is none, since a newer checkpoint waits or the time is up."""
        with self._changed:
            asked, now = self._give_up, time.monotonic()
            left = math.inf if asked is None else asked - now
            if left <= 0:
                return False
            ended = self._changed.wait_for(
                lambda: self._next is not None or self._give_up != asked, timeout=min(delay, left)
            )
            return not ended or self._next is None

    def _write(self, job: Job) -> None:
        if job.path is None or not job.path.exists():  # the run's folder may be deleted under it
            job.path = store.write(self.folder, job.parts, job.state, job.config_yaml)
        store.link(self.folder, "last", job.path)
        # By score too: the run's best may be one that was never written.
        score, linked = job.state.get("score"), store.score(self.folder / "best")
        if job.best or (score is not None and (linked is None or score > linked)):
            store.link(self.folder, "best", job.path)
        self.saved = job.path
        try:
            store.prune(self.folder, *self.keep)
        except OSError as error:  # a matter of space only; the next one tries again
            warn(f"WARNING: {self.folder}: old checkpoints cannot be deleted ({reason(error)})")
