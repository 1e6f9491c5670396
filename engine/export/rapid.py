"""A detector for RapidOCR: its ONNX with RapidOCR's own input, and the file of its pre- and postprocessing parameters.

ocr = RapidOCR(config_path="FOLDER/rapidocr.yaml", params={"Det.model_path": "FOLDER/det.onnx"})
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from engine.config import Config
from engine.export.network import FromHalf, ProbMap
from engine.postprocess import Detections

MODEL, SETTINGS = "det.onnx", "rapidocr.yaml"
HEAD = """\
# RapidOCR's settings (of rapidocr {version}) with a detector trained by dbnet-engine:
#     RapidOCR(config_path="{settings}", params={{"Det.model_path": "{model}"}})
# with both paths as they are seen from where it runs. Recognition and classification are RapidOCR's own.
"""


def network(module: ProbMap) -> FromHalf:
    """The network with RapidOCR's default input: BGR, (value / 255 - 0.5) / 0.5."""
    return FromHalf(module).eval()


def det_settings(config: Config) -> dict[str, Any]:
    """RapidOCR's `Det` parameters for a detector's settings.

    RapidOCR has no letterbox: it keeps the page's shape, bounds a side (`limit_type`, `limit_side_len`) and rounds both
    to multiples of 32. Its boxes run through the centres of pixels, one pixel less than ours on both axes, and
    `use_dilation` (by 2 x 2) gives that pixel back. Its least sizes, 3 px before and 5 px after the growth, are fixed.
    """
    post, canvas = config.post, config.eval.image_size or config.data.image_size
    return {
        "limit_side_len": max(canvas),
        "limit_type": "max",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "thresh": post.bin_thresh,
        "box_thresh": post.box_thresh,
        "max_candidates": max(post.max_candidates, 1000),  # it cuts by position on the page, not by score
        "unclip_ratio": post.unclip_ratio,
        "use_dilation": True,
        "score_mode": post.score_mode,
    }


def write_settings(folder: Path, config: Config) -> Path:
    """Writes `folder/rapidocr.yaml`: RapidOCR's own file with our detector in it; returns its path."""
    from rapidocr.main import DEFAULT_CFG_PATH

    own = OmegaConf.load(DEFAULT_CFG_PATH)
    own.Det = OmegaConf.merge(own.Det, det_settings(config), {"model_path": str((folder / MODEL).resolve())})
    canvas = config.eval.image_size or config.data.image_size
    own.Global.max_side_len = max(own.Global.max_side_len, *canvas)  # it shrinks a page to this first
    path = folder / SETTINGS
    head = HEAD.format(version=version("rapidocr"), settings=path, model=folder / MODEL)
    path.write_text(head + OmegaConf.to_yaml(own))
    return path


def detector(config_path: Path | None = None, **params: Any) -> Any:
    """A RapidOCR that only detects. `params`: its Det parameters, e.g. limit_side_len=960; no path: its own model."""
    from rapidocr import RapidOCR

    changes = {"Global.use_cls": False, "Global.use_rec": False, "Global.log_level": "error"}
    changes |= {f"Det.{name}": value for name, value in params.items()}
    return RapidOCR(config_path=None if config_path is None else str(config_path), params=changes)


def detect(ocr: Any, image: str | np.ndarray) -> Detections:
    """What RapidOCR finds on one page (a path, or uint8 BGR): quads in source pixels."""
    found = ocr(image)
    boxes: Sequence = () if found.boxes is None else found.boxes
    scores = np.array(found.scores if len(boxes) else [], np.float32)
    return Detections([np.asarray(box, np.float32) for box in boxes], scores)
