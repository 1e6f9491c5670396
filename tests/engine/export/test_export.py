"""Exported networks: the same maps and quads elsewhere, nothing kept that differs."""

import ast
import importlib
import json
import os
import runpy
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch

from bench.receipts import prob_maps
from engine.checkpoint import store
from engine.config import PostConfig
from engine.config.load import from_dict
from engine.detection.open import load_detector
from engine.detection.pages import detect_pages
from engine.detection.postprocess import Detections, detect
from engine.distributed import Ranks
from engine.export import __main__ as export
from engine.export import check, network, outputs, program, weights
from pipelines.errors import UserError
from pipelines.index.bare import BareIndex

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
ALONE = Ranks(0, 0, 1, torch.device("cpu"))
LOW = ["post.bin_thresh=0.6", "post.box_thresh=0.62", "post.min_size_px=1", "post.min_unclipped_px=2"]
RECEIPTS = os.environ.get("DBNET_RECEIPTS")


@pytest.fixture(scope="module")
def sharp(trained, tmp_path_factory):
    """A checkpoint of the tiny detector, whose maps hardly rise, with 30 times the contrast: dozens of quads by LOW."""
    source = store.locate(trained)
    tensors = store.load_part(source, "model")
    config = from_dict(store.load_settings(source))
    with torch.inference_mode():
        middle = load_detector(source, config, ALONE)(torch.zeros(1, 3, 96, 128)).median()
    weight, bias = "head.prob.6.weight", "head.prob.6.bias"
    tensors |= {weight: tensors[weight] * 30, bias: (tensors[bias] - middle) * 30}
    folder = tmp_path_factory.mktemp("sharp")
    return store.write(folder, {"model": tensors}, {"step": 1}, (source / "config.yaml").read_text())


@pytest.fixture(scope="module")
def made(sharp, tmp_path_factory):
    """(folder of what one command wrote, its JSON)."""
    out, said = tmp_path_factory.mktemp("export"), StringIO()
    files = ["--onnx", str(out / "m.onnx"), "--weights", str(out / "m.safetensors")]
    with redirect_stdout(said):  # each network traced takes 3 s: the others are slow tests
        assert export.main([str(sharp), *files, "--json", *LOW]) == 0
    return out, json.loads(said.getvalue())


def assert_compared(row):
    assert 0 <= row["max_abs_diff"] <= 1e-4 and row["quads"] > 50, row
    assert row["sizes"] == [[1, 96, 128], [2, 64, 64], [3, 64, 64]]


def test_a_network_is_compared_and_its_figures_given(made):
    out, result = made
    kinds = {row["kind"]: row for row in result["files"]}
    assert kinds.keys() == {"onnx", "weights"}
    assert_compared(kinds["onnx"])
    assert kinds["onnx"]["opset"] == 18 and kinds["onnx"]["bytes"] == (out / "m.onnx").stat().st_size
    assert sorted(p.name for p in out.iterdir()) == ["m.onnx", "m.safetensors"], "no drafts"
    (out / "new").touch()  # under the umask
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    (out / "new").unlink()


@pytest.mark.slow
def test_rapidocr_and_torch_export(sharp, tmp_path, capsys):
    files = ["--rapidocr", str(tmp_path / "rapid"), "--program", str(tmp_path / "m.pt2")]
    assert export.main([str(sharp), *files, "--json", *LOW]) == 0
    rapid, traced = json.loads(capsys.readouterr().out)["files"]
    assert_compared(rapid)
    assert_compared(traced)
    assert {"hmean_rapidocr", "hmean_engine"} < rapid.keys()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["det.onnx", "m.pt2", "rapid", "rapidocr.yaml"], "no drafts"


def test_the_onnx_file_says_how_to_use_it(made):
    import onnx

    model = onnx.load(made[0] / "m.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["channels"] == "RGB" and json.loads(facts["mean"]) == [123.675, 116.28, 103.53]
    assert json.loads(facts["std"]) == [58.395, 57.12, 57.375] and json.loads(facts["image_size"]) == [96, 128]
    assert json.loads(facts["post"])["bin_thresh"] == 0.6
    (image,), (prob,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, prob)]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 1, "height", "width"]]
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 18)]
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization"}
    assert b"/engine/" not in (made[0] / "m.onnx").read_bytes(), "it names no place of this machine"


