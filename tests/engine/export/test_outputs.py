"""export.outputs: the same maps and quads elsewhere, nothing kept that differs."""

import json
import os

import numpy as np
import pytest

from engine.checkpoint import store
from engine.export import __main__ as export
from engine.export import outputs, program
from pipelines.errors import UserError
from tests.engine.export.conftest import LOW

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
RECEIPTS = os.environ.get("DBNET_RECEIPTS")


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


def test_a_file_for_one_size(sharp, tmp_path, capsys):
    import onnx

    file = tmp_path / "m.onnx"
    assert export.main([str(sharp), "--onnx", str(file), "--size", "64x96", "--json", *LOW]) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["sizes"] == [[1, 64, 96]] and row["quads"] > 0 and row["opencv"]
    model = onnx.load(file)
    (image,), (prob,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, prob)]
    assert shapes == [[1, 3, 64, 96], [1, 1, 64, 96]]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(facts["image_size"]) == [64, 96] and "(1, 3, 64, 96)" in facts["input"]
    assert "(1, 1, 64, 96)" in facts["output"] and "multiples" not in facts["input"]


@pytest.mark.slow
def test_rapidocr_and_torch_export(sharp, tmp_path, capsys):
    files = ["--rapidocr", str(tmp_path / "rapid"), "--program", str(tmp_path / "m.pt2")]
    assert export.main([str(sharp), *files, "--json", *LOW]) == 0
    rapid, traced = json.loads(capsys.readouterr().out)["files"]
    assert_compared(rapid)
    assert_compared(traced)
    assert {"hmean_rapidocr", "hmean_engine"} < rapid.keys()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["det.onnx", "m.pt2", "rapid", "rapidocr.yaml"], "no drafts"


def test_a_network_that_differs_is_not_kept(made, sharp, tmp_path, monkeypatch):
    import onnx

    def wrong(module, path, *_):
        model = onnx.load(made[0] / "m.onnx")
        (bias,) = (i for i in model.graph.initializer if i.name.endswith("head.prob.6.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        onnx.save(model, path)

    monkeypatch.setattr(outputs.onnx_file, "write", wrong)
    with pytest.raises(UserError, match=r"m\.onnx: not kept, its maps differ from PyTorch's by 0\.00"):
        export.main([str(sharp), "--onnx", str(tmp_path / "m.onnx")])
    assert not list(tmp_path.iterdir())


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
