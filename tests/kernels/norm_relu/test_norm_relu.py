"""norm_relu: the reference against PyTorch's own layers, the Triton kernels against the reference, on a GPU where there
is one, else interpreted.

Error budget: at most twice what PyTorch's own layers are off in the same dtype, all against float64, and a floor of
ULPS float32 ulp of the largest term. The interpreter cuts float32 off to bfloat16, where a GPU rounds: one bfloat16
ulp more.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from no_sync import no_sync
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from kernels import runtime
from kernels.norm_relu import norm_relu, norm_relu_reference, op, rows
from kernels.norm_relu.backward import backward
from kernels.norm_relu.fold import fold_sums
from kernels.norm_relu.forward import forward, moments
from tests.conftest import DEVICE

ULPS = 16 * 2.0**-23
EPS = 1e-5
NHWC = torch.channels_last
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# one pixel a page, one channel, no multiple of 4, several tiles, blocks of channels beyond the first
SHAPES = [(5, 44, 1, 1), (2, 1, 5, 7), (1, 3, 13, 11), (1, 44, 7, 13), (2, 48, 17, 19), (1, 88, 11, 13), (1, 136, 5, 7)]


def example(shape, dtype=torch.float32, add=False, seed=0):
    """(y, weight, bias, residual or None, dz): weights of both signs and one 0, means beside 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator)

    y = (normal(*shape) * 2 + 3 * normal(shape[1])[None, :, None, None]).to(dtype).contiguous(memory_format=NHWC)
    weight, bias = normal(shape[1]), normal(shape[1])
    weight[-1] = 0.0
    residual, dz = (normal(*shape).to(dtype).contiguous(memory_format=NHWC) for _ in range(2))
    return [t.to(DEVICE) for t in (y, weight, bias)] + [residual.to(DEVICE) if add else None, dz.to(DEVICE)]


def results(call, y, weight, bias, residual, dz, dtype=None):
    """(z, mean, var, dy, dweight, dbias[, dresidual]) of `call`, in float64 when asked."""
    given = [
        None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in (y, weight, bias, residual)
    ]
    z, mean, var = call(*given)
    grads = torch.autograd.grad(z, [t for t in given if t is not None], dz.to(z.dtype))
    return z, mean, var, *grads


def by(implementation):
    return lambda y, weight, bias, residual: norm_relu(
        y, weight, bias, residual, eps=EPS, implementation=implementation
    )


def by_layers(y, weight, bias, residual):
    """PyTorch's own layers, in y's dtype."""
    z = F.batch_norm(y, None, None, weight, bias, training=True, eps=EPS)
    z = (z if residual is None else z + residual).relu()
    var, mean = torch.var_mean(y.detach().to(weight.dtype), (0, 2, 3), correction=0)
    return z, mean, var


def scales(y, weight, bias, residual, dz):
    """The largest terms that each result is the sum of, per channel, in the order of `results`."""
    y, weight, bias, dz = (t.double() for t in (y, weight, bias, dz))
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    rstd = (var + EPS).rsqrt()
    normal = ((y - mean[None, :, None, None]) * rstd[None, :, None, None]).abs().amax((0, 2, 3))
    away = normal * weight.abs() + bias.abs() + (0 if residual is None else residual.double().abs().amax((0, 2, 3)))
    largest = dz.abs().amax((0, 2, 3))
    count = y.numel() // y.shape[1]
    found = [away, mean.abs() + var.sqrt(), var, largest * (weight.abs() * rstd) * (2 + normal * normal)]
    return [*found, count * largest * normal, count * largest, largest]


