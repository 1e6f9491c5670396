"""Every kernel under many schedules of its programs: the same results, and no accesses that meet but the known ones."""

import collections
import functools
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from component_masks import RULES, adversarial_masks, maps_of
from loss_examples import example as loss_example
from norm_examples import by, results
from norm_examples import example as norm_example
from torch import Tensor

from kernels import runtime
from kernels.components import find_quads, label, labelling, tabulate
from kernels.db_loss import op as loss_op
from kernels.db_targets import db_targets
from kernels.norm_relu import rows
from tests.conftest import DEVICE, ROOT
from tests.kernels import races
from tests.kernels.db_targets.test_reference import csr

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu", reason="the interpreter runs the programs, which is chosen without a GPU"
)

# What may meet, by kernel and array, and why it does no harm. All are volatile loads beside atomics.
OLD_ROOT = "an older parent is an ancestor too; whether two trees are joined is what atomic_min returns"
OLD_ANCESTOR = "any value is an ancestor, and roots do not move any more"
OLD_EXTREME = "an older extreme is only worse: it costs an atomic and never saves one"
LEGAL = {
    ("_link_kernel", "parent"): OLD_ROOT,
    ("_resolve_kernel", "parent"): OLD_ANCESTOR,
    **{("_resolve_kernel", array): OLD_EXTREME for array in ("left", "right", "bottom")},
    **{("_extremes_kernel", array): OLD_EXTREME for array in ("left_gap", "right_end")},
}
PROGRAMS = 4  # of kernels whose programs stride over the work
STALE = (0.0, 0.3, 0.9)
HEIGHT, WIDTH = 11, 18  # several tiles and chunks of every kernel of components, with the sizes of `small_tiles`

Call = Callable[[], list[Tensor]]


def small_tiles(monkeypatch, *modules: ModuleType) -> None:
    """Tiles of a few rows and runs, so that a tiny page gives work to all programs."""
    monkeypatch.setattr(runtime, "INTERPRETED_PROGRAMS", PROGRAMS)
    sizes = {"ROWS": 4, "BYTES": 2, "LANES": 8, "SCAN": 8, "TILE_RUNS": 4, "TILE_PIXELS": 8, "CHUNK": 16}
    for module in (labelling, tabulate, *modules):
        for name, size in sizes.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, size)


def components_calls(implementation: str) -> list[Call]:
    masks = torch.from_numpy(adversarial_masks(HEIGHT, WIDTH))
    chosen = [masks[k : k + 1] for k in (0, 1, 2, 11, 4, 8)]  # checkerboard, spiral, comb, noise, snake, full
    options = {"min_size_px": 1.0, "min_unclipped_px": 1.0, "box_thresh": 0.0, "implementation": implementation}

    def quads(mask: Tensor, connectivity: int, score_mode: str) -> list[Tensor]:
        kind = {"connectivity": connectivity, "score_mode": score_mode}
        return list(find_quads(maps_of(mask.numpy()), max_candidates=8, **kind, **options))

    def labels(mask: Tensor, connectivity: int) -> list[Tensor]:
        return [label(mask, connectivity, implementation=implementation)]

    kinds = [(8, "fast"), (4, "slow"), (4, "fast"), (8, "slow"), (8, "fast"), (4, "slow")]
    calls = [functools.partial(quads, mask, *kind) for mask, kind in zip(chosen, kinds, strict=True)]
    return calls + [functools.partial(labels, mask, 12 - kind[0]) for mask, kind in zip(chosen, kinds, strict=True)]


def parts_of_components(labels: bool) -> list[Call]:
    """Labels or areas alone, where a fault is looked for: a quarter of the time."""
    masks = torch.from_numpy(adversarial_masks(HEIGHT, WIDTH)[[11, 2]])[:, None]  # noise, comb

    def call(mask: Tensor) -> list[Tensor]:
        if labels:
            return [label(mask, 8, implementation="triton")]
        table = tabulate.build_table(maps_of(mask.numpy()), RULES._replace(min_size_px=0.0, score_mode="fast"), 64)
        return [table.area[0, : table.counts[0]]]

    return [functools.partial(call, mask) for mask in masks]


def targets_calls(implementation: str) -> list[Call]:
    generator = np.random.default_rng(0)
    box = np.array([[0.0, 0.0], [30.0, 3.0], [29.0, 14.0], [-1.0, 11.0]])
    crossed, small = box[[0, 2, 1, 3]], box / 4
    pages = [[shape + generator.uniform(0, 30, 2) for shape in (box, box, crossed, small)], [box]]
    options = {"height": 40, "width": 50, "implementation": implementation, "thresh_dtype": torch.float32}

    def call(mode: str) -> list[Tensor]:
        return list(db_targets(*csr(pages, [False, True, False, False, False]), mode=mode, **options))

    return [functools.partial(call, mode) for mode in ("paper", "baseline")]


