"""What a run leaves to be looked at."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from engine.config.load import load_config
from engine.detection.postprocess import Detections
from engine.distributed import Ranks
from engine.evaluation.cleval import PageResult
from engine.evaluation.judge import Page
from engine.training import summary
from pipelines.errors import printable

NASTY = "a\n\x1b[2J\u202egpj\udc80.jpg"  # newline, clear the screen, reversed letters, a byte that is no UTF-8
ALONE = Ranks(0, 0, 1, torch.device("cpu"))


def test_pictures_of_worst_pages_stay_in_their_folder(tmp_path):
    """Names of 255 bytes and of control letters are those of pages; the picture's own is harmless and short."""

    class Pages:
        def __init__(self, name: str) -> None:
            self.file = tmp_path / "page.jpg"
            Image.new("RGB", (100, 80)).save(self.file)
            self.text = name

        def name(self, row: int) -> str:
            return self.text

        def path(self, row: int) -> Path:
            return self.file

        def polygons(self, row: int) -> list:
            return []

        def ignore(self, row: int) -> np.ndarray:
            return np.zeros(0, bool)

    result = PageResult(*[[] if f.name.endswith("status") else 0 for f in dataclasses.fields(PageResult)])
    worst = [Page(0, Detections([], np.zeros(0, np.float32)), result)]
    for name in ("x" * 250 + ".jpg", NASTY, "..", "=cmd.jpg", "a\\..\\b.jpg"):
        data = SimpleNamespace(val=Pages(name))
        run = SimpleNamespace(folder=tmp_path, data=data, config=load_config(["preset=demo"])[0], ranks=ALONE)
        summary.draw_worst(run, worst)
        (made,) = (tmp_path / "overlays").iterdir()
        assert made.name.startswith("00_") and made.name == printable(made.name) and len(made.name) < 60
