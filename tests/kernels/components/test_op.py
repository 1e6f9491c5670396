import numpy as np
import pytest
import torch
from component_masks import RULES, maps_of

from kernels import runtime
from kernels.components import find_quads, label, op
from kernels.components.tabulate import build_table
from tests.conftest import DEVICE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_find_quads_takes_the_kernels_for_any_layout_and_dtype(dtype):
    masks = np.zeros((2, 26, 50), bool)
    masks[0, 4:15, 5:41] = masks[1, 9:20, 12:30] = True
    prob = maps_of(masks).to(dtype).to(DEVICE)
    strided = prob.transpose(1, 2).contiguous().transpose(1, 2)
    expected = find_quads(prob, implementation="reference")
    assert expected.counts.tolist() == [1, 1]
    for maps in (prob, strided):
        found = find_quads(maps, implementation="triton")
        torch.testing.assert_close(found.quads, expected.quads, atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)
        assert torch.equal(found.counts, expected.counts)


@pytest.mark.skipif(DEVICE != "cpu", reason="what 'auto' takes on a CPU")
def test_auto_on_a_cpu_is_the_reference(monkeypatch):
    monkeypatch.setattr(op, "build_table", None)
    monkeypatch.setattr(op, "label_triton", None)
    assert find_quads(torch.zeros(1, 8, 8)).counts.tolist() == [0]
    assert not label(torch.zeros(1, 8, 8, dtype=torch.bool)).any()


def test_pages_too_large_for_32_bit_positions_are_named(monkeypatch):
    monkeypatch.setattr(runtime, "launch", lambda *args, **constants: None)
    build_table(torch.empty(1, 65535, 32768, device="meta"), RULES)
    for shape in ((1, 65536, 32768), (1 << 20, 1 << 11, 1)):
        with pytest.raises(ValueError, match="pixels a page or rows in all"):
            build_table(torch.empty(shape, device="meta"), RULES)
        with pytest.raises(ValueError, match="pixels a page or rows in all"):
            label(torch.empty(shape, dtype=torch.bool, device="meta"), implementation="triton")
