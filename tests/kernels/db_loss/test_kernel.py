"""The Triton kernels of db_loss against the PyTorch reference, on a GPU where there is one, else interpreted.

Floors of the error budget: ULPS float32 ulp of the value for a loss, of the largest entry for a gradient. A GPU's exp2
and rsqrt are good to 2 ulp each, where the reference's exp is to 1. The interpreter cuts float32 off to bfloat16, where
a GPU rounds: one bfloat16 ulp more there.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import no_sync
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import runtime
from kernels.db_loss import Maps, Stats, Weights, binary_map, db_loss, db_loss_gradient, db_loss_reference, op, pixels
from kernels.db_loss import backward as backward_module
from kernels.db_loss import forward as forward_module
from kernels.db_targets import DBTargets
from tests.conftest import DEVICE

ULPS = 8 * 2.0**-23
SHAPES = [(1, 1, 1), (1, 7, 13), (2, 23, 31), (3, 40, 130)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODES = ["paper", "baseline"]


def example(shape=(2, 23, 31), dtype=torch.float32, thresh_dtype=torch.bfloat16, seed=0, positive=0.1, ignored=0.1):
    generator = torch.Generator().manual_seed(seed)

    def uniform():
        return torch.rand(shape, generator=generator)

    maps = ((uniform() < positive).byte(), (uniform() >= ignored).byte(), 0.3 + 0.4 * uniform(), uniform() < 0.4)
    targets = DBTargets(*(field.to(DEVICE) for field in maps))
    targets = targets._replace(thresh_map=targets.thresh_map.to(thresh_dtype), thresh_mask=targets.thresh_mask.byte())
    x = (torch.randn(shape, generator=generator) * 2 - 2).to(DEVICE, dtype)
    return x, torch.randn(shape, generator=generator).to(DEVICE, dtype), targets


def by_kernels(x, y, targets, mode="paper", ratio=3.0, grad=1.0):
    """(losses, stats, gradients) through the operators."""
    options = ([50.0, ratio, 5.0, 10.0, 1.0], mode == "paper", True)
    losses, stats = op._loss_op(x, y, *targets, *options)
    grad = torch.tensor(grad, device=x.device)
    return losses, stats, op._gradient_op(x, y, *targets, stats, grad, *options)


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


# --- edges ---


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


# --- strides, gradients that come in, programs ---


def layouts(x, y):
    """(name, x, y, whether the kernels must read them as they are)."""
    pair, many = torch.stack((x, y), 1), torch.stack((x, y, x, y, x), 1)
    yield "two channels", *pair.unbind(1), True
    yield "channels_last", *pair.contiguous(memory_format=torch.channels_last).unbind(1), True
    yield "five channels", *many.contiguous(memory_format=torch.channels_last)[:, 2:4].unbind(1), True
    yield "one of each", pair[:, 0], many.contiguous(memory_format=torch.channels_last)[:, 1], True
    yield "a crop", torch.nn.functional.pad(x, (1, 2))[..., 1:-2], y, False
    yield "transposed", x.mT.contiguous().mT, y.mT.contiguous().mT, False


@pytest.mark.parametrize("shape", [(1, 7, 13), (2, 23, 31), (3, 16, 160), (4, 1, 9), (4, 9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_change_no_bit(shape, dtype):
    x, y, targets = example(shape, dtype, positive=0.3)
    want = by_kernels(x, y, targets)
    drawn = binary_map(x, y, implementation="triton")
    for name, a, b, direct in layouts(x, y):
        pages = pixels.lay_out(a, b)
        assert (pages.x is a and pages.y is b) or not direct, name
        got = by_kernels(a, b, targets)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), name
        assert all(torch.equal(c, d) and c.is_contiguous() for c, d in zip(got[2], want[2])), name
        assert torch.equal(binary_map(a, b, implementation="triton"), drawn), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter would copy 4.3 GB at every launch")
def test_a_page_beyond_2_to_the_31_elements():
    """Only the pages' addresses are far apart."""
    x, y, targets = example((2, 5, 7), torch.bfloat16)
    if torch.cuda.mem_get_info()[0] < 5e9:
        pytest.skip("needs 5 GB of free GPU memory")
    far = torch.empty(2**31 + 100, dtype=torch.bfloat16, device=DEVICE).as_strided((2, 5, 7), (2**31 + 48, 7, 1))
    far.copy_(x)
    got, want = by_kernels(far, y, targets), by_kernels(x, y, targets)
    assert torch.equal(got[0], want[0]) and torch.equal(got[2][0], want[2][0])


def test_targets_of_any_stride():
    x, y, targets = example()
    got = by_kernels(x, y, DBTargets(*(field.mT.contiguous().mT for field in targets)))
    assert torch.equal(got[0], by_kernels(x, y, targets)[0])


def test_incoming_gradients():
    x, y, targets = example((1, 7, 13))
    want = by_kernels(x, y, targets)[2]
    x, y = x.requires_grad_(), y.requires_grad_()
    options = ([50.0, 3.0, 5.0, 10.0, 1.0], True, True)
    spread = torch.autograd.grad(op._loss_op(x, y, *targets, *options)[0].sum(), (x, y))  # a gradient of stride 0
    scaled = torch.autograd.grad(db_loss(x, y, targets, implementation="triton").total * -3, (x, y))
    assert all(torch.equal(a, b) for a, b in zip(spread, want))
    for a, b in zip(scaled, want):
        torch.testing.assert_close(a, -3 * b, rtol=1e-6, atol=0)
    stats = op._loss_op(x, y, *targets, *options)[1].detach()
    third = torch.tensor([7.0, 7.0, 1.0, 7.0], device=DEVICE)[2]
    assert torch.equal(op._gradient_op(x, y, *targets, stats, third, *options)[0], want[0])


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


