import json
import subprocess
import sys

import torch
from tiny_gpu import ARGUMENTS

from bench.gpu import __main__

POPEN = subprocess.Popen


def test_a_run_keeps_rows_tells_what_is_lost_and_goes_on(tmp_path):
    plan = (("conv", "peak"), ("conv", "nonsense"), ("kernels", "checks"))
    # 11 s are enough for the first entry and too few for the last
    report = __main__.run(tmp_path, torch.device("cpu"), 600, ARGUMENTS, plan[:2])
    (folder,) = tmp_path.iterdir()
    kept = json.loads((folder / "results.json").read_text())
    assert kept["rows"] == report.rows and report.done("conv", "peak") and not report.done("conv", "nonsense")
    assert report.rows[0]["tflop_s"] > 0 and "nonsense" in report.rows[1][__main__.NOT_MEASURED]
    text = (folder / "report.md").read_text()
    assert "AssertionError: nonsense" in text and "| grid | not measured: no time was left |" in text
    before = report.rows[0]
    again = __main__.run(tmp_path, torch.device("cpu"), 11.0, ARGUMENTS, plan[:1])
    assert again.rows[0] == before, "what is there is not measured again"


def _script(monkeypatch, code):
    """Lets `measure` start this code in the place of an entry."""
    monkeypatch.setattr(__main__.subprocess, "Popen", lambda command, **how: POPEN([sys.executable, "-c", code], **how))


def test_what_dies_after_its_last_row_loses_nothing(monkeypatch):
    row = {"section": "step", "of": "eager", "what": "eager", "images_per_second": 3.0, "end": True}
    _script(monkeypatch, f"import json, os; print('ROW ' + json.dumps({row}), flush=True); os._exit(9)")
    rows = []
    __main__.measure("step", "eager", 60, ARGUMENTS, rows.append)
    assert rows == [row]


def test_a_lost_entry_is_tried_again_and_its_excuse_goes(monkeypatch, tmp_path):
    plan = (("conv", "grid"),)
    _script(monkeypatch, "raise SystemExit('out of memory')")
    lost = __main__.run(tmp_path, torch.device("cpu"), 600, ARGUMENTS, plan)
    assert [row[__main__.NOT_MEASURED] for row in lost.rows] == ["out of memory"]
    row = {"section": "conv", "of": "grid", "what": "44 channels at 1/4", "forward_ms": 1.0, "end": True}
    _script(monkeypatch, f"import json; print('ROW ' + json.dumps({row}))")
    found = __main__.run(tmp_path, torch.device("cpu"), 600, ARGUMENTS, plan)
    assert [other["what"] for other in found.rows] == ["44 channels at 1/4"]
    (folder,) = tmp_path.iterdir()
    assert "out of memory" not in (folder / "report.md").read_text()


def test_an_entry_over_its_time_is_ended_and_said():
    rows = []
    __main__.measure("kernels", "times, db_loss", 1.0, ARGUMENTS, rows.append)
    assert rows[-1][__main__.NOT_MEASURED] == "over its time, 1 s"


def test_a_missing_package_is_said(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "engine.evaluation.judge", None)
    assert __main__.child("evaluation", "validation", ARGUMENTS) == 0
    row = json.loads(capsys.readouterr().out.removeprefix("ROW "))
    assert row[__main__.NOT_MEASURED] == "no package engine.evaluation.judge"


def test_without_a_gpu_it_says_not_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("not measured") == len(__main__.PLAN) and not (tmp_path / "out").exists()


def test_no_entry_takes_what_another_needs(monkeypatch, tmp_path):
    """A hang of the first costs its own time only."""
    given = []
    monkeypatch.setattr(__main__, "measure", lambda section, what, seconds, *others: given.append((what, seconds)))
    __main__.run(tmp_path, torch.device("cpu"), 540, ARGUMENTS)
    assert [what for what, _ in given] == [what for _, what in __main__.PLAN]
    assert all(seconds <= __main__.MOST.get(what.split(",")[0], __main__.MOST_S) for what, seconds in given)
    assert dict(given)["checks"] == 120 and dict(given)["compiled"] == 240
