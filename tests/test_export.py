"""Exported networks: the same maps and quads elsewhere, nothing kept that differs."""

import ast
import importlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch

from bench.receipts import lines, prob_maps
from engine import checkpoint
from engine.config import PostConfig, from_dict
from engine.distributed import Ranks
from engine.evaluate import detect_pages, load_detector
from engine.export import __main__ as export
from engine.export import check, exports, network, onnx_file, program, weights
from engine.postprocess import Detections, detect
from pipelines.bare_index import BareIndex
from pipelines.errors import UserError

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
ALONE = Ranks(0, 0, 1, torch.device("cpu"))
# a tiny network's maps hardly rise: low thresholds, so that there are quads to compare
LOW = ["post.bin_thresh=0.25", "post.box_thresh=0.2", "post.min_size_px=1", "post.min_unclipped_px=2"]
RECEIPTS = os.environ.get("DBNET_RECEIPTS")


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """(folder of what one command wrote, its JSON)."""
    from contextlib import redirect_stdout
    from io import StringIO

    out, said = tmp_path_factory.mktemp("export"), StringIO()
    names = {
        "--onnx": "m.onnx",
        "--weights": "m.safetensors",
    }  # each network traced takes 3 s: the others are slow tests
    with redirect_stdout(said):
        files = [word for flag, name in names.items() for word in (flag, str(out / name))]
        assert export.main([str(trained), *files, "--json", *LOW]) == 0
    return out, json.loads(said.getvalue())


def assert_compared(row):
    assert 0 <= row["max_abs_diff"] <= 1e-4 and row["quads"] > 5, row
    assert row["sizes"] == [[1, 96, 128], [2, 64, 64], [3, 64, 64]]


def test_a_network_is_compared_and_its_figures_given(made):
    out, result = made
    kinds = {row["kind"]: row for row in result["files"]}
    assert kinds.keys() == {"onnx", "weights"}
    assert_compared(kinds["onnx"])
    assert kinds["onnx"]["opset"] == 18 and kinds["onnx"]["bytes"] == (out / "m.onnx").stat().st_size
    assert sorted(p.name for p in out.iterdir()) == ["m.onnx", "m.safetensors"], "no drafts"


@pytest.mark.slow
def test_rapidocr_and_torch_export(trained, tmp_path, capsys):
    files = ["--rapidocr", str(tmp_path / "rapid"), "--program", str(tmp_path / "m.pt2")]
    assert export.main([str(trained), *files, "--json", *LOW]) == 0
    rapid, traced = json.loads(capsys.readouterr().out)["files"]
    assert_compared(rapid)
    assert_compared(traced)
    assert {"hmean_rapidocr", "hmean_engine"} < rapid.keys()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["det.onnx", "m.pt2", "rapid", "rapidocr.yaml"], "no drafts"


def test_the_onnx_file_says_how_to_use_it(made, trained):
    import onnx

    model = onnx.load(made[0] / "m.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["channels"] == "RGB" and json.loads(facts["mean"]) == [123.675, 116.28, 103.53]
    assert json.loads(facts["std"]) == [58.395, 57.12, 57.375] and json.loads(facts["image_size"]) == [96, 128]
    assert json.loads(facts["post"])["bin_thresh"] == 0.25
    (image,), (prob,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, prob)]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 1, "height", "width"]]
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 18)]
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization"}
    assert b"/engine/" not in (made[0] / "m.onnx").read_bytes(), "it names no place of this machine"


def test_a_network_that_differs_is_not_kept(trained, tmp_path, monkeypatch):
    write = onnx_file.write

    def wrong(module, path, facts, opset=18):
        with torch.no_grad():
            bias = module.detector.head.prob[-1].bias
            bias += 0.01
            write(module, path, facts, opset)
            bias -= 0.01

    monkeypatch.setattr(exports.onnx_file, "write", wrong)
    with pytest.raises(UserError, match=r"m\.onnx: not kept, its maps differ from PyTorch's by 0\.00"):
        export.main([str(trained), "--onnx", str(tmp_path / "m.onnx")])
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


def test_weights_load_with_one_call_and_in_plain_timm(made, trained):
    path = made[0] / "m.safetensors"
    model = weights.load(path)
    source = checkpoint.locate(trained)
    config = from_dict(checkpoint.load_settings(source))
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(model(image), load_detector(source, config, ALONE)(image))
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
    path = checkpoint.locate(run).resolve()
    tensors = checkpoint.load_part(path, "model")
    parts = {"model": tensors, "ema": {k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}}
    text = (path / "config.yaml").read_text()
    with_ema = checkpoint.write(tmp_path / "other", parts, {"step": 1}, text)
    for settings, part in ((["eval.ema=true"], "ema"), (["eval.ema=false"], "model")):
        found = network.load(str(with_ema), settings).module.detector.state_dict()
        assert torch.equal(found["head.prob.0.weight"], parts[part]["head.prob.0.weight"])


