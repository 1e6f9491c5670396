"""kernels.components on the device: labels and tables against the reference and scipy, for any shape of text."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage
import torch
from no_sync import HostSync, no_sync

from kernels import runtime
from kernels.components import QuadRules, find_quads, label, label_reference, op, reference
from kernels.components.table import Table
from kernels.components.tabulate import build_table
from tests.conftest import DEVICE
from tests.kernels.components.test_reference import awkward_masks

needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
RULES = QuadRules(0.3, 0.4, 1.5, 3.0, 5.0, 500, 8, "slow")
SHAPES = [(1, 1), (7, 13), (24, 33), (40, 65)]


def adversarial_masks(height: int, width: int) -> np.ndarray:
    """(13, height, width) bool: `awkward_masks`, noise, and single pixels."""
    rng = np.random.default_rng(height * width)
    noise = [rng.random((height, width)) < share for share in (0.35, 0.5)]
    y, x = np.mgrid[:height, :width]
    return np.concatenate([awkward_masks(height, width), np.stack([*noise, (x % 2 == 0) & (y % 2 == 0)])])


def maps_of(masks: np.ndarray, seed: int = 0) -> torch.Tensor:
    """Float32 probabilities above 0.3 exactly where the masks are true."""
    rng = np.random.default_rng(seed)
    prob = np.where(masks, rng.uniform(0.31, 1.0, masks.shape), rng.uniform(0.0, 0.3, masks.shape))
    return torch.from_numpy(prob.astype(np.float32))


def expected_page(labels: np.ndarray, steps: np.ndarray, least: float) -> list[tuple]:
    """(top, height, area, mass, left gaps, right ends) of every component that fits, pixel by pixel."""
    rows = []
    for number in range(1, labels.max() + 1):
        y, x = np.nonzero(labels == number)
        if np.float32((y.max() - y.min()) * (x.max() - x.min())) < np.float32(least):
            continue
        lines = [x[y == line] for line in range(y.min(), y.max() + 1)]
        gaps, ends = [labels.shape[1] - min(line) for line in lines], [max(line) + 1 for line in lines]
        rows.append((y.min(), len(lines), len(y), steps[y, x].sum(), gaps, ends))
    return rows


def page_of(table: Table, page: int) -> list[tuple]:
    """The same of a table, which must be packed without gaps."""
    rows, begin = [], 0
    for k in range(table.counts[page]):
        top, height, area, mass = (int(field[page, k]) for field in (table.top, table.height, table.area, table.mass))
        assert table.begin[page, k] == begin
        inside = slice(begin, begin + height)
        rows.append(
            (top, height, area, mass, table.left_gap[page, inside].tolist(), table.right_end[page, inside].tolist())
        )
        begin += height
    return rows


def check_table(prob: torch.Tensor, rules: QuadRules, places: int = reference.MAX_COMPONENTS) -> Table:
    """Compares the device's table with pixels labelled by the reference, and these with the reference's components."""
    table = Table(*(field.cpu() for field in build_table(prob.to(DEVICE), rules, places)))
    value = prob if prob.dtype == torch.float64 else prob.float()
    found, overflow = reference._components(value, rules.bin_thresh, rules.min_size_px, rules.connectivity)
    labels = label_reference(value > rules.bin_thresh, rules.connectivity).numpy()
    steps = (value.nan_to_num(0.0).clamp(0.0, 1.0) * reference.FIXED_POINT).int().numpy().astype(np.int64)
    for page in range(len(prob)):
        expected = expected_page(labels[page], steps[page], max(rules.min_size_px - 1, 0) ** 2)
        assert page_of(table, page) == expected[:places]
        own = found.page == page
        top = found.spans.top[own] - page * (prob.shape[1] + 1)
        assert [row[0] for row in expected[:places]] == top.tolist()
        assert [row[1] for row in expected[:places]] == found.spans.height[own].tolist()
        assert [row[2] for row in expected[:places]] == found.area[own].tolist()
    assert table.overflow.tolist() == overflow.int().tolist()
    return table


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


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_tables_of_adversarial_masks(shape, connectivity):
    check_table(maps_of(adversarial_masks(*shape)), RULES._replace(connectivity=connectivity))


@pytest.mark.parametrize("min_size_px", [0.0, 1.0, 2.0, 4.3, 1e6])
def test_components_that_may_be_large_enough_stay(min_size_px):
    check_table(maps_of(adversarial_masks(13, 22)[-3:]), RULES._replace(min_size_px=min_size_px))


@pytest.mark.parametrize("programs", [1, 3])
def test_any_number_of_programs_makes_the_same_table(programs, monkeypatch):
    prob = maps_of(adversarial_masks(30, 65)[[0, 4, 11]], seed=1)
    monkeypatch.setattr(runtime, "INTERPRETED_PROGRAMS", programs)
    check_table(prob, RULES)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # 1e300 becomes infinity in float32, as in torch
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_at_the_threshold_nan_and_infinity(dtype):
    inf, nan = float("inf"), float("nan")
    at = torch.tensor([0.3], dtype=dtype)
    near = [at, torch.nextafter(at, torch.ones_like(at)), torch.nextafter(at, torch.zeros_like(at))]
    values = torch.cat([*near, torch.tensor([nan, inf, -inf, -1.0, 0.0, 2.0, 1.0, 1e-7], dtype=dtype)])
    prob = torch.zeros(2, 1, 2 * len(values), dtype=dtype)
    prob[0, 0, ::2] = values  # every second pixel: each is a component of its own
    for thresh in (0.3, 0.0, 1.0, 1e-50, 1e300):
        table = check_table(prob, RULES._replace(bin_thresh=thresh, min_size_px=0.0))
        columns = prob.shape[2] - table.left_gap[0, : table.counts[0]]
        rounded = torch.tensor(thresh, dtype=torch.float64 if dtype == torch.float64 else torch.float32).item()
        assert columns.tolist() == [2 * k for k, value in enumerate(values.tolist()) if value > rounded]
        assert table.counts[1] == 0
    table = check_table(prob, RULES._replace(min_size_px=0.0))
    found = table.mass[0, : table.counts[0]][-3:].tolist()
    assert found == [reference.FIXED_POINT] * 3, "infinity, 2 and 1 count as 1"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_of_other_dtypes(dtype):
    masks = adversarial_masks(19, 48)[[1, 10, 12]]  # 48: the widths that are read 16 bytes at once
    check_table(maps_of(masks).to(dtype), RULES._replace(min_size_px=0.0))


def test_more_components_than_places(monkeypatch):
    masks = np.zeros((4, 21, 80), bool)
    masks[0, ::2, ::2] = True  # 440 components; interpreted, a chunk of runs is 256
    masks[1, 3, :12:2] = True  # one more than there are places
    masks[2, 3, :10:2] = True  # as many as there are places
    for places in (5, 256, 300):
        monkeypatch.setattr(reference, "MAX_COMPONENTS", places)
        table = check_table(maps_of(masks), RULES._replace(min_size_px=0.0), places)
        assert table.overflow.tolist() == [1, int(places == 5), 0, 0]
        assert table.counts.tolist() == [places, min(places, 6), 5, 0]


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


def test_pages_too_large_for_32_bit_positions_are_named(monkeypatch):
    monkeypatch.setattr(runtime, "launch", lambda *args, **constants: None)
    build_table(torch.empty(1, 65535, 32768, device="meta"), RULES)
    for shape in ((1, 65536, 32768), (1 << 20, 1 << 11, 1)):
        with pytest.raises(ValueError, match="pixels a page or rows in all"):
            build_table(torch.empty(shape, device="meta"), RULES)
        with pytest.raises(ValueError, match="pixels a page or rows in all"):
            label(torch.empty(shape, dtype=torch.bool, device="meta"), implementation="triton")


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
