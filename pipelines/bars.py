"""The progress bar of commands that count something: pages, settings, files.

with progress("pages") as bar:
    for page in pages:
        bar.advance()                    # or, where the number of all is known: bar(done, total)
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """How far the work is; calling it says how many are done of how many (None while that is not known)."""

    def __init__(self, show: Callable[[int, int | None], object]) -> None:
        self._show, self._done = show, 0

    def __call__(self, done: int, total: int | None) -> None:
        self._done = done
        self._show(done, total)

    def advance(self) -> None:
        """One more is done, of a number that is not known."""
        self(self._done + 1, None)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A bar on stderr when that is a terminal; nothing otherwise, so logs stay logs and stdout the result's."""
    if not sys.stderr.isatty():
        yield Progress(lambda done, total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # 2 redraws a second: each takes the interpreter lock for a few ms
    with Bar(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task(title, total=None)
        yield Progress(lambda done, total: bar.update(task, completed=done, total=total))