def check(given):
    """The kernels within the error budget; returns what they gave."""
    exact = results(by_layers, *given, dtype=torch.float64)
    plain, got = results(by_layers, *given), results(by("triton"), *given)
    cut_off = 2.0**-7 if runtime.INTERPRETED and given[0].dtype == torch.bfloat16 else 0.0
    for index, (a, b, c, scale) in enumerate(zip(got, plain, exact, scales(*given))):
        assert a.dtype == b.dtype and a.shape == c.shape and a.isfinite().all()
        wide = scale[None, :, None, None] if c.ndim == 4 else scale
        floor = (ULPS + (cut_off if c.ndim == 4 else 0)) * wide
        assert ((a - c).abs() <= 2 * (b - c).abs().max() + floor).all(), (
            index,
            (a - c).abs().max(),
            (b - c).abs().max(),
        )
    return got


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_within_the_error_budget(shape, dtype, add):
    got = check(example(shape, dtype, add))
    assert got[0].is_contiguous(memory_format=NHWC) and got[3].is_contiguous(memory_format=NHWC)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_equals_the_layers(shape, add):
    given = example(shape, torch.float64, add)
    given[1:3] = [t.double() for t in given[1:3]]
    for got, want in zip(results(by("reference"), *given), results(by_layers, *given)):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reference_is_no_worse_than_the_layers(dtype, add):
    given = example((2, 48, 17, 19), dtype, add)
    exact = results(by_layers, *given, dtype=torch.float64)
    plain, got = results(by_layers, *given), results(by("reference"), *given)
    for a, b, c, scale in zip(got, plain, exact, scales(*given)):
        assert ((a - c).abs().max() <= 2 * (b - c).abs().max() + ULPS * scale.max()).all()
    up = norm_relu_reference(*given[:4], EPS, upcast=True)
    assert all(t.dtype == torch.float64 for t in up) and (up[0] - exact[0]).abs().max() < 1e-12


@pytest.mark.parametrize("add", [False, True])
def test_gradcheck_of_the_reference(add):
    y, weight, bias, residual, _ = example((2, 3, 3, 2), torch.float64, add, seed=1)
    weight[-1] = 0.5  # at 0 a whole channel sits at one value
    given = [t.double().requires_grad_() for t in (y, weight, bias, *([residual] if add else []))]
    assert torch.autograd.gradcheck(
        lambda y, weight, bias, residual=None: by("reference")(y, weight, bias, residual)[0], given
    )


# --- edges ---


def test_the_worked_examples():
    y = torch.tensor([1.0, 3.0, 5.0, 7.0], device=DEVICE).view(1, 1, 2, 2)
    given = [y, torch.full((1,), 2.0, device=DEVICE), torch.ones(1, device=DEVICE), None, torch.ones_like(y)]
    for implementation in ("reference", "triton"):
        call = lambda *tensors: norm_relu(*tensors, eps=1e-12, implementation=implementation)  # noqa: B023, E731
        z, mean, var, dy, dweight, dbias = results(call, *given)
        assert mean.item() == 4 and var.item() == 5 and dbias.item() == 3
        torch.testing.assert_close(z.flatten().tolist(), [0.0, 0.1056, 1.8944, 3.6833], rtol=0, atol=1e-4)
        torch.testing.assert_close(dy.flatten().tolist(), [-0.2683, 0.3578, 0.0894, -0.1789], rtol=0, atol=1e-4)
        torch.testing.assert_close(dweight.item(), 1.3416, rtol=0, atol=1e-4)


def test_a_constant_channel_and_a_channel_without_gradient():
    given = example((2, 3, 13, 11), add=True)
    given[0][:, 0] = 7.25
    given[3][:, 1] = -100.0  # ReLU lets nothing through
    z, _, var, dy, dweight, dbias, dresidual = check(given)
    assert var[0] == 0 and not z[:, 1].any() and not dresidual[:, 1].any() and not dy[:, 1].any()
    assert dweight[1] == 0 and dbias[1] == 0


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter's numpy, as it should
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_a_value_that_is_not_finite_stays_in_its_channel(implementation, add, value):
    clean, bad = example((2, 3, 13, 11), torch.bfloat16, add), example((2, 3, 13, 11), torch.bfloat16, add)
    bad[0][1, 1, 5, 5] = value
    got, want = (results(by(implementation), *given) for given in (bad, clean))
    layers = results(by_layers, *bad)
    for index, (a, b) in enumerate(zip(got, want)):
        a, b = (t.movedim(1, 0) if t.ndim == 4 else t for t in (a, b))
        assert torch.equal(a[[0, 2]], b[[0, 2]]), index
        if index < 5 and index != 1:  # dbias and dresidual hold the incoming gradient
            assert (
                a[1].isnan().all() and (layers[index].movedim(1, 0) if a.ndim == 4 else layers[index])[1].isnan().all()
            )
    assert not got[1][1].isfinite()


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_a_variance_beyond_float32(implementation):
    y, weight, bias, *_ = example((2, 3, 5, 7))
    y[:, 1] *= 1e30
    z, mean, var = norm_relu(y, weight, bias, eps=EPS, implementation=implementation)
    assert var[1] == math.inf and mean[1].isfinite() and (z[:, 1] == bias[1].relu()).all() and z.isfinite().all()


