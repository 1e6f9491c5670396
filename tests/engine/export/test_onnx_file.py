"""export.onnx_file: the file says how to use it."""

import json

import pytest

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
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization"}
    assert b"/engine/" not in (made[0] / "m.onnx").read_bytes(), "it names no place of this machine"
