"""db_loss against the original formulas written out, against a sort, and at its edges."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.db_loss import Maps, Weights, db_loss, db_loss_reference, reference
from kernels.db_targets import DBTargets

SHAPE = (2, 23, 31)


def example(seed=0, dtype=torch.float32, shape=SHAPE, positive=0.1, ignored=0.1):
    generator = torch.Generator().manual_seed(seed)

    def uniform():
        return torch.rand(shape, generator=generator, dtype=dtype)

    shrink, counts, band = uniform() < positive, uniform() >= ignored, uniform() < 0.4
    targets = DBTargets(shrink.byte(), counts.byte(), 0.3 + 0.4 * uniform(), band.byte())
    x = torch.randn(shape, generator=generator, dtype=dtype) * 2 - 2
    y = torch.randn(shape, generator=generator, dtype=dtype)
    return x.requires_grad_(), y.requires_grad_(), targets


def original(x, y, targets, *, masked, negative_ratio=3.0, k=50.0):
    """The published loss, line by line, on probabilities: (total, prob, thresh, binary)."""
    prob, thresh, goal = x.sigmoid(), y.sigmoid(), targets.shrink_map.to(x.dtype)
    ones = torch.ones_like(goal)
    mask, band = (targets.shrink_mask.to(x.dtype), targets.thresh_mask.to(x.dtype)) if masked else (ones, ones)
    positive, negative = (goal * mask).byte(), ((1 - goal) * mask).byte()
    n_pos = int(positive.sum())
    count = min(int(negative.sum()), int(n_pos * negative_ratio))
    cost = F.binary_cross_entropy(prob, goal, reduction="none")
    worst = (cost * negative).flatten().topk(count).values
    prob_loss = ((cost * positive).sum() + worst.sum()) / (n_pos + count + 1e-6)
    error = ((thresh - targets.thresh_map).abs() * band).sum()
    thresh_loss = error / band.sum() if band.sum() > 0 else error
    binary = 1 / (1 + torch.exp(-k * (prob - thresh)))
    dice = 1 - 2 * (binary * goal * mask).sum() / ((binary * mask).sum() + (goal * mask).sum() + 1e-6)
    return 5 * prob_loss + 10 * thresh_loss + dice, prob_loss, thresh_loss, dice


@pytest.mark.parametrize("mode", ["paper", "baseline"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("positive", [0.02, 0.1, 0.6])
def test_equals_the_original_formulas(mode, dtype, tolerance, positive):
    x, y, targets = example(3, dtype, positive=positive)
    got, want = db_loss(x, y, targets, mode=mode), original(x, y, targets, masked=mode == "paper")
    for a, b in zip(got, want):
        assert a.dtype == dtype and a.shape == ()
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b in zip(torch.autograd.grad(3 * got.total, (x, y)), torch.autograd.grad(3 * want[0], (x, y))):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance * b.abs().max().item())


def test_baseline_reads_no_mask():
    x, y, targets = example()
    garbage = targets._replace(shrink_mask=torch.zeros_like(targets.shrink_mask), thresh_mask=targets.shrink_map)
    assert db_loss(x, y, targets, mode="baseline") == db_loss(x, y, garbage, mode="baseline")


def test_paper_ignores_what_is_masked_out():
    x, y, targets = example(ignored=0.5)
    off = (targets.shrink_mask == 0) & (targets.thresh_mask == 0)
    with torch.no_grad():
        other_x, other_y = torch.where(off, 7.0, x), torch.where(off, -7.0, y)
    other = targets._replace(shrink_map=torch.where(off, 1, targets.shrink_map).byte())
    assert off.any() and db_loss(x, y, targets) == db_loss(other_x, other_y, other)
    grad_x, grad_y = torch.autograd.grad(db_loss(x, y, targets).total, (x, y))
    assert not grad_x[off].any() and not grad_y[off].any() and grad_x[~off].any()


def test_worked_example():
    x = torch.tensor([[[2.0, 1.0, -1.0, -3.0]]])
    ones = torch.ones(1, 1, 4, dtype=torch.uint8)
    targets = DBTargets(torch.tensor([[[1, 0, 0, 0]]], dtype=torch.uint8), ones, torch.full((1, 1, 4), 0.3), ones)
    got = db_loss(x, torch.zeros(1, 1, 4), targets, negative_ratio=1.0)
    assert got.prob.item() == pytest.approx(0.7201, abs=5e-5)
    assert got.thresh.item() == pytest.approx(0.2)
    assert got.total.item() == pytest.approx(5 * got.prob.item() + 2 + got.binary.item())


def test_negative_count_is_floored():
    x, y, targets = example(positive=0.01)
    n_pos = int((targets.shrink_map * targets.shrink_mask).sum())
    ratio = 1.5 if n_pos % 2 else (1 + 0.5 / n_pos)
    want = original(x, y, targets, masked=True, negative_ratio=ratio)
    torch.testing.assert_close(db_loss(x, y, targets, negative_ratio=ratio).total, want[0], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_gradcheck(mode):
    x, y, targets = example(1, torch.float64, (1, 5, 7), positive=0.2)
    assert torch.autograd.gradcheck(lambda x, y: db_loss(x, y, targets, db_k=5.0, mode=mode).total, (x, y))


# --- the selection of hard negatives ---

LOGITS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e30, -1e30, -3.25]), st.floats(-20, 20, width=32)
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(pixels=st.lists(st.tuples(LOGITS, st.booleans(), st.booleans()), min_size=1, max_size=40), data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_cut_equals_a_sort(dtype, pixels, data):
    x = torch.tensor([logit for logit, _, _ in pixels], dtype=dtype)
    shrink, mask = (torch.tensor([pixel[i] for pixel in pixels]).byte() for i in (1, 2))
    negatives = x[(1 - shrink).mul(mask).bool()].double().sort(descending=True).values
    wanted = data.draw(st.integers(0, len(negatives)))
    maps = Maps(x, x, shrink, x, mask, mask)
    cut, tie = reference._worst_negatives(maps, torch.tensor(float(wanted), dtype=torch.float64), dtype)
    if wanted == 0:
        assert tie == 0 and not (negatives > cut).any()
    else:
        assert cut == negatives[wanted - 1]
        greater, equal = (negatives > cut).sum(), (negatives == cut).sum()
        assert tie.item() == pytest.approx((wanted - greater).item() / equal.item())


def test_negative_zero_ties_with_zero():
    x = torch.tensor([0.0, -0.0, -0.0, 0.0, -1.0, 2.0])
    none, all_six = torch.zeros(6, dtype=torch.uint8), torch.ones(6, dtype=torch.uint8)
    wanted = torch.tensor(2.0, dtype=torch.float64)
    assert reference._worst_negatives(Maps(x, x, none, x, all_six, all_six), wanted, torch.float32) == (0.0, 0.25)


def test_ties_share_the_remaining_places():
    x, y, targets = example(positive=0.05)
    tied = torch.full_like(x, -1.5, requires_grad=True)
    got, want = db_loss(tied, y, targets), original(tied, y, targets, masked=True)
    torch.testing.assert_close(got.prob, want[1])
    grad = torch.autograd.grad(db_loss(tied, y, targets, thresh_weight=0.0, binary_weight=0.0).total, tied)[0]
    negative = ((1 - targets.shrink_map) * targets.shrink_mask).bool()
    n_pos = (targets.shrink_map * targets.shrink_mask).sum().item()
    each = 5 * torch.tensor(-1.5).sigmoid() * 3 * n_pos / negative.sum() / (4 * n_pos)
    torch.testing.assert_close(grad[negative], each.expand(int(negative.sum())), rtol=1e-5, atol=0)
    assert x.shape == grad.shape


@pytest.mark.parametrize("digits", [1, 7, 11, 16])
def test_digit_width_and_block_size_change_nothing(digits, monkeypatch):
    x, y, targets = example(2)
    want = db_loss(x, y, targets)
    want_grad = torch.autograd.grad(want.total, (x, y))
    monkeypatch.setattr(reference, "DIGIT_BITS_CPU", digits)
    monkeypatch.setattr(reference, "BLOCK", 97)
    got = db_loss(x, y, targets)
    for a, b in zip((*got, *torch.autograd.grad(got.total, (x, y))), (*want, *want_grad)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


# --- edges ---


@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_a_batch_without_positives_teaches_only_the_threshold_map(mode):
    x, y, targets = example(positive=0.0)
    got = db_loss(x, y, targets, mode=mode)
    assert (got.prob.item(), got.binary.item()) == (0.0, 1.0)
    grad_x, grad_y = torch.autograd.grad(got.total, (x, y))
    assert not grad_x.any()
    only_thresh = torch.autograd.grad(db_loss(x, y, targets, mode=mode, binary_weight=0.0).total, y)[0]
    assert torch.equal(grad_y, only_thresh) and grad_y.any()


def test_empty_masks_give_the_constant_one():
    x, y, targets = example()
    nothing = torch.zeros_like(targets.shrink_mask)
    got = db_loss(x, y, targets._replace(shrink_mask=nothing, thresh_mask=nothing))
    assert [value.item() for value in got] == [1.0, 0.0, 0.0, 1.0]
    assert not any(grad.any() for grad in torch.autograd.grad(got.total, (x, y)))


def test_all_positive():
    x, y, targets = example(positive=1.1)
    want = original(x, y, targets, masked=True)
    for a, b in zip(db_loss(x, y, targets), want):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("mode", ["paper", "baseline"])
@pytest.mark.parametrize("positive", [0.0, 0.1])
def test_a_non_finite_logit_makes_everything_nan(value, which, mode, positive):
    x, y, targets = example(positive=positive)
    with torch.no_grad():
        (x, y)[which][1, 4, 5] = value
    got = db_loss(x, y, targets, mode=mode)
    assert got.total.isnan()
    for grad in torch.autograd.grad(got.total, (x, y)):
        assert grad.isnan().all()


def test_huge_logits_stay_finite():
    x, y, targets = example()
    got = db_loss(x * 1e4, y * 1e4, targets)
    assert all(value.isfinite() for value in got)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(got.total, (x, y)))


# --- types, layouts, compilers ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    x, y, targets = example()
    half = [logits.detach().to(dtype).requires_grad_() for logits in (x, y)]
    full = [logits.detach().float().requires_grad_() for logits in half]
    got, want = db_loss(*half, targets), db_loss(*full, targets)
    assert got == want and got.total.dtype == torch.float32
    for a, b in zip(torch.autograd.grad(got.total, half), torch.autograd.grad(want.total, full)):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))


def test_autocast_changes_nothing():
    x, y, targets = example()
    want = db_loss(x, y, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got = db_loss(x, y, targets)
    assert got == want


def test_channel_dimension_and_strides_change_nothing():
    x, y, targets = example()
    want = db_loss(x, y, targets)
    want_grad = torch.autograd.grad(want.total, (x, y))
    wide = torch.stack((x, y), 1).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    got = db_loss(wide[:, :1], wide[:, 1:], DBTargets(*(field.mT.contiguous().mT for field in targets)))
    grad = torch.autograd.grad(got.total, wide)[0]
    assert got == want and torch.equal(grad[:, 0], want_grad[0]) and torch.equal(grad[:, 1], want_grad[1])


def test_only_the_total_has_a_gradient_and_nothing_of_full_size_is_kept():
    x, y, targets = example()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        got = db_loss(x, y, targets)
    assert got.total.requires_grad and not any(part.requires_grad for part in got[1:])
    given = {tensor.data_ptr() for tensor in (x, y, *targets)}
    assert all(tensor.data_ptr() in given or tensor.numel() < 10 for tensor in kept)


def test_float64_logits_give_a_float64_result():
    x, y, targets = example()
    masks = (targets.shrink_mask, targets.thresh_mask)
    maps = Maps(x.double(), y.double(), targets.shrink_map, targets.thresh_map, *masks)
    got, _ = db_loss_reference(maps, Weights())
    doubled = targets._replace(thresh_map=targets.thresh_map.double())
    torch.testing.assert_close(got[0], original(x.double(), y.double(), doubled, masked=True)[0])


def test_compiles_without_a_graph_break():
    x, y, targets = example()
    want = torch.autograd.grad(db_loss(x, y, targets).total * 2, (x, y))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x, y, targets):
        return db_loss(x + 0, y, targets).total * 2

    for a, b in zip(torch.autograd.grad(step(x, y, targets), (x, y)), want):
        assert torch.equal(a, b)


@pytest.mark.parametrize("masked", [True, False])
def test_operators_pass_opcheck(masked):
    from kernels.db_loss import op

    x, y, targets = example()
    weights = [50.0, 3.0, 5.0, 10.0, 1.0]
    options = (weights, masked, False)
    torch.library.opcheck(op._loss_op, (x, y, *targets, *options))
    stats = op._loss_op(x, y, *targets, *options)[1].detach()
    torch.library.opcheck(op._gradient_op, (x.detach(), y.detach(), *targets, stats, torch.ones(()), *options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prob_logits": torch.zeros(2, 3, 23, 31)}, "prob_logits must be"),
        ({"prob_logits": torch.zeros(SHAPE, dtype=torch.int32)}, "prob_logits must be"),
        ({"prob_logits": torch.zeros(0, 23, 31)}, "prob_logits must be"),
        ({"thresh_logits": torch.zeros(2, 23, 30)}, r"thresh_logits must be \(2, 23, 31\)"),
        ({"thresh_logits": torch.zeros(SHAPE, dtype=torch.float64)}, "one dtype"),
        ({"shrink_map": torch.zeros(SHAPE)}, "shrink_map must be uint8"),
        ({"thresh_mask": torch.zeros(2, 23, 30, dtype=torch.uint8)}, "thresh_mask must be"),
        ({"thresh_map": torch.zeros(SHAPE, dtype=torch.uint8)}, "thresh_map must be a float"),
        ({"mode": "papers"}, "mode"),
        ({"db_k": 0.0}, "db_k"),
        ({"negative_ratio": -1.0}, "negative_ratio"),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    x, y, targets = example()
    fields = {name: change.pop(name) for name in DBTargets._fields if name in change}
    arguments = {"prob_logits": x, "thresh_logits": y, "targets": targets._replace(**fields)} | change
    with pytest.raises(ValueError, match=message):
        db_loss(**arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", ["paper", "baseline"])
def test_gpu_equals_cpu_and_never_waits(mode):
    x, y, targets = example(shape=(2, 320, 320))
    gx, gy = (logits.detach().cuda().requires_grad_() for logits in (x, y))
    gpu_targets = DBTargets(*(field.cuda() for field in targets))
    db_loss(gx, gy, gpu_targets, mode=mode)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = db_loss(gx, gy, gpu_targets, mode=mode)
        got_grad = torch.autograd.grad(got.total, (gx, gy))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    want = db_loss(x, y, targets, mode=mode)
    for a, b in zip((*got, *got_grad), (*want, *torch.autograd.grad(want.total, (x, y)))):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-7)
