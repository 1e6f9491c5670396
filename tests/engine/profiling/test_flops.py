"""FLOPs and the table of operators: by hand, against torch's counter, and HRNet-W44's known totals."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.config.load import load_config
from engine.profiling import flops
from tests.conftest import TINY


def _config(*settings):
    return load_config(list(settings))[0]


def test_a_small_model_by_hand():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
            self.act, self.point = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = self.act(self.bn(self.conv(x)))
            return x + self.point(x)

    with torch.device("meta"):
        model = Block()
    rows = flops.trace(model, 8, 6, batch=2)
    assert [row.kind for row in rows] == ["conv 3x3 /2", "batch norm", "relu", "conv 1x1", "add"]
    assert [row.name for row in rows] == ["conv", "bn", "act", "point", ""]
    assert [(row.reads, row.write) for row in rows] == [((0,), 1), ((1,), 2), ((2,), 3), ((3,), 4), ((3, 4), 5)]
    first, point = rows[0], rows[3]
    assert (first.inputs, first.output, first.weights) == (((2, 3, 8, 6),), (2, 8, 4, 3), 3 * 8 * 9)
    assert first.flops == 2 * (2 * 8 * 4 * 3) * (3 * 9)  # 2 a multiply-add, 27 of them an output element
    assert (point.flops, point.weights) == (2 * (2 * 8 * 4 * 3) * 8, 8 * 8 + 8)
    assert first.bytes(2) == (2 * 288, 2 * 192, 2 * 216) and rows[4].bytes(2) == (2 * 2 * 192, 2 * 192, 0)


@pytest.mark.parametrize("settings", [TINY, ("preset=resnet18_640", "models.head.smooth=true")])
def test_the_sum_is_that_of_torchs_counter(settings):
    model = flops.meta_model(_config(*settings))
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 96, 128, device="meta"))
    rows = flops.trace(model, 96, 128)
    assert sum(row.flops for row in rows) == counter.get_total_flops() > 0
    assert {row.part for row in rows if row.flops} == {"encoder", "decoder", "head"}
    assert (
        sum(row.flops for row in rows if row.part == "encoder")
        == counter.get_flop_counts()["DBNet.encoder"][torch.ops.aten.convolution]
    )


@pytest.mark.parametrize(("incre", "encoder"), [("true", 919.8), ("false", 903.1)])
def test_hrnet_w44_at_1280(incre, encoder):
    config = _config("preset=hrnet_w44_1280", f"models.encoder.hrnet_incre_head={incre}")
    rows = flops.trace(flops.meta_model(config), 1280, 1280)
    assert sum(row.flops for row in rows if row.part == "encoder") == pytest.approx(encoder * 1e9, rel=1e-4)
    if incre == "true":
        assert flops.training_flops(config) == pytest.approx(3.12e12, rel=1e-3)


def test_every_convolution_and_norm_of_the_model_is_in_the_table():
    model = flops.meta_model(_config("preset=hrnet_w44_1280"))
    named = {row.name for row in flops.trace(model, 64, 64)}
    called = {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d))}
    assert called <= named and len(called) > 600
