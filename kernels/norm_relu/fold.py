"""The sum of two gradients as part of the operator that reads it, in graphs that torch.compile makes.

The output of a residual block is read twice, by the next block's convolution and by its shortcut, so its gradient is a
sum of two maps. Autograd makes it before norm_add_relu's gradient is asked for: 4 bytes read and 2 written an element
(bfloat16), and 2 read again. Given both maps the operator reads 4 instead of those 8. In eager mode the sum stays.

    s = a + b;  dy, dresidual, ... = norm_add_relu_gradient(s, ...)  ->  norm_add_relu_gradient(a, ..., more=b)

Example: in a chain of four blocks three outputs have two gradients, and the last one has what the loss gives: three
sums of 6 bytes go, and the three operators read 2 bytes more each.
"""

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node


class FoldSums(CustomGraphPass):
    """`fold_sums` as Inductor takes it (`post_grad_custom_pre_pass`); this file's text is its version in the cache."""

    def __call__(self, graph: Graph) -> None:
        """Changes the graph in place."""
        fold_sums(graph)

    def uuid(self) -> bytes:
        """Differs where the pass may differ."""
        return get_hash_for_files((__file__,))


def fold_sums(graph: Graph) -> int:
    """Folds, in place, every sum of two maps that a norm_add_relu_gradient alone reads; returns how many.

    For graphs after autograd, of ATen operators. Sums of other shapes, dtypes or factors, and those with another
    reader, stay.
    """
    folded = 0
    for node in graph.find_nodes(op="call_function", target=torch.ops.dbnet_engine.norm_add_relu_gradient.default):
        total = node.args[0]
        if "more" not in node.kwargs and len(node.args) == 9 and _is_sum(total) and len(total.users) == 1:
            first, second = total.args
            node.args = (first, *node.args[1:])
            node.kwargs = {**node.kwargs, "more": second}
            graph.erase_node(total)
            folded += 1
    return folded


def _is_sum(total: Any) -> bool:
    """Whether this is a + b of two maps that are like the sum."""
    if not isinstance(total, Node) or total.target != torch.ops.aten.add.Tensor or total.kwargs:
        return False
    values = [part.meta.get("val") for part in (total, *total.args) if isinstance(part, Node)]
    kinds = [(value.shape, value.dtype) for value in values if isinstance(value, torch.Tensor)]
    return len(kinds) == 3 and kinds[0] == kinds[1] == kinds[2]
