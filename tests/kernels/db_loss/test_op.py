import pytest
import torch
from loss_examples import by_kernels, example

from kernels.db_loss import binary_map, db_loss, op
from kernels.db_loss import forward as forward_module
from tests.conftest import DEVICE


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
    with pytest.raises(ValueError, match="needs one of"):
        function(x, y, implementation="triton")
