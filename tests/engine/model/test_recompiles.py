"""With trainer.compile there is one graph for each mode and size: training, evaluation, a short last batch."""

import contextlib
import functools

import pytest
import torch

from engine.config.load import load_config
from engine.data import build_train_loader, open_data
from engine.detection import maps
from engine.distributed import start
from engine.evaluation import judge
from engine.model import frozen_norms_to_eval
from engine.training import precise_bn
from engine.training.metrics import Stopwatch
from engine.training.state import build
from engine.training.step import train_step
from tests.conftest import TINY


@pytest.fixture
def graphs(monkeypatch):
    """Fills with one entry a graph while torch.compile captures graphs and compiles nothing (it is fast)."""
    made = []

    def backend(module, inputs):
        made.append([value for value in inputs if not isinstance(value, torch.Tensor)])  # symbols of dynamic sizes
        return module.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield made
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("eval.batch_size=3",), 2),  # 4 pages: a full batch and one of a page
        (("eval.batch_size=3", "eval.image_size=[128,160]"), 2),
        (("eval.batch_size=2", "trainer.ema=true", "trainer.accumulate=2"), 2),
    ],
)
def test_one_graph_a_mode_and_size(tmp_path, graphs, settings, expected):
    config, _ = load_config([*TINY, f"run_root={tmp_path}", "trainer.compile=true", "trainer.precise_bn=1", *settings])
    ranks = start(config.trainer.device)
    data = open_data(config, ranks)
    train_state = build(config, ranks)
    counted = []
    with contextlib.closing(build_train_loader(config, data.train, ranks, 0, 0)) as loader:
        for step in range(4):
            train_state.model.train()
            frozen_norms_to_eval(train_state.model)
            train_step(train_state, loader, config, ranks, Stopwatch(), step)
            train_state.model.eval()
            judge.evaluate(train_state.evaluated, data.val, config, ranks)
            counted.append(len(graphs))
    precise_bn.renew(train_state, data.train, config, ranks, 1)
    judge.evaluate(train_state.evaluated, data.val, config, ranks)
    assert [*counted, len(graphs)] == [expected] * 5
    assert graphs == [[]] * expected, "a size became a symbol"


def test_a_filled_batch_has_the_layout_of_a_full_one():
    for pages in (1, 2, 3, 4):
        image = torch.rand(pages, 8, 6, 3).permute(0, 3, 1, 2)
        filled = maps._filled(image, 4)
        assert filled.shape == (4, 3, 8, 6) and filled.stride() == (144, 1, 18, 3)
        assert torch.equal(filled[:pages], image) and not filled[pages:].any()


def test_precise_bn_compiles_nothing_even_where_blocks_are_compiled_in_place(tmp_path, graphs):
    config, _ = load_config([*TINY, f"run_root={tmp_path}", "trainer.precise_bn=1"])
    ranks = start(config.trainer.device)
    train_state = build(config, ranks)
    train_state.model.decoder.compile()
    precise_bn.renew(train_state, open_data(config, ranks).train, config, ranks, 0)
    assert graphs == []
    train_state.model(torch.randn(1, 3, 64, 64))
    assert len(graphs) == 1
