"""ONNX: the network for onnxruntime, TensorRT, OpenVINO and whatever else reads it.

write(exported.module, Path("m.onnx"), description(exported))
run = open_model(Path("m.onnx"))                     # on onnxruntime
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from engine.export.check import Case, Run
from engine.export.network import EXAMPLE, dynamic_shapes
from pipelines.errors import UserError

OPSET = 18  # of 2022: what torch's exporter writes without converting; readers of today take it
OPSETS = (18, 23)
INSTALL = 'pip install -e ".[export]"'


def need(*packages: str) -> None:
    """Refuses to go on without the packages of the extra `export`.

    Raises:
        UserError: one is not installed.
    """
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed, which this needs: {INSTALL}")


def write(
    module: nn.Module, path: Path, facts: Mapping[str, str], opset: int = OPSET, size: tuple[int, int] | None = None
) -> None:
    """Writes `module` (image -> prob_map) as ONNX with any batch and sides of multiples of 32, or for one size.

    BatchNorm is folded into the convolutions by the exporter. Weights lie in the file itself (below ONNX's 2 GB).

    Args:
        module: in evaluation mode on the CPU.
        path: file to write.
        facts: texts for the model's metadata_props.
        opset: version of the operator set. The IR version is the least that has it: onnxruntime before 1.18 refuses 10.
        size: (H, W) of a batch of one, all that the file takes then; None = any.
    """
    import onnx

    with quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros((1, 3, *size) if size else EXAMPLE),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=None if size else dynamic_shapes(),
            input_names=["image"],
            output_names=["prob_map"],
            verbose=False,
        )
    assert program is not None  # dynamo's export gives one
    model = program.model_proto
    if not size:  # plain names for the sizes that are free
        for value in (*model.graph.input, *model.graph.output):
            for position, name in ((0, "batch"), (2, "height"), (3, "width")):
                value.type.tensor_type.shape.dim[position].dim_param = name
        del model.graph.value_info[:]  # their sizes have the exporter's names; whoever needs them infers them
    model.ir_version = onnx.helper.find_min_ir_version_for(list(model.opset_import))
    for node in model.graph.node:  # each carries the source lines it came from, with paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    onnx.helper.set_model_props(model, dict(facts))
    model.producer_name, model.producer_version = "dbnet-engine", facts.get("dbnet_engine", "")
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def open_model(path: Path) -> Run:
    """A written model on onnxruntime's CPU provider, to run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["prob_map"], {"image": image})[0]


def opencv_difference(path: Path, case: Case) -> float | None:
    """Largest difference of the map that OpenCV's DNN makes of a batch of one; None where it cannot run the network."""
    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        network = cv2.dnn.readNetFromONNX(str(path))
        network.setInput(case.image)
        maps = np.asarray(network.forward())
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(before)
    # OpenCV 5.0 gives a smaller map where it cannot broadcast.
    return float(np.abs(maps[:, 0] - case.maps).max()) if maps.shape == (1, 1, *case.maps.shape[1:]) else None


@contextlib.contextmanager
def quiet():
    """Keeps the exporter's progress and advice off the terminal; errors are raised."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.utils.cpp_extension")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