# --- compilers, memory, waiting ---


@pytest.mark.parametrize("masked", [True, False])
def test_operators_pass_opcheck(masked):
    x, y, targets = example((1, 7, 13), torch.bfloat16)
    options = ([50.0, 3.0, 5.0, 10.0, 1.0], masked, True)
    torch.library.opcheck(op._loss_op, (x.clone().requires_grad_(), y.clone().requires_grad_(), *targets, *options))
    stats = op._loss_op(x, y, *targets, *options)[1]
    one = torch.ones((), device=DEVICE)
    torch.library.opcheck(op._gradient_op, (x, y.mT.contiguous().mT, *targets, stats, one, *options))
    torch.library.opcheck(op._binary_op, (x, y.mT.contiguous().mT, 50.0, True))


def test_compiles_without_a_graph_break():
    x, y, targets = example((2, 7, 13))
    wide = torch.stack((x, y), 1).contiguous(memory_format=torch.channels_last).requires_grad_()

    def step(wide, targets):
        x, y = (wide + 0).unbind(1)
        binary = binary_map(x, y, implementation="triton").sum()
        return db_loss(x, y, targets, implementation="triton").total * 2, binary

    want, got = step(wide, targets), torch.compile(step, fullgraph=True, backend="aot_eager")(wide, targets)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert torch.equal(*(torch.autograd.grad(total, wide)[0] for total, _ in (got, want)))


def test_nothing_of_full_size_is_kept():
    x, y, targets = example()
    wide, kept = torch.stack((x, y), 1).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        got = db_loss(wide[:, 0], wide[:, 1], targets, implementation="triton")
    assert got.total.requires_grad and not any(part.requires_grad for part in got[1:])
    given = {tensor.untyped_storage().data_ptr() for tensor in (wide, *targets)}
    assert len(kept) == 7
    assert all(tensor.untyped_storage().data_ptr() in given or tensor.numel() < 10 for tensor in kept)


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_never_waits_on_a_gpu():
    x, y, targets = example((2, 320, 320), torch.bfloat16)
    by_kernels(x, y, targets)
    one = torch.ones((), device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        options = ([50.0, 3.0, 5.0, 10.0, 1.0], True, True)
        op._gradient_op(x, y, *targets, op._loss_op(x, y, *targets, *options)[1], one, *options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- which path, the binary map ---


def test_auto_takes_the_kernels_on_a_gpu_only(monkeypatch):
    seen = []
    monkeypatch.setattr(op, "forward", lambda *args: seen.append("forward") or forward_module.forward(*args))
    monkeypatch.setattr(op, "binary_map_kernel", lambda x, *rest: seen.append("binary") or x * 0)
    x, y, targets = example((1, 7, 13))
    db_loss(x, y, targets), binary_map(x, y)
    assert seen == (["forward", "binary"] if DEVICE == "cuda" else [])
    db_loss(x, y, targets, implementation="triton"), binary_map(x, y, implementation="triton")
    assert seen[-2:] == ["forward", "binary"]
    seen.clear()
    db_loss(x, y, targets, implementation="reference"), binary_map(x.double(), y.double())
    assert db_loss(x.double(), y.double(), targets).total.dtype == torch.float64 and not seen


@pytest.mark.parametrize("function", [binary_map, lambda x, y, **rest: db_loss(x, y, example((1, 7, 13))[2], **rest)])
def test_the_kernels_refuse_float64(function):
    x, y, _ = example((1, 7, 13), torch.float64)
    with pytest.raises(ValueError, match="needs float32, bfloat16 or float16 logits"):
        function(x, y, implementation="triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_binary_map(shape, dtype):
    x, y, _ = example(shape, dtype)
    exact = (50 * (x.double().sigmoid() - y.double().sigmoid())).sigmoid()
    plain = binary_map(x, y, implementation="reference")
    got = binary_map(x[:, None].requires_grad_(), y[:, None], implementation="triton")
    assert got.shape == plain.shape == shape and got.dtype == plain.dtype == torch.float32 and not got.requires_grad
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max() + ULPS
    soft = (x.double().sigmoid() - y.double().sigmoid()).sigmoid()
    torch.testing.assert_close(binary_map(x, y, db_k=1.0, implementation="triton").double(), soft, rtol=ULPS, atol=0)


def test_binary_map_example_and_errors():
    x, y = torch.zeros(1, 1, 1, device=DEVICE), torch.full((1, 1, 1), -0.4, device=DEVICE)
    assert binary_map(x, y, implementation="triton").item() == pytest.approx(0.9929, abs=5e-5)
    for change, message in (({"db_k": 0.0}, "db_k"), ({"implementation": "fast"}, "implementation")):
        with pytest.raises(ValueError, match=f"binary_map: .*{message}"):
            binary_map(x, y, **change)
    with pytest.raises(ValueError, match="binary_map: thresh_logits must be"):
        binary_map(x, torch.zeros(1, 2, 1, device=DEVICE))
