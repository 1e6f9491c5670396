"""Finished studies and a place for objectives, which the tests of this room share."""

import pytest

from engine.compare import plan
from engine.search.study import Runner
from tests.conftest import ROOT, SUPPORT

WORDS = ["schedules=cosine,onecycle,poly", "warmup=0,1", "seeds=3"]
SMALL = ["preset=demo", "trainer.max_epochs=4"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where objectives can be imported by the attempts."""
    monkeypatch.chdir(SUPPORT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def study_of(folder, value, words=("schedules=cosine,onecycle,poly", "seeds=5"), epochs=4):
    """A finished study: `value(values, seed, epoch)` is what each training measured."""
    study = plan.study_of(plan.request(words, "x:y"), folder, 1, Runner(), "x:y")
    for trial in study.trials:
        trial.curve = [(epoch, float(value(trial.values, trial.seed, epoch))) for epoch in range(1, epochs + 1)]
        trial.value, trial.state, trial.epochs = max(v for _, v in trial.curve), "finished", epochs
    return study
