"""Tables of components: filled, searched and compared with the reference."""

import torch

from kernels.components import QuadRules, Quads, geometry
from kernels.components.table import Table
from tests.conftest import DEVICE

RULES = QuadRules(0.3, 0.4, 1.5, 3.0, 5.0, 500, 8, "fast")
EVERYTHING = RULES._replace(bin_thresh=0.5, box_thresh=0.0, min_size_px=0.0, min_unclipped_px=0.0)
UNDEFINED = -123_456_789  # where the kernels must not look


def blank_table(pages: int, capacity: int, height: int, width: int) -> Table:
    """No components; all the rest is undefined."""
    shapes = [(pages, capacity)] * 5 + [(pages, height * -(-width // 2))] * 2
    top, rows, area, mass, begin, left_gap, right_end = (torch.full(s, UNDEFINED, dtype=torch.int32) for s in shapes)
    count = torch.zeros(pages, dtype=torch.int32)
    return Table(count, count.clone(), top, rows, area, mass.long(), begin, left_gap, right_end)


def fill(table: Table, page: int, component: tuple, width: int, free: int) -> int:
    """Writes (top, first columns, last columns, area, mass) as the page's next component; returns the free entry."""
    top, left, right, area, mass = component
    index, inside = int(table.counts[page]), slice(free, free + len(left))
    for column, value in zip(table[2:7], (top, len(left), area, mass, free), strict=True):
        column[page, index] = value
    table.left_gap[page, inside], table.right_end[page, inside] = width - left, right + 1
    table.counts[page] += 1
    return free + len(left)


def find(table: Table, prob: torch.Tensor, rules: QuadRules) -> Quads:
    """The kernels' quads, on the host."""
    found = geometry.find_quads_on_device(Table(*(t.to(DEVICE) for t in table)), prob.to(DEVICE), rules)
    return Quads(*(field.cpu() for field in found))
