import math

import pytest
import torch
from torch import nn

from bench import cost_model
from bench.cost_model import ITEM
from engine.profiling import flops

N = 8 * 16 * 16  # elements of a map of the small networks


def _unit(kernel=3, stride=1, relu=True):
    """conv - BN - ReLU on 8 channels."""
    conv = nn.Conv2d(8, 8, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU() if relu else nn.Identity())


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.start, self.unit, self.end = nn.Conv2d(3, 8, 1, bias=False), _unit(), nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x):
        return self.end(self.unit(self.start(x)))


class Residual(Chain):
    """Two residual blocks, so that the result of the first has two readers, as inside HRNet."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(_unit(), _unit(relu=False)) for _ in range(2))

    def forward(self, x):
        x = self.start(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.end(x)


class Fused(Chain):
    """A sum with a branch of half the size, upsampled: HRNet's exchange."""

    def __init__(self):
        super().__init__()
        self.down, self.up = _unit(stride=2), nn.Sequential(_unit(kernel=1, relu=False), nn.Upsample(scale_factor=2))

    def forward(self, x):
        x = self.unit(self.start(x))
        return self.end(torch.relu(x + self.up(self.down(x))))


def _rows(model):
    with torch.device("meta"):
        return flops.trace(model(), 16, 16)


def _elements(rows, **wanted):
    found = [w for w in cost_model.between_work(rows) if all(getattr(w, key) == v for key, v in wanted.items())]
    return sum(w.bytes for w in found) // ITEM


def test_a_plain_unit_by_hand():
    rows = _rows(Chain)
    assert _elements(rows, phase="forward") == 3 * N  # statistics read y, apply reads y and writes z: 6 bytes
    assert _elements(rows, phase="backward") == 5 * N  # reduce reads dz and y, apply reads both and writes dy: 10 bytes
    forward, dgrad, wgrad = (w for w in cost_model.product_work(rows) if w.name == "unit.0")
    assert forward.flops == dgrad.flops == wgrad.flops == 2 * N * 8 * 9
    assert forward.bytes == dgrad.bytes == wgrad.bytes == 2 * 2 * N and forward.batch_bytes == 2 * 8 * 8 * 9
    assert [w.phase for w in cost_model.product_work(rows) if w.name == "start"] == ["forward", "wgrad"]
    assert cost_model.kept_bytes(rows) == ITEM * (3 * 16 * 16 + 3 * N)  # image, first map, y and z


def test_a_residual_block_by_hand():
    rows = _rows(Residual)
    assert _elements(rows, phase="forward") == 2 * (3 + 4) * N  # 6 and 8 bytes an element
    first = 5 * N + 5 * N + 3 * N  # plain unit; sum of two gradients, mask, y, write g; g, y, dy
    last = 5 * N + 4 * N + 3 * N  # its result has one reader
    start = 3 * N  # the first map has two readers as well: their gradients are added
    assert _elements(rows, phase="backward") == first + last + start


def test_an_upsampled_branch_is_read_and_its_gradient_kept_at_its_own_size():
    rows, quarter = _rows(Fused), N // 4
    summed = next(g for g in cost_model.groups(rows) if any(layer.kind == "upsample" for layer in g.layers))
    assert sorted(math.prod(shape) for shape in summed.sources.values()) == [quarter, N] and summed.masked
    forward, backward = cost_model.group_elements(summed, 1)
    assert forward == quarter + quarter + N + N  # statistics; branch, other operand, result
    # the gradient, the mask, y, the sum g, g summed over windows; then that, y and dy
    assert backward == N + N + quarter + N + quarter + 3 * quarter


def test_the_bound_of_a_call_is_flops_or_bytes():
    work = cost_model.Work("", "conv 3x3", "forward", 16, flops=1000, bytes=100, batch_bytes=40)
    assert cost_model.seconds(work, flops=10, bandwidth=1e9, batch=4) == 100
    assert cost_model.seconds(work, flops=1e9, bandwidth=10, batch=4) == 11


def test_padding_adds_what_the_widths_say(w44):
    before, after = w44.layers, cost_model.pad(w44.layers, 44, 48)
    pairs = [(a, b) for a, b in zip(before, after) if cost_model.is_product(a)]
    name = "encoder.stage2.0.branches.0.0.conv1"
    ((a, b),) = [pair for pair in pairs if pair[0].name == name]
    assert (b.output, b.weights) == ((1, 48, 320, 320), 48 * 48 * 9) and b.flops == round(a.flops * (48 / 44) ** 2)
    assert all(x.flops == y.flops for x, y in pairs if 44 not in (x.inputs[0][1], x.output[1]))
    encoder = [sum(x.flops for x in rows if x.part == "encoder") for rows in (before, after)]
    assert encoder[1] / encoder[0] == pytest.approx(1.055, abs=0.002)
