"""A detector for RapidOCR: its ONNX with RapidOCR's own input, and the file of its pre- and postprocessing settings.

ocr = RapidOCR(config_path="FOLDER/rapidocr.yaml", params={"Det.model_path": "FOLDER/det.onnx"})
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from engine.config import Config
from engine.config.load import canvas_hw
from engine.detection.pages import detect_pages
from engine.detection.postprocess import Detections
from engine.evaluation.judge import scores_by
from engine.export.network import HERE, Exported, FromHalf, ProbMap
from pipelines.graph import MEAN, STD
from pipelines.index.build import ConcatIndex

MODEL, SETTINGS = "det.onnx", "rapidocr.yaml"
FACTS = {  # of det.onnx, where they differ from the plain network's
    "input": "image: float32 (N, 3, H, W), BGR, (value / 255 - 0.5) / 0.5 of values 0 to 255; H, W multiples of 32",
    "mean": "[127.5, 127.5, 127.5]",
    "std": "[127.5, 127.5, 127.5]",
    "channels": "BGR",
    "letterbox": "none in RapidOCR: see rapidocr.yaml",
}
HEAD = """\
# RapidOCR's settings (of rapidocr {version}) with a detector trained by dbnet-engine.
# rapidocr 3.10 or newer: 3.9 ignores limit_side_len.
#     RapidOCR(config_path="{settings}", params={{"Det.model_path": "{model}"}})
# with both paths as they are seen from where it runs. Recognition and classification are RapidOCR's own.
"""


def network(module: ProbMap) -> FromHalf:
    """The network with RapidOCR's default input: BGR, (value / 255 - 0.5) / 0.5."""
    return FromHalf(module).eval()


def as_theirs(image: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) of our normalisation, RGB -> of RapidOCR's, BGR."""
    mean, std = (np.array(v, np.float32)[:, None, None] / 255 for v in (MEAN, STD))
    return np.ascontiguousarray(((image * std + mean - 0.5) / 0.5)[:, ::-1], np.float32)


def det_settings(config: Config) -> dict[str, Any]:
    """RapidOCR's `Det` parameters for a detector's settings.

    RapidOCR has no letterbox: it keeps the page's shape, bounds a side (`limit_type`, `limit_side_len`) and rounds both
    to multiples of 32. Its boxes run through the centres of pixels, one pixel less than ours on both axes, and
    `use_dilation` (by 2 x 2) gives that pixel back. Its least sizes, 3 px before and 5 px after the growth, are fixed.
    """
    post, canvas = config.post, canvas_hw(config)
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


def write_settings(folder: Path, final: Path, config: Config) -> Path:
    """Writes `folder/rapidocr.yaml`, RapidOCR's own file with our detector in it, for use in `final`; its path."""
    from rapidocr.main import DEFAULT_CFG_PATH

    own = OmegaConf.load(DEFAULT_CFG_PATH)
    own.Det = OmegaConf.merge(own.Det, det_settings(config), {"model_path": str((final / MODEL).resolve())})
    canvas = canvas_hw(config)
    own.Global.max_side_len = max(own.Global.max_side_len, *canvas)  # it shrinks a page to this first
    path = folder / SETTINGS
    head = HEAD.format(version=version("rapidocr"), settings=final / SETTINGS, model=final / MODEL)
    path.write_text(head + OmegaConf.to_yaml(own))
    return path


def detector(folder: Path | None = None, **params: Any) -> Any:
    """A RapidOCR that only detects, with the files of `folder`, or its own; `params`: of Det, e.g. limit_side_len."""
    from rapidocr import RapidOCR

    if folder is not None:
        params = {"model_path": str(folder / MODEL), **params}
    changes = {"Global.use_cls": False, "Global.use_rec": False, "Global.log_level": "error"}
    changes |= {f"Det.{name}": value for name, value in params.items()}
    return RapidOCR(config_path=None if folder is None else str(folder / SETTINGS), params=changes)


def detect(ocr: Any, image: str | np.ndarray) -> Detections:
    """What RapidOCR finds on one page (a path, or uint8 BGR): quads in source pixels."""
    found = ocr(image)
    boxes: Sequence = () if found.boxes is None else found.boxes
    scores = np.array(found.scores if len(boxes) else [], np.float32)
    return Detections([np.asarray(box, np.float32) for box in boxes], scores)


def judge(exported: Exported, folder: Path, pages: ConcatIndex) -> dict[str, float]:
    """H-mean of CLEval, by eval.protocol, of RapidOCR with our model, and of the engine, on the same pages."""
    ocr, config = detector(folder), exported.config
    ours = detect_pages(exported.module.detector, pages, config, HERE)
    theirs = ((row, detect(ocr, str(pages.path(row)))) for row in range(len(pages)))
    found = {"hmean_rapidocr": theirs, "hmean_engine": ours}
    return {name: scores_by(config.eval, one_pass, pages)["hmean"] for name, one_pass in found.items()}
