"""Before trial 0 the preset's own configuration is tried: its fault ends the command and leaves nothing."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from engine.jobs.local import LocalExecutor
from engine.search import ledger, preflight, trials
from engine.search.space import Space
from engine.search.study import Study
from pipelines.errors import UserError
from tests.conftest import ROOT
from tests.engine.search.conftest import RATE, T_MAX, attempts_of, command

FIRST = {"lr": 1e-4, "T_max": 15}


def study_in(folder, **fields) -> Study:
    return Study(folder / "studies" / "s", "s", Space((RATE, T_MAX)), budget=2, first=FIRST, **fields)


@pytest.fixture
def says(monkeypatch):
    """What stands in for the training: a line of Python; returns the commands that were asked for."""
    asked = []

    def use(code: str) -> list:
        def child(study, trial, gpus):
            asked.append(trial)
            return [sys.executable, "-c", code]

        monkeypatch.setattr(trials, "command", child)
        return asked

    return use


def test_a_preset_that_trains_leaves_only_its_caches(tmp_path, says, capsys):
    asked, study = says("import sys; assert sys.argv[1:] == ['--dry-run']"), study_in(tmp_path)
    preflight.refuse_what_cannot_train(study, LocalExecutor(1))
    assert [(trial.number, trial.values, trial.kind) for trial in asked] == [(0, FIRST, "preset")]
    assert not [path for path in study.folder.rglob("*") if path.is_file()]
    assert "it can train" in capsys.readouterr().out
    ledger.create(study).close()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print('error: no hub here'); exit(2)", "no hub here"),
        ("raise KeyError('depth')", "cannot be trained here: KeyError: 'depth'; to see more: "),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "cannot be trained here: killed (SIGKILL)"),
    ],
)
def test_a_fault_is_one_line_and_nothing_is_left(tmp_path, says, code, words):
    asked = says(code)
    with pytest.raises(UserError) as caught:
        preflight.refuse_what_cannot_train(study_in(tmp_path), LocalExecutor(1))
    assert str(caught.value).startswith(words) or f"configuration {words}" in str(caught.value)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    assert len(asked) == 1


def test_what_lay_there_before_stays(tmp_path, says):
    says("print('error: no'); exit(2)")
    study = study_in(tmp_path)
    (study.folder / "logs").mkdir(parents=True)
    (study.folder / "logs" / "mine").touch()
    with pytest.raises(UserError, match=r"^no$"):
        preflight.refuse_what_cannot_train(study, LocalExecutor(1))
    left = sorted(str(path.relative_to(study.folder)) for path in study.folder.rglob("*"))
    assert left == ["logs", "logs/mine"]


def test_a_study_is_tried_until_a_training_has_been_judged(tmp_path, says):
    asked, study = says("print('error: no'); exit(2)"), study_in(tmp_path)
    with contextlib.closing(ledger.create(study)) as book:
        book.append(**ledger.trial_event(trials.new_trial(book.study, FIRST, "preset", 0)))
        book.append("start", trial=0, attempt=1, id="a", where="local")
        with pytest.raises(UserError, match=r"^no$"):
            preflight.refuse_what_cannot_train(book.study, LocalExecutor(1))
        assert (study.folder / ledger.FILE).exists() and len(asked) == 1  # a study stays
        book.append("epoch", trial=0, attempt=1, epoch=1, value=0.5, scores={})
        preflight.refuse_what_cannot_train(book.study, LocalExecutor(1))
    function = study_in(tmp_path / "other", objective="module:function")
    preflight.refuse_what_cannot_train(function, LocalExecutor(1))
    assert len(asked) == 1 and not function.folder.exists()


def test_the_command_ends_with_the_presets_fault(tmp_path):
    words = command(
        tmp_path / "studies", "--budget", "8", "preset=demo", "trainer.device=cpu", "data.train=a", "data.val=b"
    )
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: a: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_meanwhile_leaves_nothing(tmp_path, number):
    words = command(tmp_path / "studies", "--budget", "8", "preset=demo", "trainer.device=cpu")
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    next(line for line in child.stdout if line.startswith("preflight"))
    while not list(tmp_path.rglob("preflight.log")):
        time.sleep(0.01)
    child.send_signal(number)
    text, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in text, text
    assert not attempts_of(tmp_path) and not list(tmp_path.iterdir())
