"""The head's last norm, ReLU and transposed convolution as one function."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.config.load import load_config
from engine.model import build_model
from engine.model.head import Head
from engine.model.norm_double import DoubleToOne

CHANNELS = 6


def layers(dtype=torch.float64):
    torch.manual_seed(0)
    norm, double = nn.BatchNorm2d(CHANNELS), DoubleToOne(CHANNELS)
    for parameter in (*norm.parameters(), *double.parameters()):
        nn.init.normal_(parameter)
    return norm.to(dtype), double.to(dtype)


def test_values_gradients_and_statistics_are_those_of_the_layers():
    norm, double = layers()
    own = copy.deepcopy(norm)
    y = torch.randn(3, CHANNELS, 5, 7, dtype=torch.float64, requires_grad=True)
    one, other = double(F.relu(norm(y))), double.after_norm(y, own)
    torch.testing.assert_close(other, one, rtol=0, atol=1e-13)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value, rtol=0, atol=1e-14)
    gradient = torch.randn_like(one)
    wanted = torch.autograd.grad(one, [y, *norm.parameters(), *double.parameters()], gradient)
    got = torch.autograd.grad(other, [y, *own.parameters(), *double.parameters()], gradient)
    for found, value in zip(got, wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda y: double.after_norm(y, copy.deepcopy(norm)), (y[:1, :, :2, :3].detach().requires_grad_(),)
    )


def test_half_precision_has_one_rounding_more_at_most():
    """bfloat16 maps, float32 weights: within two roundings of the float64 result, and nearer than the layers."""
    norm, double = layers(torch.float32)
    y = torch.randn(2, CHANNELS, 16, 16).bfloat16()
    exact = double.double()(F.relu(copy.deepcopy(norm).double()(y.double())))
    double = double.float()
    with torch.autocast("cpu", torch.bfloat16):
        plain = double(F.relu(copy.deepcopy(norm)(y)))
    got = double.after_norm(y, norm)
    assert got.dtype == plain.dtype == torch.bfloat16
    error = (got.double() - exact).abs()
    assert bool((error <= 2**-8 * exact.abs() + 1e-5).all())
    assert error.mean() <= (plain.double() - exact).abs().mean()


@pytest.mark.parametrize("frozen", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_compiled_head_is_the_plain_one(frozen):
    torch.manual_seed(0)
    head = Head(8, 4).double()
    if frozen:  # a norm in evaluation mode within a training head keeps its statistics
        head.prob.get_submodule("4").eval()
    other = copy.deepcopy(head)
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    results = [torch.cat(module(x), 1) for module in (head, torch.compile(other))]
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)
    gradient = torch.randn_like(results[0])
    for got, wanted in zip(
        torch.autograd.grad(results[1], [x, *other.parameters()], gradient),
        torch.autograd.grad(results[0], [x, *head.parameters()], gradient),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    for name, value in head.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=1e-12)


def test_names_shapes_and_start_are_those_of_the_layers():
    model = build_model(load_config(["preset=demo"])[0])
    last = model.get_submodule("head.prob.6")
    assert isinstance(last, DoubleToOne) and [*last.state_dict()] == ["weight", "bias"]
    assert last.weight.shape == (last.in_channels, 1, 2, 2) and float(last.bias.detach()) < -2