# --- statistics ---


def relative_error(y, var):
    exact = y.double().var((0, 2, 3), correction=0)
    return ((var - exact).abs() / exact).max().item()


def made_to_be_hard(shape):
    """A spread of 0.01 around 1000; then the same with the first tile far away, which makes the shift a bad one."""
    y = (1000 + 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).contiguous(memory_format=NHWC)
    yield y
    far = y.clone(memory_format=NHWC)
    far.permute(0, 2, 3, 1).reshape(-1, shape[1])[: rows.lay_out(y, 3).tile_rows] += 0.5
    yield far


def test_the_variance_keeps_its_bound(monkeypatch):
    monkeypatch.setattr(runtime, "num_programs", lambda device, per_sm, most: 1)
    for y in made_to_be_hard((2, 8, 96, 96)):
        y = y.to(DEVICE)
        tiles = rows.lay_out(y, 3).tiles
        _, var = moments(y)
        bound = 3 * (1 + tiles) * (rows.LOADS + tiles + 12) * 2.0**-24
        assert tiles >= 18 and relative_error(y, var) <= bound
        naive = y.square().mean((0, 2, 3)) - y.mean((0, 2, 3)).square()
        assert relative_error(y, naive) > 100 * bound


def test_typical_values_have_a_far_smaller_error():
    for seed in range(3):
        y = example((2, 48, 40, 40), seed=seed)[0]
        assert relative_error(y, moments(y)[1]) < 2e-6


@pytest.mark.parametrize("add", [False, True])
def test_any_number_of_programs_and_no_chance(add, monkeypatch):
    given = example((2, 48, 17, 19), torch.float32, add)  # six tiles
    want = results(by("triton"), *given)
    for programs in (1, 3, 5):
        monkeypatch.setattr(runtime, "num_programs", lambda device, per_sm, most, n=programs: min(n, most))
        got, again = results(by("triton"), *given), results(by("triton"), *given)
        assert all(torch.equal(a, b) for a, b in zip(got, again))
        for a, b, scale in zip(got, want, scales(*given)):
            assert ((a - b).abs() <= ULPS * (scale[None, :, None, None] if a.ndim == 4 else scale)).all()


