import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_examples import DTYPES, SHAPES, ULPS, by_kernels, example
from no_sync import no_sync
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import runtime
from kernels.db_loss import Maps, Stats, Weights, db_loss_gradient, db_loss_reference
from kernels.db_loss import backward as backward_module
from kernels.db_loss import forward as forward_module
from kernels.db_targets import DBTargets
from tests.conftest import DEVICE

MODES = ["paper", "baseline"]


def by_reference(x, y, targets, mode="paper", ratio=3.0, grad=1.0, upcast=False):
    """The same from the reference, contiguous inputs; upcast: computed and returned in float64."""
    x, y = (logits.to(torch.float64 if upcast else logits.dtype).contiguous() for logits in (x, y))
    masks = (targets.shrink_mask, targets.thresh_mask) if mode == "paper" else (None, None)
    maps, weights = Maps(x, y, targets.shrink_map, targets.thresh_map, *masks), Weights(negative_ratio=ratio)
    losses, stats = db_loss_reference(maps, weights)
    grads = db_loss_gradient(maps, weights, stats, torch.tensor(grad, device=x.device))
    return losses, torch.stack(stats), grads


def check(x, y, targets, mode="paper", ratio=3.0):
    """Losses and gradients within the error budget, cut, tie and n_pos + K exactly as the reference has them."""
    got, plain, exact = (
        by_kernels(x, y, targets, mode, ratio),
        by_reference(x, y, targets, mode, ratio),
        by_reference(x, y, targets, mode, ratio, upcast=True),
    )
    torch.testing.assert_close(got[1][:3], plain[1][:3], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(got[1], exact[1], rtol=1e-4, atol=1e-6, equal_nan=True)  # float32 terms, k = 50
    assert got[0].dtype == torch.float32 and got[0].isfinite().all()
    error, budget = (got[0] - exact[0]).abs(), 2 * (plain[0] - exact[0]).abs() + ULPS * exact[0].abs()
    assert (error <= budget).all(), (got[0], plain[0], exact[0])
    for a, b, c in zip(got[2], plain[2], exact[2]):
        assert a.dtype == x.dtype and a.is_contiguous() and a.isfinite().all()
        cut_off = 2.0**-7 if runtime.INTERPRETED and x.dtype == torch.bfloat16 else 0.0
        floor = (ULPS + cut_off) * c.abs().max()
        assert (a - c).abs().max() <= 2 * (b - c).abs().max() + floor
        small = {torch.float32: 2e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}[x.dtype] + cut_off
        torch.testing.assert_close(a.double(), c, rtol=small, atol=max(floor.item(), 1e-7))
    return got


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("thresh_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape, dtype, thresh_dtype, mode):
    check(*example(shape, dtype, thresh_dtype, positive=0.6 if shape == (1, 1, 1) else 0.1), mode)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, 0.7, 1e9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_ratios(dtype, ratio):
    x, y, targets = example((1, 9, 31), dtype, ignored=0.0)
    targets.shrink_map.zero_().view(-1)[3:23:2] = 1  # ten positives: 10 x 0.7 is 7 in float64, 6.9999999 in float32
    _, stats, _ = check(x, y, targets, ratio=ratio)
    assert stats[2].item() == 10 + min(math.floor(10 * ratio), 269) + 1e-6


def no_positives(x, y, targets):
    return x, y, targets._replace(shrink_map=torch.zeros_like(targets.shrink_map))


def all_positive(x, y, targets):
    return x, y, targets._replace(shrink_map=torch.ones_like(targets.shrink_map))


def all_ignored(x, y, targets):
    return x, y, targets._replace(shrink_mask=torch.zeros_like(targets.shrink_mask))


def empty_masks(x, y, targets):
    nothing = torch.zeros_like(targets.shrink_mask)
    return x, y, targets._replace(shrink_mask=nothing, thresh_mask=nothing)


def most_positive(x, y, targets):
    return x, y, targets._replace(shrink_map=1 - targets.shrink_map)


def all_equal(x, y, targets):
    return torch.full_like(x, -1.5), torch.full_like(y, 0.25), targets


def few_values(x, y, targets):
    return x.round(), (y * 2).round(), targets


def both_zeros(x, y, targets):
    sign = torch.where(targets.thresh_mask > 0, 1.0, -1.0).to(x.dtype)
    return torch.where(x < -1, sign * 0.0, x.abs().neg()), y, targets


def huge(x, y, targets):
    return (x * 3e4).clamp(-6e4, 6e4), (y * 3e4).clamp(-6e4, 6e4), targets


def well_learned(x, y, targets):
    return torch.where(targets.shrink_map > 0, 9.0 + x, x - 9.0).to(x.dtype), y, targets


EDGES = [no_positives, all_positive, all_ignored, empty_masks, most_positive]
EDGES += [all_equal, few_values, both_zeros, huge, well_learned]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edge", EDGES)
def test_edges(edge, dtype, mode):
    losses, stats, grads = check(*edge(*example((2, 5, 31), dtype)), mode)
    if edge is no_positives:
        assert losses[1] == 0 and losses[3] == 1 and not grads[0].any()
    if edge is empty_masks and mode == "paper":
        assert losses.tolist() == [1, 0, 0, 1] and not grads[0].any() and not grads[1].any()
    if edge is both_zeros:
        assert stats[0] == 0 and 0 < stats[1] < 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_non_finite_logit_makes_everything_nan(value, which, masked, mode):
    inputs = example((1, 7, 13), DTYPES[which + masked])
    inputs[which].view(-1)[-1] = value
    for mask in (inputs[2].shrink_mask, inputs[2].thresh_mask):
        mask.view(-1)[-1] = not masked
    losses, stats, grads = by_kernels(*inputs, mode)
    assert losses[0].isnan() and stats[-1].isnan() and all(grad.isnan().all() for grad in grads)


VALUES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-14, -3.25, 6e4, -6e4]), st.floats(-20, 20, width=16))
PIXELS = st.lists(st.tuples(VALUES, st.sampled_from([0, 0, 0, 1]), st.booleans()), min_size=1, max_size=40)


