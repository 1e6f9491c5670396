import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.check import check
from pipelines.dataset import main
from pipelines.index.build import load


def test_build(good, tmp_path, capsys):
    assert main(["build", str(good), "--out", str(tmp_path / "index"), "--workers", "2"]) == 0
    assert "contest, 3 pages, 3 polygons" in capsys.readouterr().out
    assert len(load(tmp_path / "index")) == 3


def test_errors_are_one_line_and_exit_2(good, tmp_path, capsys):
    (good.parent / "1.jpg").unlink()
    for argv in (
        ["build", str(tmp_path / "absent"), "--out", str(tmp_path / "i")],
        ["build", str(good), "--out", str(tmp_path / "i")],
        ["build", str(good), "--out", str(tmp_path / "i"), "--format", "coco"],
        ["stats", str(good), "--max-pixels", "0"],
        ["synth", "--out", str(good.parent), "--pages", "1"],
        ["synth", "--out", str(tmp_path / "s"), "--pages", "1", "--size", "big"],
    ):
        assert main(argv) == 2, argv
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and not out


def test_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.dataset", "check", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "contest" in done.stderr


def test_stats(good, tmp_path, capsys):
    assert main(["stats", str(good)]) == 0
    direct = capsys.readouterr().out
    assert "3 pages, 3 polygons, 0 ignored (0.0 %)" in direct
    heights = next(line for line in direct.splitlines() if line.startswith("text height, px "))
    assert heights.split()[3:] == ["20.0"] * 7
    main(["build", str(good), "--out", str(tmp_path / "index")])
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "index")]) == 0
    assert capsys.readouterr().out == direct


def test_synth_then_everything(tmp_path, capsys):
    out = tmp_path / "synth"
    assert main(["synth", "--out", str(out), "--pages", "3", "--seed", "5", "--size", "256x192"]) == 0
    assert "3 pages of 256x192" in capsys.readouterr().out
    assert main(["check", str(out)]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert main(["build", str(out / "annotations.json"), "--out", str(tmp_path / "i")]) == 0
    assert load(tmp_path / "i").size_wh.tolist() == [[192, 256]] * 3
    assert main(["check", str(tmp_path / "i")]) == 2


@pytest.mark.skipif("DBNET_RECEIPTS" not in os.environ, reason="DBNET_RECEIPTS does not name a folder of receipts")
def test_real_receipts():
    folder = Path(os.environ["DBNET_RECEIPTS"])
    report = check(folder / "val.txt")
    assert report.format == "icdar" and report.pages == 66 and report.fatal == []
    assert report.usable == report.polygons > 3000
