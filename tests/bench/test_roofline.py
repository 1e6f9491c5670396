"""The cost model: small networks by hand, HRNet-W44 against the figures known for it, scaling, the command."""

import json
import math

import pytest
import torch
from torch import nn

from bench import cost_model, roofline
from pipelines.errors import UserError
from tests.conftest import run_module


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
    shares = [line.split(" | ")[2].rstrip(" |%") for line in text.split("| part of the step")[1].splitlines()[2:13]]
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