@pytest.mark.parametrize("dtype", DTYPES)
@given(drawn=PIXELS, ratio=st.sampled_from([0.5, 1.0, 3.0, 1e9]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_selection_equals_a_sort(dtype, drawn, ratio):
    x = torch.tensor([[[pixel[0] for pixel in drawn]]], dtype=torch.float32).to(DEVICE, dtype)
    shrink, mask = (torch.tensor([[[pixel[i] for pixel in drawn]]]).byte().to(DEVICE) for i in (1, 2))
    losses, stats, _ = by_kernels(x, x, DBTargets(shrink, mask, x.float(), mask), ratio=ratio)
    negatives = x[(1 - shrink).mul(mask).bool()].double().sort(descending=True).values
    positives = x[(shrink * mask).bool()].double()
    wanted = min(len(negatives), math.floor(len(positives) * ratio))
    assert stats[2].item() == len(positives) + wanted + 1e-6
    if wanted:
        greater, equal = (negatives > stats[0]).sum(), (negatives == stats[0]).sum()
        assert stats[0] == negatives[wanted - 1] and stats[1] == (wanted - greater).double() / equal
    worst = torch.cat((negatives[:wanted], -positives))
    want = torch.logaddexp(worst, torch.zeros_like(worst)).sum() / stats[2]
    torch.testing.assert_close(losses[1].double(), want, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_number_of_programs(dtype, monkeypatch):
    x, y, targets = example((3, 40, 130), dtype)  # nine tiles
    want = by_kernels(x, y, targets)
    for programs in (1, 2, 5):
        monkeypatch.setattr(runtime, "num_programs", lambda device, per_sm, most, n=programs: min(n, most))
        got, again = by_kernels(x, y, targets), by_kernels(x, y, targets)
        assert torch.equal(got[0], again[0]) and torch.equal(got[1], again[1])
        assert all(torch.equal(a, b) for a, b in zip(got[2], again[2]))
        torch.testing.assert_close(got[1], want[1], rtol=1e-14, atol=0)
        torch.testing.assert_close(got[0], want[0], rtol=2.0**-23, atol=0)


def far_and_near(shape):
    """All pixels at -4 but for the last two rows: negatives at 1, positives at 2. The losses follow from counts."""
    pages, height, width = shape
    logits = torch.full((pages, 2, height, width), -4.0, dtype=torch.bfloat16, device=DEVICE)
    logits[:, 1] = 0
    logits[-1, 0, -2], logits[-1, 0, -1] = 1.0, 2.0
    shrink = torch.zeros(shape, dtype=torch.uint8, device=DEVICE)
    shrink[-1, -1] = 1
    ones = torch.ones_like(shrink)
    return logits, DBTargets(shrink, ones, torch.full(shape, 0.25, dtype=torch.bfloat16, device=DEVICE), ones)


@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 32769, 32768)])
def test_more_pixels_than_2_to_the_31(shape):
    count, width = math.prod(shape), shape[-1]
    if count > 2**31:
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        if torch.cuda.mem_get_info()[0] < 32e9:
            pytest.skip("needs 32 GB of free GPU memory: 28 GB of maps and gradients")
    logits, targets = far_and_near(shape)
    losses, stats, (grad_x, grad_y) = by_kernels(*logits.unbind(1), targets, ratio=1.0)
    three = torch.tensor([-4.0, 1.0, 2.0], dtype=torch.float64)
    far, near, text = (50 * (three.sigmoid() - 0.5)).sigmoid().tolist()
    union = far * (count - 2 * width) + (near + text + 1) * width
    want = [1.0, 1.0, 2 * width + 1e-6, text * width, union + 1e-6, float(count), 0.0]
    torch.testing.assert_close(stats.tolist(), want, rtol=1e-5, atol=0)
    prob = (math.log1p(math.e) + math.log1p(math.exp(-2))) / 2
    torch.testing.assert_close(losses[1:].tolist(), [prob, 0.25, 1 - 2 * text * width / union], rtol=1e-5, atol=0)
    goal, ones = torch.tensor([0, 0, 1]).byte(), torch.ones(3).byte()
    small = Maps(three, torch.zeros(3).double(), goal, torch.full((3,), 0.25), ones, ones)
    expected = db_loss_gradient(small, Weights(negative_ratio=1.0), Stats(*stats.cpu()), torch.tensor(1.0))
    places = [(0, 0, 0), (-1, -3, -1), (-1, -2, 0), (-1, -2, -1), (-1, -1, 0), (-1, -1, -1)]
    for got, of_three in zip((grad_x, grad_y), expected):
        want = of_three[[0, 0, 1, 1, 2, 2]]
        torch.testing.assert_close(
            torch.stack([got[at] for at in places]).double().cpu(), want, rtol=2.0**-7, atol=1e-20
        )


