"""`engine.export`: wrong words and missing tools are one line each."""

import importlib

import pytest

from engine.export import __main__ as export
from pipelines.errors import UserError

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def test_wrong_words_are_one_line_each(trained, tmp_path):
    run, file = str(trained), tmp_path / "m.onnx"
    (tmp_path / "there.onnx").write_text("x")
    for argv, words in (
        ([run], "nothing to write"),
        (["--onnx", str(file)], "name one run folder"),
        ([run, run, "--onnx", str(file)], "name one run folder"),
        ([run, "--onnx", str(tmp_path / "m.pt")], r"must end in \.onnx"),
        ([run, "--onnx", str(tmp_path / "there.onnx")], "exists already"),
        ([run, "--onnx", str(file), "--opset", "9"], "writes 18 to"),
        ([run, "--program", str(tmp_path / "m.pt2"), "--opset", "18"], "--opset belongs to --onnx"),
        ([run, "--program", str(tmp_path / "m.pt2"), "--size", "64x96"], "--size belongs to --onnx"),
        ([run, "--onnx", str(file), "--size", "64"], "write HxW, e.g. 640x480"),
        ([run, "--onnx", str(file), "--size", "64x97"], "both sides are multiples of 32"),
        ([run, "--rapidocr", str(tmp_path)], "new or empty folder"),
        (["--import", "x.pt", "--onnx", str(file)], "goes with --out"),
        (["--import", "x.pt"], "--out is missing"),
        ([run, "--out", "x"], "--out belongs to --import"),
        ([str(tmp_path), "--onnx", str(file)], "holds no checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            export.main(argv)
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"]


def test_missing_packages_and_compiler_are_named(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no no-such-compiler"):
        export.main([str(trained), "--aoti", str(tmp_path / "m.pt2")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx, onnxscript, onnxruntime is not installed.*\[export\]"):
        export.main([str(trained), "--onnx", str(tmp_path / "m.onnx")])