@pytest.mark.parametrize("channels", [1, 3, 44, 48, 64, 88, 130, 176, 256, 352, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_cover_every_row_and_channel(channels, dtype):
    y = torch.empty((3, channels, 7, 11), dtype=dtype, device=DEVICE)
    laid = rows.lay_out(y, 3)
    assert laid.tiles * laid.tile_rows >= laid.rows > (laid.tiles - 1) * laid.tile_rows
    assert laid.grid[1] * laid.block >= channels and 1 <= laid.programs <= laid.tiles
    assert laid.group >= 1 and laid.tile_rows == laid.group * rows.LOADS
    each = laid.block * laid.tile_rows // (32 * rows.WARPS * rows.LOADS)  # neighbouring channels of a lane
    assert each == math.gcd(channels, 16 // y.itemsize) and laid.block & (laid.block - 1) == 0


# --- layouts, gradients that come in ---


def test_layouts_change_no_bit():
    y, weight, bias, residual, dz = example((2, 24, 7, 13), torch.bfloat16, add=True)
    want = results(by("triton"), y, weight, bias, residual, dz)
    wide = torch.cat((y, y), 1).contiguous(memory_format=NHWC)
    for other, added in (
        (y.contiguous(), residual.contiguous()),
        (wide[:, :24], residual),
        (y, residual.mT.contiguous().mT),
    ):
        got = results(by("triton"), other, weight, bias, added, dz.contiguous())
        assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("add", [False, True])
def test_expanded_and_unused_gradients(implementation, add):
    y, weight, bias, residual, dz = example((2, 5, 7, 13), torch.float32, add)
    given = [t.requires_grad_() for t in (y, weight, bias, residual) if t is not None]
    run = lambda: norm_relu(y, weight, bias, residual, eps=EPS, implementation=implementation)  # noqa: E731
    got = torch.autograd.grad(run()[0].sum(), given)  # a gradient of stride 0
    assert all(torch.equal(a, b) for a, b in zip(got, torch.autograd.grad(run()[0], given, torch.ones_like(dz))))
    z, mean, var = run()
    assert z.requires_grad and not mean.requires_grad and not var.requires_grad
    (alone,) = torch.autograd.grad(run()[0], [weight], dz)  # the rest is not asked for
    assert torch.equal(alone, torch.autograd.grad(z, given, dz)[1])


def test_what_is_kept_for_the_gradient():
    y, weight, bias, residual, _ = example((2, 5, 7, 13), add=True)
    for added, maps in ((None, 1), (residual, 2)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            norm_relu(y.detach().requires_grad_(), weight, bias, added, eps=EPS, implementation="triton")
        assert sum(t.ndim == 4 for t in kept) == maps and len(kept) == maps + 4


# --- refusals, dispatch, compilers, waiting ---


def test_what_is_refused():
    y, weight, bias, residual, _ = example((2, 3, 5, 7), add=True)
    one = torch.zeros((1, 3, 1, 1), device=DEVICE)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as ours:
        norm_relu(one, weight, bias, eps=EPS)
    with pytest.raises(ValueError) as theirs:
        F.batch_norm(one, None, None, weight, bias, training=True)
    assert str(ours.value).removeprefix("norm_relu: ") == str(theirs.value)
    for words, given in (
        ("y must be", (y[0], weight, bias)),
        ("y must be", (y[:0], weight, bias)),
        ("y must be", (y.int(), weight, bias)),
        ("weight must be", (y, weight[:2], bias)),
        ("bias must be", (y, weight, bias.double())),
        ("weight must be", (y.double(), weight, bias)),
        ("residual must be", (y, weight, bias, residual[:1])),
        ("residual must be", (y, weight, bias, residual.half())),
    ):
        with pytest.raises(ValueError, match=words):
            norm_relu(*given, eps=EPS)
    with pytest.raises(ValueError, match="eps > 0"):
        norm_relu(y, weight, bias, eps=0.0)
    with pytest.raises(ValueError, match="float64"):
        norm_relu(y.double(), weight.double(), bias.double(), eps=EPS, implementation="triton")


def test_auto_takes_the_kernels_on_a_gpu_only(monkeypatch):
    seen = []
    monkeypatch.setattr(op, "forward", lambda *args: seen.append(1) or forward(*args))
    y, weight, bias, *_ = example((2, 3, 5, 7))
    norm_relu(y, weight, bias, eps=EPS)
    assert len(seen) == (DEVICE == "cuda")
    norm_relu(y, weight, bias, eps=EPS, implementation="reference")
    assert len(seen) == (DEVICE == "cuda")
    norm_relu(y, weight, bias, eps=EPS, implementation="triton")
    assert len(seen) == 1 + (DEVICE == "cuda")


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (3, 1, 4, 1)])
def test_operators_pass_opcheck(shape, triton):
    y, weight, bias, residual, dz = example(shape, torch.bfloat16, add=True)
    for added in (None, residual):
        given = [None if t is None else t.clone().requires_grad_() for t in (y, weight, bias, added)]
        torch.library.opcheck(op._norm_op, (*given, EPS, triton))
    z, mean, var = op._norm_op(y, weight, bias, residual, EPS, triton)
    vectors = (weight, bias, mean, var, EPS, triton)
    torch.library.opcheck(op._gradient_op, (dz.contiguous(), y.contiguous(), *vectors))
    torch.library.opcheck(op._add_gradient_op, (dz.contiguous(), y, z, *vectors))


@pytest.mark.parametrize("triton", [False, True])
def test_a_gradient_in_two_parts(triton):
    """As one map that is their sum, rounded once less."""
    y, weight, bias, residual, dz = example((2, 24, 13, 11), torch.float32, add=True)
    more = dz.flip(0) * 0.5
    z, mean, var = op._norm_op(y, weight, bias, residual, EPS, triton)
    rest = (y, z, weight, bias, mean, var, EPS, triton)
    got, want = op._add_gradient_op(dz, *rest, more), op._add_gradient_op(dz + more, *rest)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    got = op._add_gradient_op(dz, *rest, more[:1].expand_as(dz))  # any strides
    assert all(torch.equal(a, b) for a, b in zip(got, op._add_gradient_op(dz + more[:1], *rest)))
    torch.library.opcheck(op._add_gradient_op, (dz, *rest, more))


class Blocks(torch.nn.Module):
    """Four residual norms in a chain, each of whose outputs but the last is read twice; the last also by a sine."""

    def __init__(self, implementation):
        super().__init__()
        self.implementation = implementation
        self.weights = torch.nn.Parameter(torch.linspace(0.5, 1.5, 4 * 5, device=DEVICE).view(4, 5))

    def forward(self, x):
        for weight in self.weights:
            x, _, _ = norm_relu(x * 2, weight, weight - 1, x, eps=EPS, implementation=self.implementation)
        return x + x.sin()


def test_sums_of_two_gradients_are_folded_into_their_reader():
    """In the graph that Inductor gets, by a backend of the same kind; results as before but for rounding."""
    x = example((2, 5, 7, 13))[0]
    model, counts = Blocks("triton"), []

    def run(change):
        def compiler(graph, inputs):
            counts.append(change(graph.graph))
            graph.recompile()
            return make_boxed_func(graph.forward)

        torch._dynamo.reset()
        call = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=compiler, bw_compiler=compiler))
        given = x.clone().requires_grad_()
        return torch.autograd.grad(call(given).square().sum(), [given, model.weights])

    plain, folded = run(lambda graph: 0), run(fold_sums)
    assert counts == [0, 0, 0, 4]
    for a, b in zip(folded, plain):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_what_is_not_folded():
    graph = torch.fx.Graph()
    a, b, other = (graph.placeholder(name) for name in "abc")
    a.meta["val"] = b.meta["val"] = torch.empty(2, 3, 4, 4, device="meta")
    other.meta["val"] = torch.empty(4, 4, device="meta")

    def gradient(first, second, factors=None, readers=1):
        total = graph.call_function(torch.ops.aten.add.Tensor, (first, second), factors)
        total.meta["val"] = a.meta["val"]
        target = torch.ops.dbnet_engine.norm_add_relu_gradient.default
        return [
            graph.call_function(target, (total, a, a, other, other, other, other, EPS, True)) for _ in range(readers)
        ]

    stay = [*gradient(a, other), *gradient(a, 1.0), *gradient(a, b, {"alpha": 2}), *gradient(a, b, readers=2)]
    (goes,) = gradient(a, b)
    assert fold_sums(graph) == 1 and goes.args[0] is a and goes.kwargs == {"more": b}
    assert all(node.kwargs == {} for node in stay) and fold_sums(graph) == 0


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_compiles_without_a_graph_break(implementation):
    y, weight, bias, residual, dz = example((2, 5, 7, 13), torch.float32, add=True)

    def step(y, weight, bias, residual):
        z, mean, var = norm_relu(y * 2, weight, bias, eps=EPS, implementation=implementation)
        out, more, _ = norm_relu(z + 1, weight, bias, residual, eps=EPS, implementation=implementation)
        return out * 3, mean + more, var

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = (results(call, y, weight, bias, residual, dz) for call in (compiled, step))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("add", [False, True])
def test_nothing_waits_and_little_is_allocated(add, monkeypatch):
    launched = []
    monkeypatch.setattr(runtime, "launch", lambda kernel, grid, *args, **constants: launched.append(grid))
    y, weight, bias, residual, dz = example((2, 48, 33, 31), torch.bfloat16, add)
    with no_sync():
        z, mean, var = forward(y, weight, bias, residual, EPS)
        backward(dz, y, z if add else None, weight, bias, mean, var, EPS)
        reference = results(by("reference"), y, weight, bias, residual, dz)
    assert len(launched) == 6 and len(reference) == 6 + add
