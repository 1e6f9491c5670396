"""The display of a search: order of the table, time left, a terminal's picture and plain lines."""

import io
import time

import pytest
from rich.console import Console

from engine.search import driver
from engine.search.dashboard import Dashboard, head, rank, seconds_left, text_table
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial


@pytest.fixture
def study(tmp_path):
    space = Space(
        (Parameter("models.optimizer.lr", "float", 1e-5, 2e-4, "log"), Parameter("x.mode", "choice", values=("a", "b")))
    )
    found = Study(tmp_path, "mine", space, budget=6, agents=2, max_epochs=20)
    rows = [
        ("finished", 0.97, 20), ("stopped", 0.95, 6), ("infeasible", None, 2), ("running", 0.91, 3), ("asked", None, 0),
        ("finished", 0.98, 20),
    ]  # fmt: skip
    for number, (state, value, epochs) in enumerate(rows):
        values = {"models.optimizer.lr": 1.23456e-4, "x.mode": "a"}
        curve = [(epochs, value)] if value else []
        ended = 2.0 if state in ("finished", "stopped", "infeasible") else 0.0
        found.trials.append(
            Trial(number, values, "model", 0, None, state, curve=curve, value=value, epochs=epochs, minutes=ended)
        )
    return found


def running(study: Study, minutes: float) -> list:
    return [driver.Running(study.trials[3], None, None, None, began=time.monotonic() - 60 * minutes)]


def test_the_order_of_the_table(study):
    assert [trial.number for trial in rank(study)] == [5, 0, 1, 3, 4, 2]
    study.goal = "minimize"
    assert [trial.number for trial in rank(study)] == [1, 0, 5, 3, 4, 2]


def test_the_table_as_text(study):
    lines = text_table(study).splitlines()
    assert lines[0].startswith("mine  4/6 trials  best val/hmean 0.9800 (trial 5)  left")
    assert lines[1].split() == ["trial", "state", "epochs", "val/hmean", "lr", "mode", "time", "from"]
    assert lines[2].split() == ["5", "finished", "20/20", "0.9800", "0.0001235", "a", "2:00", "model"]
    assert lines[-1].split()[:4] == ["2", "infeasible", "2/20", "0.0001235"]  # no value of a failed trial


def test_brackets_in_values_and_names_are_shown_as_they_are(study):
    lists = ("[/d/a.json,/d/b.json]", "[/d/a.json]")
    study.space = Space((Parameter("data.[red]files", "choice", values=lists),))
    study.name, study.metric = "[/mine]", "val/[bold]hmean"
    for trial in study.trials:
        trial.values = {"data.[red]files": lists[trial.number % 2]}
    lines = text_table(study).splitlines()
    assert lines[0].startswith("[/mine]  4/6 trials  best val/[bold]hmean 0.9800 (trial 5)")
    assert lines[1].split()[3:5] == ["val/[bold]hmean", "[red]files"] and lines[2].split()[4] == lists[1]


def test_time_left(study):
    # trials take 2 minutes; one has run for half of one, one waits: (1.5 + 2) / 2 agents
    assert seconds_left(study, running(study, 0.5)) == pytest.approx(60 * 3.5 / 2, abs=1)
    assert seconds_left(study, running(study, 9.0)) == pytest.approx(60, abs=1)  # overdue: no time of its own
    study.trials = study.trials[3:5]
    assert seconds_left(study, []) is None and "left" not in head(study, [])


def test_a_terminal_shows_the_table_and_a_pipe_lines(study):
    screen, pipe = io.StringIO(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=30, color_system=None)
    for show in (Dashboard(console), Dashboard(Console(file=pipe, force_terminal=False))):
        show.update(study, running(study, 0.5))
        show.event("trial 3 epoch 4/20", routine=True)
        show.event("trial 3 starts [red]")
        show.close()
    assert pipe.getvalue() == "trial 3 epoch 4/20\ntrial 3 starts [red]\n"
    picture = " ".join(screen.getvalue().split())
    assert "trial 3 starts [red]" in picture and "epoch 4/20" not in picture
    assert "running 3/20 0.9100" in picture and "0:30" in picture and "left 1:45" in picture


def test_an_unknown_length_is_not_shown(study):
    study.max_epochs = 1
    assert "20/1" not in text_table(study)
