"""Evaluation reads a batch only after the next one was handed to the network."""

import numpy as np
import torch

from engine.config.load import load_config
from engine.data import open_data
from engine.detection import pages as room
from engine.detection.pages import detect_pages
from engine.detection.postprocess import detect
from engine.distributed import start
from engine.model import build_model
from pipelines.graph import LoaderOptions
from pipelines.loader import eval_loader
from tests.conftest import TINY


def _events(monkeypatch, tmp_path, *settings):
    """What happens in which order while the four validation pages are detected, one page a batch."""
    config, _ = load_config([*TINY, f"run_root={tmp_path}", "eval.batch_size=1", *settings])
    ranks = start(config.trainer.device)
    model = build_model(config).to(ranks.device).eval()
    events = []

    def forward(image):
        events.append("network")
        return model(image)

    def recorded(name):
        original = getattr(room, name)

        def call(*arguments):
            events.append(name)
            return original(*arguments)

        monkeypatch.setattr(room, name, call)

    recorded("begin")
    recorded("finish")
    pages = open_data(config, ranks).val
    rows = [row for row, _ in detect_pages(forward, pages, config, ranks)]
    return events, rows


def test_a_batch_is_read_after_the_next_one_is_in_the_network(monkeypatch, tmp_path):
    events, rows = _events(monkeypatch, tmp_path)
    assert rows == [0, 1, 2, 3]
    assert events == ["network", "begin", *["network", "begin", "finish"] * 3, "finish"]


def test_both_shapes_give_the_same_late_as_at_once(tmp_path):
    """The last batch, a batch of another size and polygons on the host come out in order and unchanged."""
    config, _ = load_config([*TINY, f"run_root={tmp_path}"])
    ranks = start(config.trainer.device)
    pages = open_data(config, ranks).val
    generator = torch.Generator().manual_seed(0)
    maps = torch.nn.functional.interpolate(torch.rand(4, 1, 12, 16, generator=generator), (96, 128), mode="bilinear")
    for shape in ("quad", "polygon"):
        config, _ = load_config([*TINY, f"run_root={tmp_path}", "eval.batch_size=3", f"post.shape={shape}"])
        given = iter(maps.logit().split(3))
        found = dict(detect_pages(lambda image, given=given: next(given), pages, config, ranks))
        loader = eval_loader(pages, image_size=(96, 128), batch_size=4, options=LoaderOptions(threads=1, prefetch=1))
        (whole,) = loader
        loader.close()
        expected = detect(maps[:, 0].logit().sigmoid(), whole.matrix, pages.size_wh[np.arange(4)], config.post)
        assert list(found) == [0, 1, 2, 3] and sum(len(page.polygons) for page in expected) > 4
        for row, page in enumerate(expected):
            assert all(np.array_equal(a, b) for a, b in zip(found[row].polygons, page.polygons, strict=True))
