"""Width padding computes the same function, trains the same weights, and leaves names and shapes alone.

A BLAS may add the same products in another order when there are zeros among them (MKL does: 2e-15 in a map). So the
trajectories are compared to the last bit with convolutions that add channel after channel, and with the machine's own
to rounding.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.config.load import load_config
from engine.model import build_model
from pipelines.errors import UserError


def _model(name, *items):
    torch.manual_seed(0)
    settings = ["preset=demo", f"models.encoder.name={name}", "models.decoder.inner_channels=8"]
    return build_model(load_config([*settings, *items])[0])


def _pair(name, width, incre=True, dtype=torch.float64):
    """The same detector twice, the second one padded; padding changes no name, shape or value."""
    incre = f"models.encoder.hrnet_incre_head={str(incre).lower()}"
    plain, padded = _model(name, incre), _model(name, incre, f"models.encoder.pad_widths={width}")
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in padded.state_dict().items()}
    padded.load_state_dict(plain.state_dict())
    return plain.to(dtype), padded.to(dtype)


def _train(model, steps=5, size=32):
    """`steps` AdamW steps on fixed pages; returns what the network gave in each."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(1)
    seen = []
    for _ in range(steps):
        image = torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)
        logits = model(image.to(memory_format=torch.channels_last))
        sum(map_.sigmoid().square().mean() for map_ in logits).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen += [map_.detach() for map_ in logits]
    return seen


class _InOrder(torch.autograd.Function):
    """A convolution that adds input channel after input channel, and backwards output channel after output channel."""

    @staticmethod
    def forward(x, weight, stride, padding):
        (n, c, h, _), (o, _, k, _) = x.shape, weight.shape
        columns = F.unfold(x, k, padding=padding, stride=stride).view(n, c, k * k, -1)
        total = x.new_zeros(n, o, columns.shape[-1])
        for i in range(c):
            total += (weight[:, i].reshape(1, o, k * k, 1) * columns[:, i, None]).sum(2)
        return total.view(n, o, (h + 2 * padding - k) // stride + 1, -1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, *ctx.how = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), (stride, padding) = ctx.saved_tensors, ctx.how
        (n, c, h, w), (o, _, k, _) = x.shape, weight.shape
        columns = F.unfold(x, k, padding=padding, stride=stride).view(n, c, k * k, -1)
        grad = grad.reshape(n, o, -1)
        to_weight = torch.stack([(grad[:, i, None, None] * columns).sum((0, 3)) for i in range(o)])
        to_columns = torch.zeros_like(columns)
        for i in range(o):
            to_columns += weight[i].reshape(1, c, k * k, 1) * grad[:, i, None, None]
        to_x = F.fold(to_columns.view(n, c * k * k, -1), (h, w), k, padding=padding, stride=stride)
        return to_x, to_weight.view_as(weight), None, None


@pytest.fixture
def in_order(monkeypatch):
    """All convolutions add in channel order; the transposed ones of the head have no padded channel."""

    def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        first = [v[0] if isinstance(v, tuple) else v for v in (stride, padding)]
        return _InOrder.apply(x, weight, *first)

    monkeypatch.setattr(F, "conv2d", conv2d)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads share the sums of BatchNorm and of gradients out by shape
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("incre", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name, width", [("hrnet_w18_small", 48), pytest.param("hrnet_w18_small", 64, marks=pytest.mark.slow)]
)
def test_five_adamw_steps_are_the_same_to_the_last_bit(in_order, name, width, incre):
    plain, padded = _pair(name, width, incre)
    for a, b in zip(_train(plain), _train(padded), strict=True):
        assert (a - b).abs().max() == 0
    for (key, a), b in zip(plain.state_dict().items(), padded.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.slow
def test_w44_in_48_channels_trains_the_same_to_the_last_bit(in_order):
    plain, padded = _pair("hrnet_w44", 48)
    for a, b in zip(_train(plain, size=32), _train(padded, size=32), strict=True):
        assert (a - b).abs().max() == 0
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), padded.state_dict().values()))


def test_the_padded_channels_are_zero_and_the_maps_are_wide():
    """Every map that a padded layer gives has the padded width, and nothing but zeros beyond the branch's own."""
    _, padded = _pair("hrnet_w18_small", 48)
    seen = []

    def look(module, inputs, output):
        own = module.out_channels if isinstance(module, nn.Conv2d) else module.num_features
        if output.shape[1] > own:
            assert output.shape[1] == 48 and not output[:, own:].any()
            seen.append(module)

    for module in padded.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(look)
    _train(padded, steps=2)
    for parameter in padded.parameters():
        parameter.grad = None
    padded.eval()(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    convs = {m for m in padded.encoder.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 16}
    assert len(convs) > 10 and convs <= set(seen)


def test_with_the_machines_own_convolutions_the_maps_differ_by_rounding(request):
    """In evaluation mode of a copy, as EMA makes it. Budget: three times what rounding does to the plain network."""
    plain, padded = _pair("hrnet_w18_small", 48)
    _train(plain, steps=1)
    padded.load_state_dict(plain.state_dict())
    padded, image = copy.deepcopy(padded), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    own = [model.eval()(image).detach() for model in (plain, padded)]
    request.getfixturevalue("in_order")
    reference = plain(image).detach()
    plain_error, padded_error = ((maps - reference).abs().max() for maps in own)
    assert 0 < padded_error <= 3 * plain_error


def test_the_convolution_of_these_tests_is_one():
    x, weight = torch.randn(2, 5, 9, 9).double().requires_grad_(), torch.randn(4, 5, 3, 3).double().requires_grad_()
    for stride in (1, 2):
        want, got = F.conv2d(x, weight, stride=stride, padding=1), _InOrder.apply(x, weight, stride, 1)
        torch.testing.assert_close(got, want)
        pairs = zip(*(torch.autograd.grad(y.sin().sum(), (x, weight)) for y in (got, want)))
        for a, b in pairs:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "name, width, words", [("lcnet_035", 48, "only an HRNet"), ("hrnet_w64", 48, "has 64 channels")]
)
def test_what_cannot_be_padded_is_refused(name, width, words):
    with pytest.raises(UserError, match=words):
        _model(name, f"models.encoder.pad_widths={width}")