def iou(a, b):
    area, _ = cv2.intersectConvexConvex(a.astype(np.float32), b.astype(np.float32))
    return area / (cv2.contourArea(a.astype(np.float32)) + cv2.contourArea(b.astype(np.float32)) - area)


def assert_same_boxes(theirs, ours, least):
    assert len(theirs) == len(ours.polygons)
    for polygon in ours.polygons:
        assert max(iou(quad, polygon) for quad, _ in theirs) >= least


def test_the_example_needs_nothing_of_this_project_and_is_short():
    path = Path(network.__file__).with_name("example.py")
    text = path.read_text()
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert {alias.name for node in nodes for alias in node.names} == {"json", "sys", "cv2", "numpy", "onnxruntime"}
    functions = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
    assert sum(n.end_lineno - n.lineno for n in functions) < 45


@pytest.mark.parametrize("score_mode", ["fast", "slow"])
def test_the_example_finds_the_engines_boxes_on_maps_of_real_receipts(score_mode):
    example = importlib.import_module("engine.export.example")
    post = PostConfig(score_mode=score_mode)
    for prob in prob_maps():
        height, width = prob.shape
        (ours,) = detect(torch.from_numpy(prob)[None], np.eye(2, 3)[None], np.array([[width, height]]), post)
        theirs = [(np.clip(quad, 0, (width, height)), s) for quad, s in example.boxes(prob, vars(post))]
        assert_same_boxes(theirs, ours, 0.97)
    assert len(lines()) == len(prob_maps())


def test_the_example_on_an_image_file(made, trained):
    import onnxruntime

    example = importlib.import_module("engine.export.example")
    image = sorted((trained.parent / ".synthetic").rglob("*.jpg"))[0]
    session = onnxruntime.InferenceSession(str(made[0] / "m.onnx"), providers=["CPUExecutionProvider"])
    exported = network.load(str(trained), LOW)
    ((_, ours),) = detect_pages(exported.module.detector, BareIndex([image]), exported.config, ALONE)
    theirs = example.detect(session, cv2.imread(str(image)))
    assert len(ours.polygons) > 2 and abs(len(theirs) - len(ours.polygons)) <= 0.2 * len(ours.polygons)
    best = [max(iou(quad, polygon) for quad, _ in theirs) for polygon in ours.polygons]
    assert np.median(best) > 0.9, "another decoder and resize: the same boxes but for a pixel here and there"


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
    with pytest.raises(UserError, match=r"onnx, onnxscript, onnxruntime is not installed.*dbnet-engine\[export\]"):
        export.main([str(trained), "--onnx", str(tmp_path / "m.onnx")])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["hrnet_w44_1280", "receipts_cpu", "resnet18"])
def test_the_presets_encoders_export(tmp_path, preset):
    from engine.config import load_config, to_yaml
    from engine.model import build_model

    names = {"resnet18": ["preset=demo", "models.encoder.name=resnet18"]}
    settings = names.get(preset, [f"preset={preset}"])
    config, _ = load_config([*settings, "models.encoder.weights=", "data.image_size=192"])
    parts = {"model": {k: v.contiguous() for k, v in build_model(config).state_dict().items()}}
    run = checkpoint.write(tmp_path, parts, {"step": 0}, to_yaml(config))
    assert export.main([str(run), "--onnx", str(tmp_path / "m.onnx"), "--program", str(tmp_path / "m.pt2")]) == 0


@pytest.mark.slow
@pytest.mark.skipif(not RECEIPTS, reason="DBNET_RECEIPTS does not name a folder of receipts")
def test_on_real_receipts(trained, tmp_path, capsys):
    """The tiny network finds little there; its maps and boxes are the same in onnxruntime all the same."""
    files = ["--onnx", str(tmp_path / "m.onnx"), "--rapidocr", str(tmp_path / "rapid")]
    pages = [f"data.val={RECEIPTS}/val.txt", f"run_root={tmp_path}", "data.image_size=[640,320]"]
    assert export.main([str(trained), *files, *pages, "--json", *LOW]) == 0
    rows = json.loads(capsys.readouterr().out)["files"]
    assert all(row["max_abs_diff"] <= 1e-4 and row["sizes"][0] == [1, 640, 320] for row in rows)
    assert all(0 <= rows[1][name] <= 1 for name in ("hmean_rapidocr", "hmean_engine"))


@pytest.mark.slow
def test_aot_inductor(trained, tmp_path, capsys):
    path = tmp_path / "m.pt2"
    assert export.main([str(trained), "--aoti", str(path), "--json", *LOW]) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["max_abs_diff"] <= 1e-4 and row["quads"] > 5
    maps = program.open_package(path)(np.zeros((4, 3, 160, 32), np.float32))
    assert maps.shape == (4, 1, 160, 32)
