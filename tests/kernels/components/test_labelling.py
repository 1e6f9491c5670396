"""kernels.components on the device: labels and tables against the reference and scipy, for any shape of text."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage
import torch
from component_masks import RULES, SHAPES, adversarial_masks, maps_of
from no_sync import HostSync, no_sync

from kernels import runtime
from kernels.components import label, label_reference, reference
from kernels.components.table import Table
from kernels.components.tabulate import build_table
from tests.conftest import DEVICE

needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_of_adversarial_masks(shape, connectivity):
    masks = adversarial_masks(*shape)
    found = label(torch.from_numpy(masks).to(DEVICE), connectivity, implementation="triton").cpu()
    assert found.dtype == torch.int32
    assert torch.equal(found, label_reference(torch.from_numpy(masks), connectivity))
    for mask, numbers in zip(masks, found.numpy(), strict=True):
        np.testing.assert_array_equal(
            numbers, scipy.ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)[0]
        )


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    hypothesis.extra.numpy.arrays(bool, st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 20))),
    st.sampled_from([4, 8]),
)
def test_labels_of_any_small_mask(masks, connectivity):
    found = label(torch.from_numpy(masks).to(DEVICE), connectivity, implementation="triton").cpu().numpy()
    np.testing.assert_array_equal(found, label_reference(torch.from_numpy(masks), connectivity).numpy())
    expected = scipy.ndimage.label(masks[0], np.ones((3, 3)) if connectivity == 8 else None)[0]
    np.testing.assert_array_equal(found[0], expected)


def test_labels_of_strided_masks_and_of_no_pages():
    masks = torch.from_numpy(adversarial_masks(9, 17)).to(DEVICE)
    expected = label(masks, 4, implementation="reference")
    for strided in (
        masks.transpose(1, 2).contiguous().transpose(1, 2),
        masks.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    ):
        assert not strided.is_contiguous()
        assert torch.equal(label(strided, 4, implementation="triton"), expected)
    assert label(masks[:0], implementation="triton").shape == (0, 9, 17)
    assert build_table(torch.empty(0, 9, 17, device=DEVICE), RULES).counts.shape == (0,)


@pytest.mark.parametrize("width", [8, 13, 16])
def test_nothing_touches_across_rows_or_pages(width):
    masks = torch.zeros(3, 4, width, dtype=torch.bool)
    masks[:, 0], masks[:, 3] = True, True
    masks[1] = False
    masks[1, 0, -1] = masks[1, 1, 0] = masks[1, 2, -1] = masks[1, 3, 0] = True
    found = label(masks.to(DEVICE), implementation="triton").cpu()
    assert found.amax((1, 2)).tolist() == [2, 4, 2]
    assert torch.equal(found, label_reference(masks, 8))


def test_the_host_waits_for_nothing(monkeypatch):
    started = []
    monkeypatch.setattr(runtime, "launch", lambda kernel, *args, **constants: started.append(kernel))
    # Tensors without data: reading any value, or copying them to the host, is an error by itself.
    for device in ("meta", DEVICE):
        started.clear()
        with no_sync():
            build_table(torch.empty(2, 20, 30, dtype=torch.bfloat16, device=device), RULES)
            assert len(started) == 8
            build_table(torch.empty(2, 20, 30, device=device), RULES._replace(score_mode="fast"))
            assert len(started) == 8 + 7
            label(torch.empty(2, 30, 20, dtype=torch.bool, device=device).transpose(1, 2), implementation="triton")
            assert len(started) == 8 + 7 + 7
    with no_sync(), pytest.raises(HostSync):
        label_reference(torch.ones(1, 3, 3, dtype=torch.bool), 8)


def used_part(table: Table) -> list[torch.Tensor]:
    """The defined entries of a table."""
    places = torch.arange(table.top.shape[1], device=table.top.device) < table.counts[:, None]
    rows = torch.where(places, table.height, 0).sum(1, keepdim=True)
    entries = torch.arange(table.left_gap.shape[1], device=rows.device) < rows
    fields = [field[places] for field in (table.top, table.height, table.area, table.mass, table.begin)]
    return [table.counts, table.overflow, *fields, table.left_gap[entries], table.right_end[entries]]


@needs_gpu
@pytest.mark.parametrize("connectivity", [4, 8])
def test_races_change_nothing(connectivity):
    masks = torch.from_numpy(adversarial_masks(1280, 1280))
    expected = label_reference(masks, connectivity).to(DEVICE)
    rules = RULES._replace(connectivity=connectivity)
    components, overflow = reference._components(
        maps_of(masks.numpy()), rules.bin_thresh, rules.min_size_px, connectivity
    )
    prob, masks = maps_of(masks.numpy()).to(DEVICE), masks.to(DEVICE)
    first = used_part(build_table(prob, rules))
    assert first[1].tolist() == overflow.int().tolist()
    assert first[2].tolist() == (components.spans.top % 1281).tolist()
    assert first[3].tolist() == components.spans.height.tolist() and first[4].tolist() == components.area.tolist()
    for _ in range(100):
        assert torch.equal(label(masks, connectivity, implementation="triton"), expected)
        for again, before in zip(used_part(build_table(prob, rules)), first, strict=True):
            assert torch.equal(again, before)


@needs_gpu
def test_batches_of_more_than_2_to_the_31_pixels():
    pages = 1 + 2**31 // 1280**2
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("needs 60 GB: 4.3 GB of bfloat16 maps and 20 bytes a pixel for runs and tables")
    masks = torch.from_numpy(adversarial_masks(1280, 1280)[[1, 11]])
    prob = torch.zeros(pages, 1280, 1280, dtype=torch.bfloat16, device=DEVICE)
    prob[0], prob[-1] = maps_of(masks.numpy()).to(DEVICE, torch.bfloat16)
    table = build_table(prob, RULES)
    ends = Table(*(field[[0, -1]] for field in table))
    alone = build_table(prob[[0, -1]].contiguous(), RULES)
    for found, expected in zip(used_part(ends), used_part(alone), strict=True):
        assert torch.equal(found, expected)
    assert not table.counts[1:-1].any()
    del table, ends
    text = prob > 0.3
    del prob
    found = label(text, 8, implementation="triton")
    assert torch.equal(found[[0, -1]].cpu(), label_reference(text[[0, -1]].cpu(), 8)) and not found[1:-1].any()
