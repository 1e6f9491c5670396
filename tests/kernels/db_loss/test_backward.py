import torch
from loss_examples import by_kernels, example

from kernels.db_loss import db_loss, op
from tests.conftest import DEVICE


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


def test_nothing_of_full_size_is_kept():
    x, y, targets = example()
    wide, kept = torch.stack((x, y), 1).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        got = db_loss(wide[:, 0], wide[:, 1], targets, implementation="triton")
    assert got.total.requires_grad and not any(part.requires_grad for part in got[1:])
    given = {tensor.untyped_storage().data_ptr() for tensor in (wide, *targets)}
    assert len(kept) == 7
    assert all(tensor.untyped_storage().data_ptr() in given or tensor.numel() < 10 for tensor in kept)