class Watch(TorchDispatchMode):
    """Counts the bytes that are allocated."""

    def __init__(self, given):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self.bytes += storage.nbytes()
                self.keep = (getattr(self, "keep", None), tensor)  # else the next one may get the same address
        return out


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_and_no_waiting(dtype, direct, monkeypatch):
    monkeypatch.setattr(runtime, "launch", lambda *args, **constants: None)
    wide = torch.zeros((2, 2, 640, 642), dtype=dtype, device=DEVICE)
    x, y = wide.unbind(1) if direct else wide[..., 1:-1].unbind(1)
    count = x.numel()
    masks = (torch.zeros(x.shape, dtype=torch.uint8, device=DEVICE) for _ in range(3))
    shrink, shrink_mask, thresh_mask = masks
    maps = Maps(x, y, shrink, torch.zeros(x.shape, device=DEVICE), shrink_mask, thresh_mask)
    one = torch.ones((), device=DEVICE)
    with no_sync(), Watch((*maps, one)) as forward:
        _, stats = forward_module.forward(maps, Weights())
    with no_sync(), Watch((*maps, one, stats)) as backward:
        backward_module.backward(maps, Weights(), stats, one)
    copies = 0 if direct else 2 * count * x.itemsize  # of logits, made by each and dropped
    assert forward.bytes - copies < 100_000 and backward.bytes == copies + 2 * count * x.itemsize
    assert max(forward.bytes, backward.bytes) <= 16 * count + 2**20
