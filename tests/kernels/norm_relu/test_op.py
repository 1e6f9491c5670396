import math

import pytest
import torch
import torch.nn.functional as F
from no_sync import no_sync
from norm_examples import DTYPES, EPS, NHWC, SHAPES, ULPS, by, by_layers, example, results, scales

from kernels import runtime
from kernels.norm_relu import norm_relu, op
from kernels.norm_relu.backward import backward
from kernels.norm_relu.forward import forward
from tests.conftest import DEVICE


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
