"""`bench.gpu` at a tiny size without a GPU: its entries run, its report can be read, a lost row is told and retried."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import __main__, cases, conv, evaluation, kernels, step
from tests.conftest import DEVICE, ROOT

POPEN = subprocess.Popen
TINY = SimpleNamespace(pages=2, side=64, encoder="lcnet_035", device=DEVICE)
ARGUMENTS = ["--pages", "2", "--side", "64", "--encoder", "lcnet_035", "--device", DEVICE]


@pytest.fixture
def no_compiler(monkeypatch):
    if DEVICE == "cpu":  # half a minute of C++ for each graph
        monkeypatch.setattr(torch, "compile", lambda model, **options: model)


def test_every_check_holds():
    *checks, memory = kernels.rows("checks", TINY)
    assert len(checks) == 7 and memory[1]["end"]
    for name, figures in checks:
        assert figures["right"], f"{name}: {figures['detail']}"


def test_every_op_is_timed_against_peers(no_compiler):
    timed = dict(kernels.rows("times", TINY))
    for op in kernels.GOALS:
        assert timed[f"{op}: kernels"]["floor_us"] > 0 and len([name for name in timed if name.startswith(op)]) >= 2


def test_a_wrong_kernel_is_told(monkeypatch):
    monkeypatch.setattr(
        cases, "label", lambda masks, connectivity, implementation: masks.int() * (implementation == "triton")
    )
    name, ok, _ = cases.check_labels(torch.device(DEVICE), 32)
    assert name.startswith("label") and not ok


@pytest.mark.parametrize("what", ["eager", "compiled", "plain loop", "profile"])
def test_steps_are_timed(what, no_compiler, monkeypatch):
    monkeypatch.setattr(step, "STEPS", 2)
    ((name, figures),) = step.rows(what, TINY)
    assert name == what and figures["end"]
    if what == "profile":
        assert "| part of the step |" in figures["text"]
    else:
        assert figures["images_per_second"] > 0 and figures["model_tflop_s"] > 0


def test_the_words_of_an_entry_are_settings():
    w44 = SimpleNamespace(pages=16, side=1280, encoder="hrnet_w44", device=DEVICE)
    seen = {what: step.settings(w44, what) for section, what in __main__.PLAN if section == "step"}
    assert not seen["eager"].trainer.compile and seen["compiled"].trainer.compile
    padded = seen["compiled, 48 channels, blocks"]
    assert (padded.models.encoder.pad_widths, padded.speed.scope) == ("48", "blocks")
    assert seen["compiled, 64 channels"].models.encoder.pad_widths == "64"
    assert seen["compiled, 48 channels, half the activations"].speed.memory_budget == 0.5
    changed = [what for what in seen if what.startswith("compiled, ")]
    assert len({repr(seen[what]) for what in changed}) == len(changed), "two entries measure the same"


def test_the_validation_pass_is_timed(no_compiler, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCHES", 2)
    ((_, figures),) = evaluation.rows("validation", TINY)
    assert figures["times_the_network"] > 0 and figures["pages_per_second"] > 0


def test_convolutions_and_the_peak_are_timed():
    grid = dict(conv.rows("grid", TINY))
    assert len(grid) == 10 and all(figures["useful_tflop_s"] > 0 for figures in grid.values())
    assert [figures.get("end") for figures in grid.values()] == [None] * 9 + [True]
    ((_, peak),) = conv.rows("peak", SimpleNamespace(device="cpu"))
    assert peak["tflop_s"] > 0


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


def test_workers_fit_into_shared_memory(monkeypatch):
    monkeypatch.setattr(step.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    assert step.loader_workers(16, 315 << 20) == 0 and step.loader_workers(16, 1 << 20) == 14


def test_an_entry_over_its_time_is_ended_and_said():
    rows = []
    __main__.measure("kernels", "times", 1.0, ARGUMENTS, rows.append)
    assert rows[-1][__main__.NOT_MEASURED] == "over the time left, 1 s"


def test_a_step_needs_torch_timm_and_opencv_alone():
    """Without DALI, OpenCV loads the pages; without pyclipper, our reference draws the plain loop's targets."""
    others = ["omegaconf", "wandb", "shapely", "scipy", "safetensors", "rich", "matplotlib", "pyclipper", "nvidia.dali"]
    code = (
        "import sys\n"
        f"for name in {others}: sys.modules[name] = None\n"
        "import importlib.util as u\n"
        f"real = u.find_spec; u.find_spec = lambda name, *a: None if name in {others} else real(name, *a)\n"
        "from bench.gpu import __main__ as gpu, step\n"
        "step.STEPS = 2\n"
        f"sys.exit(sum(gpu.child('step', what, {ARGUMENTS}) for what in ('plain loop', 'eager')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    assert [row["of"] for row in rows] == ["plain loop", "eager"]
    assert all(row["images_per_second"] > 0 and "OpenCV" in row["loader"] for row in rows)


def test_a_missing_package_is_said(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "engine.evaluation.judge", None)
    assert __main__.child("evaluation", "validation", ARGUMENTS) == 0
    row = json.loads(capsys.readouterr().out.removeprefix("ROW "))
    assert row[__main__.NOT_MEASURED] == "no package engine.evaluation.judge"


def test_without_a_gpu_it_says_not_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main(["--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("not measured") == len(__main__.PLAN) and not (tmp_path / "out").exists()
