import numpy as np
import pytest
import torch
from component_masks import RULES, SHAPES, adversarial_masks, maps_of

from kernels import runtime
from kernels.components import QuadRules, label_reference, reference
from kernels.components.table import Table
from kernels.components.tabulate import build_table
from tests.conftest import DEVICE


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
