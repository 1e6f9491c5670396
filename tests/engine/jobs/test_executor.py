"""How an attempt ended, as its executor reads it."""

import json
import re
import sys

import pytest

from engine.jobs.attempt import EXIT_FENCED, STOPPED, TOOK_OVER
from engine.jobs.executor import Attempt, end_without_record, open_executor, read_exit, whole_number, wrapper_command
from engine.jobs.fence import side_file
from pipelines.errors import UserError


def _attempt(folder, **others):
    return Attempt(7, 1, "mine", ["python", "-m", "x"], {}, folder / "log", folder / "007", **others)


def test_the_wrapper_is_told_where_everything_is(tmp_path):
    words = wrapper_command(_attempt(tmp_path), 11)
    assert words[:3] == [sys.executable, "-m", "engine.jobs.attempt"]
    assert words[words.index("--parent") + 1] == "11" and words[words.index("--") + 1 :] == ["python", "-m", "x"]


def test_only_this_attempts_record_counts_and_a_sigterm_from_elsewhere_is_outside(tmp_path):
    attempt = _attempt(tmp_path)
    assert read_exit(attempt, False) is None
    record = {"id": "another", "code": 143, "reason": STOPPED, "outside": False}
    path = side_file(attempt.folder, "exit")
    path.write_text(json.dumps(record))
    assert read_exit(attempt, False) is None
    path.write_text(json.dumps(record | {"id": "mine"}))
    asked, foreign = read_exit(attempt, True), read_exit(attempt, False)
    assert asked.reason == STOPPED and not asked.outside
    assert foreign.reason == "killed (SIGTERM)" and foreign.outside


@pytest.mark.parametrize(
    "code, asked, shell, reason, outside",
    [
        (-9, False, 137, "killed (SIGKILL)", True),
        (-9, True, 137, STOPPED, False),
        (EXIT_FENCED, False, EXIT_FENCED, TOOK_OVER, True),
        (3, False, 3, "the attempt could not be started (code 3): see its log", True),
    ],
)
def test_an_end_without_a_record(code, asked, shell, reason, outside):
    end = end_without_record(code, asked)
    assert (end.code, end.reason, end.outside) == (shell, reason, outside)


def test_a_number_is_a_number():
    assert whole_number("ray:gpus", "4") == 4
    with pytest.raises(UserError, match="--executor ray:gpus=x: expected a whole number"):
        whole_number("ray:gpus", "x")


@pytest.mark.parametrize(
    ("text", "agents", "gpus", "words"),
    [
        ("local", 4, ["0", "1"], "--agents 4: there are 2 GPUs; use --agents 2 or fewer"),
        ("local", 0, [], "--agents 0"),
        ("local:gpus=2", 1, [], "local takes no options"),
        ("dask", 1, [], "--executor dask: expected one of local, ray, slurm"),
        ("ray:gpu=2", 1, [], "--executor ray: unknown option gpu; expected gpus, cpus, address"),
    ],
)
def test_an_executor_that_cannot_be_is_one_line(text, agents, gpus, words):
    with pytest.raises(UserError, match=re.escape(words)):
        open_executor(text, agents, gpus)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=re.escape(f"pip install -e '.[{name}]'")):
        open_executor(name, 1)
