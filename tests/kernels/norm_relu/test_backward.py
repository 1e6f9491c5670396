import pytest
import torch
from norm_examples import EPS, example

from kernels.norm_relu import norm_relu, op


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
