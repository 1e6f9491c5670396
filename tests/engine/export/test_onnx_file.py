"""export.onnx_file: the file says how to use it."""

import json

import numpy as np
import pytest
import torch

from engine.config.load import load_config
from engine.export import onnx_file
from engine.export.check import Case
from engine.export.network import ProbMap
from engine.model import build_model

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


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
    assert model.ir_version == 8, "onnxruntime before 1.18 refuses 10, which onnx writes of itself"
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization"}
    assert b"/engine/" not in (made[0] / "m.onnx").read_bytes(), "it names no place of this machine"


@pytest.mark.parametrize("encoder", ["resnet18", pytest.param("hrnet_w18_small_v2", marks=pytest.mark.slow)])
def test_opencv_runs_the_file_of_one_size(tmp_path, encoder):
    config = load_config(["preset=demo", f"models.encoder.name={encoder}", "models.encoder.pad_widths=none"])[0]
    torch.manual_seed(0)
    module = ProbMap(build_model(config)).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
    image = torch.randn(1, 3, 96, 128)
    with torch.inference_mode():
        maps = module(image)[:, 0].numpy()
    onnx_file.write(module, tmp_path / "m.onnx", {}, size=(96, 128))
    case = Case(image.numpy(), np.zeros((1, 2, 3)), np.zeros((1, 2)), maps)
    assert onnx_file.opencv_difference(tmp_path / "m.onnx", case) < 0.01 * maps.std()
