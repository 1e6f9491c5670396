"""export.example: the engine's boxes without the engine."""

import ast
import importlib
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from bench.receipts import prob_maps
from engine.config import PostConfig
from engine.detection.pages import detect_pages
from engine.detection.postprocess import detect
from engine.export import network
from pipelines.index.bare import BareIndex
from tests.engine.export.conftest import ALONE, LOW

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def gap(a, b):
    """Pixels between the corners of two quads, whichever they start with."""
    return min(np.abs(np.roll(a, k, 0) - b).max() for k in range(4))


def assert_same_boxes(theirs, ours, most):
    assert len(theirs) == len(ours.polygons) > 0
    left = list(theirs)
    for polygon, score in zip(ours.polygons, ours.scores, strict=True):
        nearest = min(left, key=lambda box: gap(box[1], polygon))
        left.remove(nearest)
        assert gap(nearest[1], polygon) <= most and abs(nearest[0] - score) <= 1e-4, (nearest, polygon, score)


def test_the_example_needs_nothing_of_this_project_and_is_short():
    path = Path(network.__file__).with_name("example.py")
    tree = ast.parse(path.read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert {alias.name for node in imports for alias in node.names} == {
        "json",
        "sys",
        "cv2",
        "numpy",
        "onnxruntime",
        "Image",
    }
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    assert sum(n.end_lineno - n.body[0].end_lineno for n in functions) <= 30, "without names and docstrings"


@pytest.mark.parametrize("score_mode", ["fast", "slow"])
def test_the_example_finds_the_engines_boxes_on_maps_of_real_receipts(score_mode):
    example = importlib.import_module("engine.export.example")
    post = PostConfig(score_mode=score_mode)
    for prob in prob_maps():
        height, width = prob.shape
        (ours,) = detect(torch.from_numpy(prob)[None], np.eye(2, 3)[None], np.array([[width, height]]), post)
        theirs = [(score, np.clip(quad, 0, (width, height))) for score, quad in example.boxes(prob, vars(post))]
        assert_same_boxes(theirs, ours, 0.1)


@pytest.mark.parametrize("kind", ["png", "jpg", "large"])
def test_the_example_on_an_image_file(made, sharp, trained, tmp_path, capsys, monkeypatch, kind):
    """The engine's boxes: of a page as large as the canvas, not compressed, and of ones that are decoded and shrunk."""
    import onnxruntime

    example = importlib.import_module("engine.export.example")
    image = sorted((trained.parent / ".synthetic").rglob("*.jpg"))[0]
    if kind == "png":
        cv2.imwrite(str(tmp_path / "page.png"), cv2.resize(cv2.imread(str(image)), (128, 96)))
        image = tmp_path / "page.png"
    if kind == "large":
        cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(cv2.imread(str(image)), (480, 340)))
        image = tmp_path / "large.png"
    session = onnxruntime.InferenceSession(str(made[0] / "m.onnx"), providers=["CPUExecutionProvider"])
    exported = network.load(str(sharp), LOW)
    ((_, ours),) = detect_pages(exported.module.detector, BareIndex([image]), exported.config, ALONE)
    theirs = example.detect(session, cv2.imread(str(image)))
    if kind == "png":
        assert len(ours.polygons) > 50
        assert_same_boxes(theirs, ours, 0.1)
    else:  # another decoder and resize move a speck here and there; most boxes are the same
        assert abs(len(theirs) - len(ours.polygons)) <= 0.1 * len(ours.polygons)
        assert np.median([min(gap(quad, polygon) for _, quad in theirs) for polygon in ours.polygons]) <= 1
    monkeypatch.setattr("sys.argv", ["example.py", str(made[0] / "m.onnx"), str(image)])
    runpy.run_path(example.__file__, run_name="__main__")  # as the README has it
    numbers = [[float(word) for word in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert np.allclose(numbers, [[score, *quad.ravel()] for score, quad in theirs], atol=0.06)
