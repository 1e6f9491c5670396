"""What a user sees of a running search: a table that stays in place on a terminal, plain lines everywhere else."""

import contextlib
import io
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.config.load import shown
from engine.run.progress import duration
from engine.search.study import ENDED, Study, Trial
from pipelines.errors import printable

REDRAW_S = 0.5
ROWS = 24  # trials shown; a terminal is seldom higher


def rank(study: Study) -> list[Trial]:
    """Ended trials by value, best first; then the running ones, the waiting ones, and the infeasible ones last."""

    def place(trial: Trial) -> tuple:
        if trial.state in ("finished", "stopped") and trial.value is not None:
            return 0, -study.height(trial), trial.number
        return {"running": 1, "asked": 2}.get(trial.state, 3), 0.0, trial.number

    return sorted(study.trials, key=place)


def seconds_left(study: Study, running: list) -> float | None:
    """Seconds to the end of the budget at the mean time of the ended trials; None before the first has ended."""
    ended = [trial.minutes for trial in study.searched if trial.state in ENDED and trial.minutes > 0]
    if not ended:
        return None
    mean = 60 * sum(ended) / len(ended)
    waiting = study.budget - sum(trial.state in ENDED for trial in study.searched) - len(running)
    under_way = sum(max(0.0, mean - 60 * (run.minutes + run.trial.minutes)) for run in running)
    return (max(0, waiting) * mean + under_way) / max(1, min(study.agents, max(1, waiting + len(running))))


def head(study: Study, running: list) -> str:
    """One line: trials done, the best so far, time left."""
    done = sum(trial.state in ENDED for trial in study.searched)
    best, left = study.incumbent(), seconds_left(study, running)
    counted = f"{done}/{study.budget}" if study.budget else f"{len(study.trials)} imported"
    words = [f"{study.name}  {counted} trials"]
    if best is not None:
        words.append(f"best {study.metric} {best.value:.4f} (trial {best.number})")
    if left is not None and done < study.budget:
        words.append(f"left {duration(left)}")
    return "  ".join(words)


def of(epochs: int, study: Study) -> str:
    """`3/20`; `3` where an objective's length is not known."""
    return f"{epochs}/{study.max_epochs}" if epochs <= study.max_epochs > 1 else str(epochs)


def row(study: Study, trial: Trial, running: list) -> list[str]:
    """Cells of a trial: number, state, epochs, metric (the last one while it runs), searched values, time, kind."""
    last = trial.curve[-1][1] if trial.curve else None
    minutes = trial.minutes + sum(run.minutes for run in running if run.trial is trial)
    value = trial.value if trial.state in ENDED else last
    searched = [trial.values[name] for name in study.space.names]
    return [
        str(trial.number), trial.state, of(trial.epochs, study), "" if value is None else f"{value:.4f}",
        *(f"{v:.4g}" if isinstance(v, float) else shown(v) for v in searched), duration(60 * minutes), trial.kind,
    ]  # fmt: skip


class Dashboard:
    """Shows a search.

    Args:
        console: a rich console; stdout's by default. Where it is no terminal, only `event` shows anything.
    """

    def __init__(self, console: Any = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._live: Any = None
        self._drawn = 0.0

    def event(self, text: str, routine: bool = False) -> None:
        """One line, above the table on a terminal; what the table shows anyway (`routine`) is a line elsewhere only."""
        text = printable(text)
        if self._live is not None:
            if not routine:
                self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.console.file, flush=True)

    def update(self, study: Study, running: list) -> None:
        """Draws the table anew, twice a second at most."""
        if not self.console.is_terminal or time.monotonic() - self._drawn < REDRAW_S:
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(table(study, running), refresh=True)
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Takes the table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def table(study: Study, running: list) -> Any:
    """The rank table as a rich renderable. All words are `Text`: a list [/d/a.json] is no markup."""

    def words(text: str) -> Text:
        return Text(printable(text))

    names = [name.rpartition(".")[2] for name in study.space.names]
    found = Table(title=words(head(study, running)), title_justify="left", expand=False, box=None, pad_edge=False)
    for name in ("trial", "state", "epochs", study.metric, *names, "time", "from"):
        found.add_column(words(name), justify="right" if name not in ("state", "from") else "left", no_wrap=True)
    shown_trials = rank(study)[:ROWS]
    styles = {"running": "cyan", "infeasible": "red", "asked": "dim", "stopped": "yellow"}
    for trial in shown_trials:
        found.add_row(*map(words, row(study, trial, running)), style=styles.get(trial.state, ""))
    return found


def text_table(study: Study) -> str:
    """The rank table as plain text, for the end of a search."""
    with contextlib.closing(io.StringIO()) as file:
        Console(file=file, width=200, no_color=True).print(table(study, []))
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
