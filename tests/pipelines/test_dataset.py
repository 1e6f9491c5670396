import errno
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


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_2(good, tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    synth, built = ["synth", "--pages", "1", "--size", "64x64", "--out"], ["build", str(good), "--out"]
    for argv in ([*synth, str(file / "x")], [*built, str(file / "x")], ["check", str(good), "--json", str(file / "x")]):
        assert main(argv) == 2, argv
        assert capsys.readouterr().err.startswith(f"error: {file}")

    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # the tests may run as root, who may write anywhere
    for argv in ([*synth, str(tmp_path / "x")], [*built, str(tmp_path / "x")]):
        assert main(argv) == 2, argv
        err = capsys.readouterr().err
        assert err.startswith(f"error: {tmp_path}") and err.endswith(": Permission denied\n") and err.count("\n") == 1


def test_an_index_has_the_rights_of_new_folders(good, tmp_path):
    before = os.umask(0o007)
    try:
        assert main(["build", str(good), "--out", str(tmp_path / "index")]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "index").stat().st_mode & 0o777 == 0o770


def test_names_of_other_alphabets_commas_and_dollars_in_the_c_locale(tmp_path):
    folder, environment = tmp_path / "쪽 ${HOME},1", {**os.environ, "LC_ALL": "C"}
    for argv in (["synth", "--out", folder, "--pages", "1", "--size", "64x64"], ["check", folder], ["stats", folder]):
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.dataset", *argv], env=environment, capture_output=True, timeout=120
        )
        assert done.returncode == 0 and "쪽 ${HOME},1".encode() in done.stdout, done.stderr


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
    assert "no fault found" in capsys.readouterr().out
    assert main(["build", str(out / "annotations.json"), "--out", str(tmp_path / "i")]) == 0
    assert load(tmp_path / "i").size_wh.tolist() == [[192, 256]] * 3
    assert main(["check", str(tmp_path / "i")]) == 2


@pytest.mark.skipif("DBNET_RECEIPTS" not in os.environ, reason="DBNET_RECEIPTS does not name a folder of receipts")
def test_real_receipts():
    folder = Path(os.environ["DBNET_RECEIPTS"])
    report = check(folder / "val.txt")
    assert report.format == "icdar" and report.pages == 66 and report.fatal == []
    assert report.usable == report.polygons > 3000
