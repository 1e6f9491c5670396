"""What the tests of the search share: a folder to work in, and the command line."""

import os
import sys
from pathlib import Path

import pytest

from engine.jobs.local import LocalExecutor
from engine.search import ask, ledger, options, plan
from engine.search import driver as loop
from engine.search.__main__ import main
from engine.search.space import Parameter, Space
from engine.search.study import Study
from pipelines.errors import UserError
from tests.conftest import ROOT, SUPPORT

SWEEP = """
method: bayes
metric: {name: val/hmean, goal: maximize}
parameters:
"""


LR = "  models.optimizer.lr: {distribution: log_uniform_values, min: 1e-5, max: 2e-4}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder; what it holds afterwards was created."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep_file(folder, parameters: str, head: str = SWEEP):
    path = folder / "sweep.yaml"
    path.write_text(head + parameters)
    return str(path)


def study_of(*argv: str) -> tuple[Study, list[str]]:
    study, notices, events = plan.prepare(*options.parse(list(argv)))
    assert events == []
    return study, notices


def message(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        main(list(argv))
    assert "\n" not in str(caught.value)
    return str(caught.value)


RATE = Parameter("lr", "float", 1e-5, 2e-4, "log")


T_MAX = Parameter("T_max", "ordinal", values=(15, 18, 20, 25))


SMALL_SWEEP = """
method: bayes
metric: {name: val/hmean, goal: maximize}
parameters:
  lr: {distribution: log_uniform_values, min: 1e-5, max: 2e-4}
  T_max: {values: [15, 18, 20, 25]}
"""


class Lines:
    """A dashboard that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def event(self, text: str, routine: bool = False) -> None:
        self.lines.append(text)

    def update(self, study: Study, running: list) -> None:
        assert len(running) <= study.agents

    def close(self) -> None:
        pass


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where objectives can be imported by the attempts."""
    monkeypatch.chdir(SUPPORT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SICK_FOLDER", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def asks(monkeypatch, *configurations) -> None:
    """The surrogate's place is taken by a list."""
    monkeypatch.setattr(ask, "configuration", lambda study, number: (configurations[number], "model"))


def run(folder, objective: str, executor=None, book=None, **fields) -> tuple[Study, list[str], bool]:
    """Searches with an objective until the driver returns."""
    if book is None:
        fields = {"space": Space((RATE, T_MAX)), "budget": 4} | fields
        fields.setdefault("early_stop", {"type": "none"})
        study = Study(folder / "s", "s", objective=f"search_objective:{objective}", max_epochs=5, **fields)
        study.first = {"lr": 1e-4, "T_max": 15}
        book = ledger.create(study)
    show = Lines()
    executor = executor or LocalExecutor(book.study.agents)
    done = loop.search(loop.Driver(book, executor, show, poll_s=0.02))
    book.close()
    assert ledger.read(book.folder) == book.study
    return book.study, show.lines, done


def command(folder: Path, *argv: str) -> list[str]:
    return [sys.executable, "-m", "engine.search", "--study-root", str(folder), *argv]


def new(folder: Path, budget: int, *argv: str) -> list[str]:
    sweep = folder / "sweep.yaml"
    sweep.write_text(SMALL_SWEEP)
    words = ("--objective", "search_objective:slow", "--sweep", str(sweep), "--budget", str(budget), "--study", "s")
    return command(folder, *words, *argv)


def attempts_of(folder: Path) -> list[int]:
    """Processes of a study's attempts: wrappers, keepers, objectives."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in words and (b"search.attempt" in words or b"search.objective" in words):
                found.append(int(entry.name))
    return found