def test_a_network_that_differs_is_not_kept(made, sharp, tmp_path, monkeypatch):
    import onnx

    def wrong(module, path, facts, opset=18):
        model = onnx.load(made[0] / "m.onnx")
        (bias,) = (i for i in model.graph.initializer if i.name.endswith("head.prob.6.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(outputs.onnx_file, "write", wrong)
    with pytest.raises(UserError, match=r"m\.onnx: not kept, its maps differ from PyTorch's by 0\.00"):
        export.main([str(sharp), "--onnx", str(tmp_path / "m.onnx")])
    assert not list(tmp_path.iterdir())


def test_compare_counts_pixels_that_rounding_decides_and_refuses_other_quads(tmp_path):
    prob = np.zeros((1, 64, 64), np.float32)
    prob[0, 20:30, 10:50] = 0.8
    prob[0, 30, 10:50] = 0.3 + 5e-6
    case = check.Case(np.zeros((1, 3, 64, 64), np.float32), np.eye(2, 3)[None], np.array([[64, 64]]), prob)
    config = from_dict({})
    same = check.compare(lambda image: (prob - np.float32(1e-5) * (prob < 0.5))[:, None], [case], config, Path("f"))
    assert same["undecided_pixels"] == 40 and same["quads"] == 1
    prob[0, 20:31, 10:50] = 0.40003  # the one region's score, and by rounding it falls below box_thresh
    with pytest.raises(UserError, match="other quads"):
        check.compare(lambda image: (prob * np.float32(0.39997 / 0.40003))[:, None], [case], config, Path("f"))
    with pytest.raises(UserError, match="differ"):
        check.compare(lambda image: np.full((1, 1, 64, 64), np.nan, np.float32), [case], config, Path("f"))
    with pytest.raises(UserError, match="it gives float32"):
        check.compare(lambda image: prob, [case], config, Path("f"))


def test_same_ignores_the_order_of_equal_scores_and_nothing_else():
    a, b = (np.array([[x, 0], [x + 9, 0], [x + 9, 5], [x, 5]], np.float32) for x in (0, 20))
    page = Detections([a, b], np.array([0.9, 0.9], np.float32))
    assert check.same(page, Detections([b, a + 0.001], page.scores))
    assert not check.same(page, Detections([a], page.scores[:1]))
    assert not check.same(page, Detections([a, a], page.scores))
    assert not check.same(page, Detections([a, b + 0.5], page.scores))
    assert not check.same(page, Detections([a, b], page.scores - 0.1))


def test_weights_load_with_one_call_and_in_plain_timm(made, sharp):
    path = made[0] / "m.safetensors"
    model = weights.load(path)
    config = from_dict(store.load_settings(sharp))
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        # the run's own memory format sums in another order
        torch.testing.assert_close(model(image), load_detector(sharp, config, ALONE)(image), rtol=0, atol=1e-4)
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata()
        indices = json.loads(header["out_indices"])
        encoder = timm.create_model(header["encoder"], features_only=True, out_indices=indices)
        tensors = safetensors.torch.load_file(path)
        encoder.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("encoder.")})
        for theirs, ours in zip(encoder.eval()(image), model.encoder(image), strict=True):
            assert torch.equal(theirs, ours)
    safetensors.torch.save_file(tensors, made[0].parent / "bare.safetensors")
    with pytest.raises(UserError, match="its header holds no settings"):
        weights.load(made[0].parent / "bare.safetensors")


def test_averaged_weights_are_preferred_as_evaluation_does(trained, tmp_path):
    import shutil

    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    path = store.locate(run).resolve()
    tensors = store.load_part(path, "model")
    parts = {"model": tensors, "ema": {k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}}
    text = (path / "config.yaml").read_text()
    with_ema = store.write(tmp_path / "other", parts, {"step": 1}, text)
    for settings, part in ((["eval.ema=true"], "ema"), (["eval.ema=false"], "model")):
        found = network.load(str(with_ema), settings).module.detector.state_dict()
        assert torch.equal(found["head.prob.0.weight"], parts[part]["head.prob.0.weight"])


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


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["hrnet_w44_1280", "receipts_cpu", "resnet18"])
def test_the_presets_encoders_export(tmp_path, preset):
    from engine.config.load import load_config, to_yaml
    from engine.model import build_model

    names = {"resnet18": ["preset=demo", "models.encoder.name=resnet18"]}
    settings = names.get(preset, [f"preset={preset}"])
    config, _ = load_config([*settings, "models.encoder.weights=", "data.image_size=192"])
    parts = {"model": {k: v.contiguous() for k, v in build_model(config).state_dict().items()}}
    run = store.write(tmp_path, parts, {"step": 0}, to_yaml(config))
    assert export.main([str(run), "--onnx", str(tmp_path / "m.onnx"), "--program", str(tmp_path / "m.pt2")]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not RECEIPTS, reason="DBNET_RECEIPTS does not name a folder of receipts")
def test_on_real_receipts(sharp, tmp_path, capsys):
    """The tiny network finds little there; its maps and boxes are the same in onnxruntime all the same."""
    files = ["--onnx", str(tmp_path / "m.onnx"), "--rapidocr", str(tmp_path / "rapid")]
    pages = [f"data.val={RECEIPTS}/val.txt", f"run_root={tmp_path}", "data.image_size=[640,320]"]
    assert export.main([str(sharp), *files, *pages, "--json", *LOW]) == 0
    rows = json.loads(capsys.readouterr().out)["files"]
    assert all(row["max_abs_diff"] <= 1e-4 and row["sizes"][0] == [1, 640, 320] for row in rows)
    assert all(0 <= rows[1][name] <= 1 for name in ("hmean_rapidocr", "hmean_engine"))


@pytest.mark.slow
def test_aot_inductor(sharp, tmp_path, capsys):
    path = tmp_path / "m.pt2"
    assert export.main([str(sharp), "--aoti", str(path), "--json", *LOW]) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["max_abs_diff"] <= 1e-4 and row["quads"] > 5
    maps = program.open_package(path)(np.zeros((4, 3, 160, 32), np.float32))
    assert maps.shape == (4, 1, 160, 32)
