"""channels_last from the first map to the last and back, and no copy that only changes the layout."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config.load import load_config
from engine.model import build_model
from engine.training.step import compute_loss
from kernels.db_targets import DBTargets

NHWC = torch.channels_last


def _model(*items):
    config = load_config(["preset=hrnet_w44_1280", "models.encoder.weights=", *items])[0]
    torch.manual_seed(0)
    return build_model(config), config


def _image(size=64):
    return torch.randn(2, 3, size, size).to(memory_format=NHWC)


def _loss(model, config, image):
    n, _, h, w = image.shape
    ones = torch.ones(n, h, w, dtype=torch.uint8)
    goal = (torch.rand(n, h, w) < 0.2).to(torch.uint8)
    return compute_loss(model(image), DBTargets(goal, ones, goal * 0.5, ones), config).total


def _is_nhwc(tensor):
    # a map with one channel, or of one pixel, has both layouts
    return tensor.dim() != 4 or tensor.is_contiguous(memory_format=NHWC)


ENCODER = "models.encoder."
CASES = [
    (),
    pytest.param((f"{ENCODER}pad_widths=48",), marks=pytest.mark.slow),
    (f"{ENCODER}hrnet_incre_head=false",),
    pytest.param(("models.head.smooth=true",), marks=pytest.mark.slow),
    ("speed.fused_norms=true",),  # it does not call 112 activations behind a shortcut
]


@pytest.mark.parametrize("items", CASES, ids=lambda i: i[0].split(".")[-1] if i else "default")
def test_every_map_and_every_gradient_of_w44_is_channels_last(items):
    model, config = _model(*items)
    seen, wrong = set(), []

    def note(name, kind, tensor):
        seen.add((name, kind))
        if not _is_nhwc(tensor):
            wrong.append((name, kind, tuple(tensor.shape), tensor.stride()))

    def look(name):
        def hook(module, given, result):
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                note(name, "map", tensor)
                tensor.register_hook(lambda gradient: note(name, "gradient", gradient))

        return hook

    for name, module in model.named_modules():
        if not any(module.children()) and not isinstance(module, torch.nn.Identity):
            module.register_forward_hook(look(name))
    _loss(model.train(), config, _image()).backward()
    # The one exception is a slice: the decoder joins its four levels, and the finest takes its quarter of the gradient
    # as it lies. A copy of 13 MB a page at 1280, of some 17 GB that the step moves.
    assert {(name, kind) for name, kind, _, _ in wrong} == {("decoder.outs.0.0", "gradient")}
    assert all(strides[1] == 1 for _, _, _, strides in wrong)
    assert all(sum(kind == which for _, kind in seen) > 800 for which in ("map", "gradient"))
    assert all(_is_nhwc(p) for p in model.parameters())


class _Copies(TorchDispatchMode):
    """The maps that are written again in another layout, larger than any weight of the model."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.found = least, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name in ("clone", "contiguous", "_to_copy", "copy_", "permute_copy", "transpose_copy"):
            source = args[1] if name == "copy_" else args[0]
            same = source.stride() == result.stride()
            if result.numel() >= self.least and not same:
                self.found.append((name, tuple(source.shape), source.stride(), result.stride()))
        return result


def _copies(model, config, image, least):
    with _Copies(least) as mode:
        _loss(model, config, image).backward()
    return mode.found


def test_a_step_of_w44_copies_no_map_into_another_layout():
    model, config = _model("models.encoder.pad_widths=48")
    image = _image()
    least = 2 * 48 * 8 * 8  # the first branch's maps are 16 x 16, the smallest of interest a quarter of that
    weights = {tuple(p.shape) for p in model.parameters()}
    found = [copy for copy in _copies(model.train(), config, image, least) if copy[1] not in weights]
    assert found == []
    # The check sees a copy where there is one: an NCHW model given an NHWC image makes them.
    other, config = _model("trainer.channels_last=false")
    assert _copies(other.train(), config, image.contiguous(), least) == []
    other.encoder.layer1.register_forward_pre_hook(lambda module, given: given[0].to(memory_format=NHWC).contiguous())
    assert _copies(other, config, image.contiguous(), least)
