"""Progressive resolution: which canvas an epoch has, a graph for each, and a resume in the middle of it."""

import json

import pytest
import torch

from engine import train
from engine.config.load import load_config
from engine.data import canvas_at
from pipelines.errors import UserError
from tests.conftest import TINY


def _config(*items):
    return load_config(["preset=demo", *items])[0]


@pytest.mark.parametrize(
    "sides, epochs, expected",
    [
        ("[]", 2, [(1280, 960)] * 2),
        ("[640,960]", 3, [(640, 480), (960, 704), (1280, 960)]),  # 720 is half-way between multiples of 32
        ("[640,960]", 20, [(640, 480)] * 7 + [(960, 704)] * 7 + [(1280, 960)] * 6),
        ("[640]", 3, [(640, 480), (640, 480), (1280, 960)]),
    ],
)
def test_canvas_of_every_epoch(sides, epochs, expected):
    config = _config(f"data.progressive={sides}", f"trainer.max_epochs={epochs}", "data.image_size=[1280,960]")
    assert [canvas_at(config, epoch) for epoch in range(epochs)] == expected
    assert canvas_at(config, epochs + 5) == expected[-1]


@pytest.mark.parametrize(
    "items, words",
    [
        (["data.progressive=[650]"], "multiples of 32"),
        (["data.progressive=[960,640]", "data.image_size=1280"], "must grow"),
        (["data.progressive=[1280]", "data.image_size=1280"], "stay below"),
        (["data.progressive=[640,960]", "data.image_size=1280", "trainer.max_epochs=2"], "at least 3"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(items, words):
    with pytest.raises(UserError, match=words):
        _config(*items)


SETTINGS = (*TINY, "data.image_size=[128,96]", "data.progressive=[64,96]", "trainer.max_epochs=3", "trainer.device=cpu")


@pytest.mark.slow
def test_one_graph_for_each_size_and_mode(tmp_path, monkeypatch):
    """With torch's own default the second size would compile a graph of any size, slower for all that follow."""
    shapes = []

    def backend(graph, inputs):
        maps = [x for x in inputs if isinstance(x, torch.Tensor) and x.dim() == 4]
        sizes = [tuple(x.shape) for x in maps if x.shape[1] == 3 and len(x) <= 3]  # the image, not the first weight
        assert not any(isinstance(x, torch.SymInt) for x in inputs)
        shapes.append((sizes[0][2:], torch.is_grad_enabled()))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, dynamic, options: compile_(model, dynamic=dynamic, backend=backend)
    )
    torch._dynamo.reset()
    settings = (*SETTINGS, "trainer.compile=true", "models.encoder.name=resnet18", "eval.batch_size=3")
    assert train.main([*settings, "name=sizes", f"run_root={tmp_path}"]) == 0
    assert sorted(set(shapes)) == sorted(shapes), "a size was compiled twice"
    assert [size for size, training in shapes if training] == [(64, 64), (96, 64), (128, 96)]
    assert [size for size, training in shapes if not training] == [(128, 96)]


def test_a_resume_in_the_middle_of_a_smaller_size_ends_with_the_same_bits(tmp_path):
    whole, cut = (f"run_root={tmp_path}/{name}" for name in ("whole", "cut"))
    assert train.main([*SETTINGS, "name=run", whole]) == 0
    assert train.main([*SETTINGS, "name=run", cut, "trainer.max_steps=6"]) == 0  # 4 steps an epoch
    assert train.main([*SETTINGS, "name=run", cut, "resume=auto"]) == 0
    files = [tmp_path / name / "run" / "checkpoints" / "last" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "cut" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 13))