def loss_calls(implementation: str) -> list[Call]:
    def call(dtype: torch.dtype, mode: str) -> list[Tensor]:
        x, y, targets = loss_example((2, 40, 70), dtype)
        binary = loss_op.binary_map(x, y, implementation=implementation)
        x, y = x.requires_grad_(), y.requires_grad_()
        losses = loss_op.db_loss(x, y, targets, mode=mode, implementation=implementation)
        gradients = torch.autograd.grad(losses.total, [x, y])
        return [binary, torch.stack(list(losses)).detach(), *gradients]

    return [functools.partial(call, *kind) for kind in ((torch.bfloat16, "paper"), (torch.float32, "baseline"))]


def norm_calls(implementation: str) -> list[Call]:
    def call(shape: tuple[int, ...], dtype: torch.dtype, add: bool) -> list[Tensor]:
        return [made.detach() for made in results(by(implementation), *norm_example(shape, dtype, add))]

    kinds = [((2, 48, 13, 16), torch.float32, True), ((1, 136, 13, 12), torch.bfloat16, False)]
    return [functools.partial(call, *kind) for kind in kinds]


FAMILIES = {"components": components_calls, "db_targets": targets_calls, "db_loss": loss_calls, "norm_relu": norm_calls}


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether all bits agree; a NaN is a NaN."""
    return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(found, expected, strict=True))


class Found(NamedTuple):
    """What some schedules showed."""

    meetings: collections.Counter  # of `races.Meeting`
    wrong: list[str]  # schedules whose results differ from the expected
    kernels: set[str]  # that ran
    accesses: int


def run_schedules(calls: list[Call], expected: list[list[Tensor]], schedules: int) -> Found:
    """A seed chooses schedule, case and share of old values, so that all combinations come in time."""
    meetings, wrong, kernels, accesses = collections.Counter(), [], set(), 0
    for seed in range(schedules):
        schedule, case = races.SCHEDULES[seed % 7], (seed + seed // 7) % len(calls)
        with races.watched(schedule, seed, STALE[seed % 3]) as seen:
            found = calls[case]()
        meetings += seen.meetings
        kernels |= set(seen.launches)
        accesses += seen.accesses
        if not same(found, expected[case]):
            wrong.append(f"{schedule}, seed {seed}, case {case}")
    return Found(meetings, wrong, kernels, accesses)


def unknown(meetings: collections.Counter) -> list[races.Meeting]:
    return [m for m in meetings if m.kind != "stale" or (m.kernel, m.array) not in LEGAL]


@pytest.mark.parametrize("family", FAMILIES)
def test_20_schedules_give_the_references_results_and_no_race(family, monkeypatch):
    small_tiles(monkeypatch)
    calls = FAMILIES[family]("triton")
    expected = [call() for call in calls]
    for ours, reference in zip(expected, FAMILIES[family]("reference"), strict=True):
        for a, b in zip(ours, reference(), strict=True):
            close = 2e-2 if torch.bfloat16 in (a.dtype, b.dtype) else 1e-4
            torch.testing.assert_close(a, b, rtol=close, atol=close, check_dtype=False)
    seen = run_schedules(calls, expected, 20)
    assert not seen.wrong and not unknown(seen.meetings)
    texts = [path.read_text() for path in (ROOT / "kernels" / family).glob("*.py")]
    assert seen.kernels == {kernel for text in texts for kernel in re.findall(r"runtime\.launch\(\s*(\w+)", text)}
    needed = {(meeting.kernel, meeting.array) for meeting in seen.meetings}
    assert needed == (set(LEGAL) if family == "components" else set())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_500_schedules_give_one_result_and_no_race(family, monkeypatch):
    small_tiles(monkeypatch)
    calls = FAMILIES[family]("triton")
    seen = run_schedules(calls, [call() for call in calls], 500)
    print(f"{family}: {seen.accesses} accesses")
    assert not seen.wrong and not unknown(seen.meetings)


@triton.jit
def _meeting_kernel(cells, seen, HOW: tl.constexpr):
    """Programs meet at the first cell; `seen` is what each finds there afterwards, less what it left."""
    if HOW == "store":
        tl.store(cells, tl.program_id(0))
    elif HOW == "load":
        tl.atomic_add(cells, tl.load(cells + 1) + tl.load(cells), sem="relaxed")
    elif HOW == "warps":
        tl.atomic_add(cells, 1, sem="relaxed", scope="cta")
    elif HOW == "outside":
        tl.store(cells + tl.program_id(0), 1)
    else:
        left = tl.atomic_add(cells, 1, sem="relaxed") + 1
        if HOW == "look":
            tl.store(seen + tl.program_id(0), tl.load(cells, volatile=True) - left)


def meet(how: str, schedule: str = "random", seed: int = 0, stale: float = 0.0) -> tuple[set[str], list[int]]:
    """(kinds of meetings, `seen`) of 8 programs on 2 cells."""
    seen = torch.zeros(8, dtype=torch.int32)
    with races.watched(schedule, seed, stale) as watch:
        _meeting_kernel[(8,)](torch.zeros(2, dtype=torch.int32), seen, HOW=how)
    return {meeting.kind for meeting in watch.meetings}, seen.tolist()


def test_what_counts_as_a_race():
    kinds = {"store": {"race"}, "load": {"race"}, "warps": {"race"}, "add": set(), "look": {"stale"}}
    for schedule in races.SCHEDULES:
        assert {how: meet(how, schedule)[0] for how in kinds} == kinds
    with pytest.raises(AssertionError, match=r"store test_races.py:\d+ _meeting_kernel: outside of all arguments"):
        meet("outside")


def test_loads_give_old_values_but_none_older_than_ones_own():
    assert meet("look", "sequential", stale=0.9)[1] == [0] * 8
    newest, older = (np.array([meet("look", seed=k, stale=stale)[1] for k in range(20)]) for stale in (0.0, 1.0))
    assert newest.min() >= 0 and older.min() >= 0 and older.sum() < newest.sum()
    assert meet("look", seed=3, stale=0.5) == meet("look", seed=3, stale=0.5)


class Fault(NamedTuple):
    """One text of a module replaced, so that programs race."""

    module: ModuleType
    right: str
    planted: str
    used: tuple[ModuleType, str]  # where the module's function of this name is called from
    calls: Callable[[], list[Call]]
    shows: bool  # in results; else only the comparison of accesses finds it


forward_of_loss, forward_of_norm = (importlib.import_module(f"kernels.{op}.forward") for op in ("db_loss", "norm_relu"))
RESOLVED, FORWARD = (tabulate, "resolved_runs"), (loss_op, "forward")
FAULTS = {
    "areas added up by load and store": Fault(
        labelling,
        'tl.atomic_add(area + at, length, mask=acts, sem="relaxed")',
        "tl.store(area + at, tl.load(area + at, mask=acts, other=0) + length, mask=acts)",
        RESOLVED,
        functools.partial(parts_of_components, labels=False),
        True,
    ),
    "counts of the loss added up by load and store": Fault(
        forward_of_loss,
        'tl.atomic_add(counts + tl.arange(0, BINS), histogram.to(tl.int64), mask=histogram > 0, sem="relaxed")',
        "at = counts + tl.arange(0, BINS)\n    tl.store(at, tl.load(at) + histogram.to(tl.int64), mask=histogram > 0)",
        FORWARD,
        functools.partial(loss_calls, "triton"),
        True,
    ),
    "two programs write one row of a norm's sums": Fault(
        rows,
        "(ROW * tl.num_programs(0) + tl.program_id(0)) * C",
        "(ROW * tl.num_programs(0) + tl.program_id(0) // 2) * C",
        (forward_of_norm, "store_partials"),
        functools.partial(norm_calls, "triton"),
        True,
    ),
    "trees hooked by load and store": Fault(
        labelling,
        'old = tl.atomic_min(parent + high, low, mask=hook, sem="relaxed")',
        "old = tl.load(parent + high, mask=hook, other=0)\n"
        "        tl.store(parent + high, tl.minimum(old, low), mask=hook)",
        RESOLVED,
        functools.partial(parts_of_components, labels=True),
        True,
    ),
    "ancestors stored plainly": Fault(
        labelling,
        'tl.atomic_min(parent + run, root, mask=active, sem="relaxed")',
        "tl.store(parent + run, root, mask=active)",
        RESOLVED,
        functools.partial(parts_of_components, labels=True),
        False,
    ),
    "roots looked for by plain loads": Fault(
        labelling,
        "up_a = tl.load(parent + a, mask=active, other=0, volatile=True)",
        "up_a = tl.load(parent + a, mask=active, other=0)",
        RESOLVED,
        functools.partial(parts_of_components, labels=True),
        False,
    ),
}


def copy_with(fault: Fault, folder: Path) -> ModuleType:
    """The module again, from a file of its own, as Triton reads kernels from their files."""
    assert fault.module.__file__
    source = Path(fault.module.__file__).read_text()
    assert source.count(fault.right) == 1, "the kernel has changed: plant the fault anew"
    path = folder / "planted.py"
    path.write_text(source.replace(fault.right, fault.planted))
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums that nobody wrote
def test_a_planted_race_is_found(name, monkeypatch, tmp_path):
    fault = FAULTS[name]
    planted = copy_with(fault, tmp_path)
    small_tiles(monkeypatch, *[planted] * (fault.module is labelling))
    calls = fault.calls()
    expected = [call() for call in calls]
    user, function = fault.used
    monkeypatch.setattr(user, function, getattr(planted, function))
    seen = run_schedules(calls, expected, 7)
    found = unknown(seen.meetings)
    assert found and all(meeting.kind == "race" and "planted.py:" in meeting.first for meeting in found)
    assert bool(seen.wrong) == fault.shows
