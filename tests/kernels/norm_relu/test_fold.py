import torch
from norm_examples import EPS, example
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from kernels.norm_relu import norm_relu
from kernels.norm_relu.fold import fold_sums
from tests.conftest import DEVICE


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
