import pytest
import torch
from norm_examples import DTYPES, EPS, SHAPES, ULPS, by, by_layers, example, results, scales

from kernels.norm_relu import norm_relu_reference


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
    up = norm_relu_reference(*(None if t is None else t.double() for t in given[:4]), EPS)
    assert all(t.dtype == torch.float64 for t in up) and (up[0] - exact[0]).abs().max() < 1e-12


@pytest.mark.parametrize("add", [False, True])
def test_gradcheck_of_the_reference(add):
    y, weight, bias, residual, _ = example((2, 3, 3, 2), torch.float64, add, seed=1)
    weight[-1] = 0.5  # at 0 a whole channel sits at one value
    given = [t.double().requires_grad_() for t in (y, weight, bias, *([residual] if add else []))]
    assert torch.autograd.gradcheck(
        lambda y, weight, bias, residual=None: by("reference")(y, weight, bias, residual)[0], given
    )
