"""The ledger: what is written is what is read, torn lines spoil nothing, one driver at a time."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from engine.search import ledger
from engine.search.space import Parameter, Space
from engine.search.study import Confirmation, Runner, Study, Trial
from pipelines.errors import UserError
from tests.conftest import ROOT

SPACE = Space(
    (
        Parameter("models.optimizer.lr", "float", 1e-5, 2e-4, "log"),
        Parameter("models.scheduler.T_max", "ordinal", values=(15, 18, 20, 25)),
    )
)


def blank(folder, **others) -> Study:
    first = {"models.optimizer.lr": 1e-4, "models.scheduler.T_max": 15}
    return Study(folder, folder.name, SPACE, arguments=["preset=demo"], first=first, seed=3, **others)


def trial(number: int, kind: str = "model", **others) -> dict:
    values = {"models.optimizer.lr": 1e-4 / (number + 1), "models.scheduler.T_max": 18}
    return ledger.trial_event(Trial(number, values, kind, 3, folder=f"trials/{number:03d}", **others))


def fill(book: ledger.Ledger) -> None:
    """A short history with everything in it."""
    book.append(**trial(0, "preset"))
    book.append("start", trial=0, attempt=1, id="a", where="local")
    book.append("epoch", trial=0, attempt=1, epoch=1, value=0.90, scores={"hmean": 0.90, "recall": 0.8})
    book.append("epoch", trial=0, attempt=1, epoch=2, value=0.95, scores={"hmean": 0.95, "recall": 0.9})
    book.append("cut", trial=0, attempt=1, reason="killed (SIGKILL)", minutes=2.0, outside=True)
    book.append("start", trial=0, attempt=2, id="b", where="local")
    book.append("epoch", trial=0, attempt=2, epoch=2, value=0.94, scores={"hmean": 0.94, "recall": 0.7})
    book.append("epoch", trial=0, attempt=2, epoch=3, value=0.93, scores={"hmean": 0.93, "recall": 0.6})
    book.append("end", trial=0, attempt=2, state="finished", reason="", minutes=3.0, estimate=None)
    book.append_all([trial(1), trial(2)])
    book.append("start", trial=1, attempt=1, id="c", where="local")
    book.append("epoch", trial=1, attempt=1, epoch=1, value=0.5, scores={"hmean": 0.5})
    book.append("end", trial=1, attempt=1, state="stopped", reason="slow", minutes=1.0, estimate=[0.91, 0.01])
    book.append("start", trial=2, attempt=1, id="d", where="local")
    book.append("epoch", trial=2, attempt=1, epoch=1, value=0.99, scores={"hmean": 0.99})
    book.append("end", trial=2, attempt=1, state="infeasible", reason="the loss is nan", minutes=1.0, estimate=None)
    book.append("extend", budget=16, agents=2)
    book.append(**trial(3))


@pytest.fixture
def book(tmp_path):
    found = ledger.create(blank(tmp_path / "s"))
    yield found
    found.close()


def test_a_runner_is_read_as_earlier_versions_wrote_it(book):
    book.append("extend", runner={"executor": "slurm", "timeout": 0.0, "confirm": 2, "baseline": None})
    assert (book.study.runner, book.study.confirmation) == (Runner("slurm"), Confirmation(2))
    book.append("extend", runner={"executor": "local", "stall": 9, "confirm": 2, "chosen": [3, 0], "chosen_after": 7})
    assert (book.study.runner, book.study.confirmation) == (Runner(stall=9), Confirmation(2, (3, 0), 7))
    study = ledger.read(ROOT / "bench" / "results" / "2026-11-25-search-receipts")
    assert study.confirmation == Confirmation(2, (8, 6, 0), 7)


def test_events_add_up_to_the_study(book):
    fill(book)
    study = ledger.read(book.folder)
    assert study == book.study  # what the driver acts on is what a resume reads
    assert (study.budget, study.agents, study.seed, study.space) == (16, 2, 3, SPACE)
    first, second, third, fourth = study.trials
    assert first.curve == [(1, 0.90), (2, 0.94), (3, 0.93)] and (first.value, first.epochs) == (0.94, 3)
    assert first.scores == {"hmean": 0.94, "recall": 0.7}  # of the evaluation that counts, not of the one replaced
    assert (first.state, first.attempts, first.retries, first.minutes) == ("finished", 2, 1, 5.0)
    assert (second.state, second.value, second.estimate, second.reason) == ("stopped", 0.5, (0.91, 0.01), "slow")
    assert (third.state, third.value, third.scores, third.curve) == ("infeasible", None, {}, [(1, 0.99)])
    assert (fourth.state, fourth.attempts, fourth.folder) == ("asked", 0, "trials/003")
    assert study.incumbent() is first


def test_a_minimised_metric_keeps_its_least(tmp_path):
    book = ledger.create(blank(tmp_path / "s", goal="minimize", metric="val/loss"))
    book.append(**trial(0))
    for epoch, value in enumerate([0.5, 0.2, 0.4]):
        book.append("epoch", trial=0, attempt=1, epoch=epoch, value=value, scores={"loss": value})
    assert book.study.trials[0].value == 0.2 and book.study.trials[0].scores == {"loss": 0.2}
    book.close()


def test_cut_at_every_byte_it_is_a_study_and_goes_on(book, tmp_path):
    """Every prefix of the file reads as the study of its whole lines, and a new writer heals it."""
    fill(book)
    data = (book.folder / ledger.FILE).read_bytes()
    head = data.index(b"\n") + 1
    copy = tmp_path / "copy"
    copy.mkdir()
    seen, step = -1, 0
    for size in range(head, len(data) + 1):
        (copy / ledger.FILE).write_bytes(data[:size])
        study = ledger.read(copy)
        steps = sum(trial.attempts + len(trial.curve) for trial in study.trials)
        assert steps >= seen
        seen = steps
        if size % 41 == 0 or size == len(data):
            step += 1
            again = ledger.Ledger(copy)
            assert again.study == study
            again.append("extend", budget=100 + step)
            again.close()
            healed = ledger.read(copy)
            assert healed.budget == 100 + step and healed.trials == study.trials
            assert (copy / ledger.FILE).read_bytes().startswith(data[:size])  # nothing is taken back
    for size in range(head - 1):  # `create` links a whole first line, so this is damage from elsewhere
        (copy / ledger.FILE).write_bytes(data[:size])
        with pytest.raises(UserError, match="first line"):
            ledger.read(copy)


def test_bytes_that_are_no_event_are_passed_over(book):
    fill(book)
    before = ledger.read(book.folder)
    with (book.folder / ledger.FILE).open("ab") as file:
        file.write(b'\xff\xfe\x00garbage\n[1, 2]\n{"no": "event"}\n{"event": "who", "time": 1}\n\n')
        file.write(b'{"event": "epoch", "time": 1, "trial": 99, "attempt": 1, "epoch": 1, "value": 1}\n')
    assert ledger.read(book.folder) == before


def test_a_second_driver_is_refused_by_name(book):
    program = "import sys; from pathlib import Path; from engine.search import ledger; ledger.Ledger(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(book.folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode and f"a driver runs this study already (process {os.getpid()} on" in done.stderr
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        ledger.Ledger(book.folder)
    folder = book.folder
    book.append("extend", budget=9)
    holder = subprocess.Popen(["sleep", "60"])  # a child of the driver does not keep the lock
    book.close()
    try:
        again = ledger.Ledger(folder)
        assert again.study.budget == 9
        again.close()
    finally:
        holder.kill()
        holder.wait()
    book._lock, book._file = (os.open(os.devnull, os.O_RDONLY) for _ in range(2))  # for the fixture to close


def test_create_never_writes_over_a_study(book):
    fill(book)
    data = (book.folder / ledger.FILE).read_bytes()
    with pytest.raises(UserError, match="--resume"):
        ledger.create(blank(book.folder))
    assert (book.folder / ledger.FILE).read_bytes() == data
    assert {path.name for path in book.folder.iterdir()} == {ledger.FILE, ledger.LOCK}


def test_a_folder_without_a_study(tmp_path):
    for reading in (ledger.read, ledger.Ledger):
        with pytest.raises(UserError, match="no s"):
            reading(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ledger.create(blank(tmp_path / "file" / "s"))


def test_a_full_disk_is_said_and_leaves_whole_lines(book, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:10]))
    with pytest.raises(UserError, match="disk full"):
        book.append(**trial(0))
    monkeypatch.undo()
    book.append(**trial(0))
    lines = (book.folder / ledger.FILE).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["study", "trial"]


def test_numbers_that_json_has_no_word_for_are_a_bug(book):
    with pytest.raises(ValueError, match="JSON"):
        book.append("epoch", trial=0, attempt=1, epoch=1, value=float("nan"), scores={})


def test_imported_trials_keep_their_curves_and_values(book):
    fill(book)
    first = book.study.trials[0]
    known = Trial(5, {"models.optimizer.lr": 2e-5, "models.scheduler.T_max": 20}, "imported", 0, value=0.9, epochs=14)
    known.state, known.name, known.scores = "finished", "t5", {"hmean": 0.9}
    for number, old in enumerate([first, known], start=4):
        book.append_all(ledger.imported_events(dataclasses.replace(old, number=number, name=old.name or "x")))
    one, two = ledger.read(book.folder).trials[4:]
    assert (one.kind, one.curve, one.value, one.scores, one.state) == (
        "imported", first.curve, first.value, first.scores, "finished"
    )  # fmt: skip
    assert (two.value, two.epochs, two.name, two.scores) == (0.9, 14, "t5", {"hmean": 0.9})
    assert len(book.study.searched) == 4
