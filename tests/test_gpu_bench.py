"""`bench.gpu` at a tiny size without a GPU: its checks hold, its cases run, its report can be read."""

import json

import pytest
import torch
from conftest import DEVICE

from bench import gpu, gpu_cases


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":  # half a minute of C++ compilation, for a peer
            patch.setattr(torch, "compile", lambda function: function)
        folder = tmp_path_factory.mktemp("bench")
        return gpu.measure(torch.device(DEVICE), 2, 64, lambda found: gpu.write(found, folder), check_side=80), folder


@pytest.fixture
def report(measured):
    return measured[0]


def test_what_was_measured_is_kept_as_it_comes(measured):
    report, folder = measured
    (kept,), (text,) = folder.glob("*.json"), folder.glob("*.md")
    assert json.loads(kept.read_text())["timings"] == report["timings"] and text.read_text() == gpu.markdown(report)


def test_every_check_holds(report):
    assert len(report["checks"]) == 6
    for name, ok, detail in report["checks"]:
        assert ok, f"{name}: {detail}"


def test_every_op_is_timed_against_peers(report):
    timed = {(op, what) for op, what, _, _ in report["timings"]}
    for op in gpu.GOALS:
        assert (op, "kernels") in timed and len([what for other, what in timed if other == op]) >= 2
    text = gpu.markdown(report)
    assert "WRONG" not in text and all(f"| {op} | kernels |" in text for op in gpu.GOALS)


def test_a_wrong_kernel_is_told(monkeypatch):
    monkeypatch.setattr(
        gpu_cases, "label", lambda masks, connectivity, implementation: masks.int() * (implementation == "triton")
    )
    name, ok, _ = gpu_cases.check_labels(torch.device(DEVICE), 32)
    assert name.startswith("label") and not ok


def test_without_a_gpu_it_says_not_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("not measured") == len(gpu.GOALS) and not (tmp_path / "out").exists()
