"""`engine.compare` with trainings in processes of their own: no kill loses anything.

Objectives of `search_objective.py` take the place of trainings.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine.compare import result
from engine.compare.__main__ import main
from engine.search import ledger
from engine.search.__main__ import main as search_main
from engine.search.study import Trial
from pipelines.errors import UserError
from tests.engine.compare.conftest import SMALL


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--agents", "0", *SMALL], "--agents 0"),
        (["--resume"], "need --out"),
        (["--resume", "--out", "nowhere"], "no study"),
        (["--nonsense"], "--help"),
        (["--objective", "x:y", "preset=demo"], "no settings"),
    ],
)
def test_flags_that_cannot_be(flags, said):
    with pytest.raises(UserError, match=said):
        main(flags)


def test_a_comparison_runs_to_its_end_grows_by_seeds_and_is_no_search(place, capsys):
    out = str(place / "c")
    flags = ["--out", out, "--agents", "2", "--json", "--objective", "search_objective:scheduled"]
    assert main(["schedules=cosine,poly", "seeds=2", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["label"] for c in found["combinations"]] == ["cosine", "poly"] and found["seeds"] == [0, 1]
    assert found["combinations"][0]["final"]["by_seed"]["1"] > found["combinations"][1]["final"]["by_seed"]["1"]
    with pytest.raises(UserError, match="exists already"):
        main(["schedules=cosine,poly", *flags])
    with pytest.raises(UserError, match="is a comparison"):
        search_main(["--resume", out])
    with pytest.raises(UserError, match="keeps its own settings"):
        main(["--resume", "--out", out, "warmup=0,1"])
    before = (place / "c" / ledger.FILE).read_bytes()
    assert main(["--resume", "--out", out, "seeds=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [0, 1, 2] and (place / "c" / ledger.FILE).read_bytes().startswith(before)
    assert "Seeds were added after 4 trainings" in (place / "c" / "report.md").read_text()
    assert "Seeds were added after 4 trainings" in found["cautions"][0]
    assert [trial.attempts for trial in ledger.read(place / "c").trials] == [1] * 6


def test_a_killed_comparison_goes_on_and_trains_nothing_twice(place):
    """SIGKILL of the command, and of one of its trainings: the second run ends what is left."""
    command = [sys.executable, "-m", "engine.compare", "schedules=cosine,poly", "seeds=2", "--out", str(place / "c")]
    environment = {**os.environ, "SEARCH_TEST_SLEEP": "0.15"}
    first = subprocess.Popen(
        [*command, "--objective", "search_objective:scheduled"], env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if (place / "c" / ledger.FILE).exists() and ledger.read(place / "c").trials[1].curve:
            break
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    cut = ledger.read(place / "c")
    assert main(["--report", "--out", str(place / "c")]) == 0
    assert "nothing can be told from luck yet" in (place / "c" / "report.md").read_text()
    assert cut.trials[0].state == "finished" and cut.trials[1].state == "running"
    assert main(["--resume", "--out", str(place / "c")]) == 0
    study = ledger.read(place / "c")
    assert [trial.state for trial in study.trials] == ["finished"] * 4
    assert [trial.attempts for trial in study.trials] == [1, 2, 1, 1]
    assert (place / "c" / "report.html").exists()


def test_a_comparison_in_which_nothing_trains_ends_with_the_reason(place, monkeypatch):
    monkeypatch.setenv("SEARCH_TEST_MODE", "crash")
    monkeypatch.setenv("SEARCH_TEST_AT", "1")
    flags = ["--out", str(place / "c"), "--agents", "2", "--objective", "search_objective:bowl"]
    with pytest.raises(UserError, match="this configuration crashes"):
        main(["schedules=cosine,poly", "seeds=2", *flags])


def test_the_trainings_of_a_dry_run_are_listed_and_nothing_is_made(tmp_path, capsys, monkeypatch):
    from engine.compare import __main__ as entry

    monkeypatch.setattr(entry, "minutes_each", lambda study, gpus: 1.5)
    assert main([*SMALL, "seeds=2", "--out", str(tmp_path / "c"), "--dry-run", "--agents", "3"]) == 0
    out = capsys.readouterr().out
    assert sum("engine.train" in line for line in out.splitlines()) == 6 and "1.5 minutes a training, 3 in all" in out
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_real_trainings_are_compared_and_their_rates_drawn(tmp_path, tiny, capsys):
    """Four tiny trainings, the estimate before them, and the learning rates in the picture as they were."""
    words = [*tiny, "schedules=cosine,constant", "seeds=2", "--out", str(tmp_path / "c")]
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["minutes_each"] > 0.01  # 9 minutes on a machine with a load of 30
    assert main(words) == 0
    found = result.find(ledger.read(tmp_path / "c"))
    from engine.compare.figures import rates_of

    cosine, constant = (rates_of(found, cell) for cell in found.cells)
    assert len(cosine) == 8 and {lr for _, lr in constant} == {4e-3} and cosine[0][1] == 4e-3 > cosine[-1][1]
    assert (tmp_path / "c" / "figures" / "curves.png").stat().st_size > 10_000
    assert isinstance(found.cells[0].trials[0], Trial)
