"""The network that leaves the engine: image -> prob_map, with its sigmoid, in float32, in evaluation mode."""

import dataclasses
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from engine.checkpoint import store
from engine.config import Config, changed
from engine.config.load import canvas_hw, load_config, to_dict
from engine.config.settings import SIZE_MULTIPLE
from engine.detection.pages import load_detector
from engine.distributed import Ranks
from pipelines.graph import MEAN, STD

HERE = Ranks(0, 0, 1, torch.device("cpu"))
EXAMPLE = (2, 3, 2 * SIZE_MULTIPLE, 3 * SIZE_MULTIPLE)  # no size is 1 or equals another: such would be taken for fixed
MOST_SIDE = 8192  # as data.image_size allows
# The network as it runs on any machine, without what only speeds it up here.
ANYWHERE = {
    "models.encoder.pad_widths": "none",
    "speed.fused_norms": False,
    "trainer.device": "cpu",
    "trainer.precision": "float32",
    "trainer.channels_last": False,
    "trainer.compile": False,
    "trainer.kernels": "auto",
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """A detector ready to leave: the module, the settings it was trained and judged with, and where it came from."""

    module: nn.Module
    config: Config
    source: Path


class ProbMap(nn.Module):
    """image (N, 3, H, W) float32, RGB, normalised by MEAN and STD -> prob_map (N, 1, H, W) float32."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.detector(image))


class FromHalf(nn.Module):
    """image (N, 3, H, W) float32, BGR, (value / 255 - 0.5) / 0.5 -> what `inner` gives for it.

    That is the input of PP-OCR's newer detectors, and RapidOCR's default. The change of normalisation stays two
    operations of its own: folded into the first convolution it would be wrong along the border, where that one pads
    with zeros, which are MEAN in our normalisation and grey in theirs.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        mean, std = torch.tensor(MEAN)[:, None, None] / 255, torch.tensor(STD)[:, None, None] / 255
        self.register_buffer("factor", 0.5 / std)
        self.register_buffer("shift", (0.5 - mean) / std)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.inner(image[:, [2, 1, 0]] * self.factor + self.shift)


def load(given: str, settings: list[str]) -> Exported:
    """The detector of a run folder or checkpoint, with settings changed by `section.key=value` items, on the CPU.

    Averaged weights if there are any and eval.ema, as `engine.evaluate` has it. What only makes training faster (memory
    format, padded widths, fused norms) is left out: the function is the same without.

    Raises:
        UserError: no checkpoint, a damaged one, wrong settings.
    """
    path = store.locate(given)
    base = store.load_settings(path)
    if isinstance(base.get("data"), dict):
        base["data"]["val"] = []  # the training's own pages need not be here: pages to compare on are named anew
    config, _ = load_config(settings, base=base)
    plain = changed(config, ANYWHERE)
    return Exported(ProbMap(load_detector(path, plain, HERE)).eval(), plain, path)


def dynamic_shapes() -> dict:
    """`torch.export`'s words for any batch, and sides of any multiple of 32."""
    rows, columns = (torch.export.Dim(name, min=1, max=MOST_SIDE // SIZE_MULTIPLE) for name in ("rows", "columns"))
    return {"image": {0: torch.export.Dim("batch", min=1), 2: SIZE_MULTIPLE * rows, 3: SIZE_MULTIPLE * columns}}


def description(exported: Exported) -> dict[str, str]:
    """What a user of the file has to know, as texts: input, output, canvas, post-processing, origin."""
    config, state = exported.config, store.load_state(exported.source)
    return {
        "input": "image: float32 (N, 3, H, W), RGB, (value - mean) / std of values 0 to 255; H, W multiples of 32",
        "mean": json.dumps([round(v, 6) for v in MEAN]),
        "std": json.dumps([round(v, 6) for v in STD]),
        "channels": "RGB",
        "output": "prob_map: float32 (N, 1, H, W), probability of a text's inner part, 0 to 1",
        "image_size": json.dumps(canvas_hw(config)),
        "letterbox": "the page is fitted into image_size [H, W], enlarged where it is smaller, and centred on black",
        "post": json.dumps(to_dict(config.post)),
        "encoder": config.models.encoder.name,
        "step": str(state["step"]),
        "score": json.dumps(state.get("score")),
        "dbnet_engine": _version(),
        "torch": torch.__version__,
    }


def _version() -> str:
    try:
        return version("dbnet-engine")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
