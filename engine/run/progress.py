"""What a user sees of a running training: a bar on a terminal, plain lines everywhere else."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from pipelines.errors import printable

PARTS = ("prob_loss", "thresh_loss", "binary_loss")


def duration(seconds: float) -> str:
    """Seconds as `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: float | None, form: str) -> str:
    """A number of a record, where None stands for NaN or infinity."""
    return "nan" if value is None else format(value, form)


def train_line(record: Mapping[str, Any]) -> str:
    """Speed, data-wait share, learning rate and losses of a record; what is missing is left out."""
    shown = (
        ("images_per_second", "", ".1f", " img/s"), ("data_wait_share", "data ", ".0%", ""), ("lr", "lr ", ".2e", ""),
        ("loss", "loss ", ".4f", ""),
    )  # fmt: skip
    words = [f"{head}{_number(record[key], form)}{unit}" for key, head, form, unit in shown if key in record]
    parts = [f"{name.removesuffix('_loss')} {_number(record[name], '.3f')}" for name in PARTS if name in record]
    return "  ".join(words) + (f" ({' '.join(parts)})" if parts else "")


def score_line(record: Mapping[str, Any]) -> str:
    """H-mean, precision, recall, page mean and time of an evaluation; what is missing is left out."""
    names = ("hmean", "precision", "recall", "hmean_macro", "best")
    words = [f"{name} {_number(record[name], '.4f')}" for name in names if name in record]
    if record.get("seconds") is not None:
        words.append(f"in {duration(record['seconds'])}")
    return "  ".join(words)


class Progress:
    """A bar with one line of figures on a terminal; without one, a line for every record.

    Args:
        total_steps: length of the run; 0 = unknown, no time left is shown.
        max_epochs: for the display.
        first_step: step the run goes on from.
        console: where to write; stdout by default.
    """

    def __init__(self, total_steps: int, max_epochs: int, first_step: int = 0, console: Console | None = None) -> None:
        self.total_steps, self.max_epochs = total_steps, max_epochs
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._since: tuple[int, float] | None = None  # (step, time) of the first record: compiling is before it
        self._bar: Bar | None = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[figures]}"))
            # 2 redraws a second: each takes the interpreter lock for a few ms
            self._bar = Bar(*columns, console=self.console, refresh_per_second=2, transient=True)
            self._bar.add_task("starting", total=total_steps or None, completed=first_step, figures="")
            self._bar.start()

    def say(self, text: str) -> None:
        """One line of text, above the bar."""
        text = printable(text)
        with contextlib.suppress(OSError):  # a full disk below a log file; the line stays in the buffer
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=self.console.file, flush=True)

    def train(self, record: Mapping[str, Any]) -> None:
        """Shows a window of steps."""
        step, epoch = record["step"], record.get("epoch", 0) + 1
        head = f"epoch {min(epoch, self.max_epochs)}/{self.max_epochs}"
        of = f"/{self.total_steps}" if self.total_steps else ""
        figures = f"step {step}{of}  {train_line(record)}{self._left(step)}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=head, completed=step, figures=figures)
        else:
            self.say(f"{head}  {figures}")

    def validation(self, record: Mapping[str, Any]) -> None:
        """Shows an evaluation; it stays in view."""
        self.say(f"epoch {record['epoch']}/{self.max_epochs}  validation  {score_line(record)}")

    def _left(self, step: int) -> str:
        """Time left at the mean speed since the first record, evaluations and all."""
        now = time.monotonic()
        if self._since is None:
            self._since = (step, now)
        done = step - self._since[0]
        if not self.total_steps or done <= 0:
            return ""
        return f"  left {duration((self.total_steps - step) * (now - self._since[1]) / done)}"

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
