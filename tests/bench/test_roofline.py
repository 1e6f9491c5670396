"""The cost model: small networks by hand, HRNet-W44 against the figures known for it, scaling, the command."""

import json
import math

import pytest
import torch
from torch import nn

from bench import cost_model, roofline
from bench.cost_model import ITEM
from engine.profiling import flops
from pipelines.errors import UserError
from tests.conftest import run_module

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


def test_what_eager_autograd_keeps_by_hand():
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
    # the image, the convolution's output, BN's mean and 1 / deviation, the ReLU's output
    assert roofline.saved_bytes(model, 8, 6) == 4 * (144 + 96 + 8 + 8 + 96)


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


@pytest.fixture(scope="module")
def w44():
    return roofline.load("hrnet_w44_1280")


def test_hrnet_w44_at_1280(w44):
    """Figures of an independent count by hand; the times are at the measured anchors of an H200."""
    encoder = [layer for layer in w44.layers if layer.part == "encoder"]
    products = cost_model.product_work(encoder)
    outputs = sum(math.prod(layer.output) for layer in encoder if cost_model.is_product(layer))
    assert outputs == pytest.approx(864e6, rel=1e-3)
    gpu = roofline.GPUS["h200"]
    milliseconds = sum(1e3 * cost_model.seconds(w, gpu.flops, gpu.bandwidth, 16) for w in products)
    assert milliseconds == pytest.approx(4.02, rel=0.01)
    assert sum(w.flops for w in products) / gpu.flops == pytest.approx(3.49e-3, rel=0.01)
    assert sum(w.bytes for w in products) / gpu.bandwidth == pytest.approx(2.50e-3, rel=0.01)
    for phase, bytes_each in (("forward", 6.9), ("backward", 13.3)):
        moved = sum(w.bytes for w in cost_model.between_work(encoder) if w.phase == phase)
        assert moved / outputs == pytest.approx(bytes_each, rel=0.03)
    assert 1 / roofline.floor_seconds(w44, gpu, 16) == pytest.approx(108, rel=0.03)
    assert w44.saved == pytest.approx(cost_model.kept_bytes(w44.layers), rel=0.01)


def test_padding_adds_what_the_widths_say(w44):
    before, after = w44.layers, cost_model.pad(w44.layers, 44, 48)
    pairs = [(a, b) for a, b in zip(before, after) if cost_model.is_product(a)]
    name = "encoder.stage2.0.branches.0.0.conv1"
    ((a, b),) = [pair for pair in pairs if pair[0].name == name]
    assert (b.output, b.weights) == ((1, 48, 320, 320), 48 * 48 * 9) and b.flops == round(a.flops * (48 / 44) ** 2)
    assert all(x.flops == y.flops for x, y in pairs if 44 not in (x.inputs[0][1], x.output[1]))
    encoder = [sum(x.flops for x in rows if x.part == "encoder") for rows in (before, after)]
    assert encoder[1] / encoder[0] == pytest.approx(1.055, abs=0.002)


def test_scaling_by_hand():
    link = roofline.Link("", 8, 100e9, "")
    assert roofline.expected_maximum(1) == pytest.approx(0, abs=1e-3)
    assert roofline.expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-3)
    assert roofline.expected_maximum(8) == pytest.approx(1.4236, abs=1e-3)
    reduce, exposed, efficiency = roofline.scaling(link, parameters=50_000_000, step=0.2, backward=0.13)
    assert reduce == pytest.approx(2 * 7 / 8 * 200e6 / 100e9) and exposed == pytest.approx(reduce * 25 / 200)
    assert efficiency == pytest.approx(0.2 / (0.2 * (1 + 0.005 * 1.4236) + exposed), rel=1e-4)
    _, exposed, _ = roofline.scaling(link._replace(bandwidth=1e9), 50_000_000, step=0.2, backward=0.13)
    assert exposed == pytest.approx(0.35 - 0.13)


def test_measured_rates_are_found(w44, tmp_path):
    gpu = roofline.GPUS["h200"]
    assert "not measured" in roofline.measured_table(w44, gpu, 16, tmp_path)[0]
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "a.json").write_text(json.dumps({"images_per_second": {"compiled": 60.0, "eager": None}}))
    rows = [{"what": "padded", "images_per_second": 80}, {"what": "graph", "reason": "no memory"}]
    (tmp_path / "day" / "b.json").write_text(json.dumps({"images_per_second": rows}))
    (tmp_path / "day" / "c.json").write_text(json.dumps({"timings": []}))
    assert list(roofline.measured(tmp_path)) == [("day/a.json", "compiled", 60.0), ("day/b.json", "padded", 80.0)]
    text = "\n".join(roofline.measured_table(w44, gpu, 16, tmp_path))
    assert "| day/a.json | compiled | 60.0 | 55% |" in text
    (tmp_path / "day" / "d.json").write_text("{")
    with pytest.raises(UserError, match=r"d\.json: not a JSON file"):
        list(roofline.measured(tmp_path))


@pytest.mark.parametrize("gpu", roofline.GPUS)
def test_the_command_prints_every_table(gpu, capsys):
    assert roofline.main(["--gpu", gpu, "--preset", "demo", "--batch", "4", "--layers"]) == 0
    text = capsys.readouterr().out
    assert "Floor:" in text and "Memory of" in text and "| 64 | 8 nodes" in text and "encoder.conv_stem" in text
    assert "Finest branch" not in text  # not an HRNet
    floors = [line for line in text.splitlines() if line.startswith("**Floor")]
    assert len(floors) == 1 and ("data sheet" in text) == (gpu != "h200")


def test_the_command_on_w44_sums_by_kind(capsys):
    assert roofline.main([]) == 0
    text = capsys.readouterr().out
    shares = [line.split(" | ")[2].rstrip(" |%") for line in text.split("| part of the step")[1].splitlines()[2:14]]
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.5)
    assert "| 48 | +4.8% |" in text and text.count("| conv 3x3 |") == 4 and len(text.splitlines()) < 100


@pytest.mark.parametrize(("arguments", "words"), [
    (["--gpu", "h300"], "--gpu h300: expected one of h200, h100, a100, rtx3090"),
    (["--preset", "nothing"], "preset=nothing: no such preset"),
    (["--batch", "0"], "--batch 0: expected at least 1"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(arguments, words):
    done = run_module("bench.roofline", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1
