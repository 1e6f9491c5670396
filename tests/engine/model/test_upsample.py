"""Nearest upsampling whose gradient is a sum."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.model.upsample import Repeat, repeat, sum_gradients

NHWC = torch.channels_last


@pytest.mark.parametrize("factor", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, NHWC])
def test_values_gradients_and_layout_are_torchs(factor, layout):
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    results = repeat(x, factor), F.interpolate(x, scale_factor=factor, mode="nearest")
    assert torch.equal(*results) and results[0].is_contiguous(memory_format=layout)
    gradient = torch.randn(results[0].shape, dtype=torch.float64).to(memory_format=layout)
    got, want = (torch.autograd.grad(y, x, gradient)[0] for y in results)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
    assert got.is_contiguous(memory_format=layout)


def test_upsamplings_by_whole_factors_are_replaced_and_no_others():
    kinds = [{"scale_factor": 2}, {"scale_factor": 4.0}, {"scale_factor": 1.5}, {"size": (6, 8)}]
    model = nn.Sequential(*(nn.Upsample(**kind) for kind in kinds), nn.Upsample(scale_factor=2, mode="bilinear"))
    sum_gradients(model)
    assert [type(layer) for layer in model] == [Repeat, Repeat, nn.Upsample, nn.Upsample, nn.Upsample]
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(model[1](x), F.interpolate(x, scale_factor=4))


def test_exported_and_without_gradients_it_is_an_operator_of_torch():
    exported = torch.export.export(Repeat(scale_factor=2).eval(), (torch.randn(1, 3, 2, 2),))
    assert "upsample_nearest2d" in str(exported.graph)
    with torch.no_grad():
        assert repeat(torch.randn(1, 3, 2, 2), 2).shape == (1, 3, 4, 4)


def test_compiled_it_has_the_same_gradients_and_no_scatter():
    from torch._inductor.utils import run_and_get_code

    x = torch.randn(2, 4, 4, 6).to(memory_format=NHWC).requires_grad_()
    wanted = torch.autograd.grad(repeat(x, 8).square().sum(), x)[0]

    def step():
        y = torch.compile(lambda x: repeat(x, 8).square().sum())(x)
        return torch.autograd.grad(y, x)[0]

    got, code = run_and_get_code(step)
    torch.testing.assert_close(got, wanted)
    assert not [text for text in code if "index_put" in text or "atomic_add" in text]
