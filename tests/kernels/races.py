"""Race detector for Triton kernels: the programs of a launch run interleaved, in Triton's interpreter.

    with races.watched("random", seed=3, stale=0.5) as seen:
        numbers = label(mask, implementation="triton")
    assert not seen.meetings  # {Meeting("race", "_resolve_kernel", "parent", "store labelling.py:262 ...", ...): 3}

A program is a coroutine (greenlet) that hands over before every load, store and atomic; a seeded schedule says who goes
on. Kernels must be called with tensors on the CPU.

Memory. Atomics act on the newest value. A load may return any value that atomics left at the address since the launch
began, as long as it is not older than what this program has seen or left there: no order between addresses, as in PTX
without fences. Plain stores are seen at once; who else reads or writes there is a race whatever it sees.

After a launch all accesses are compared by address. Two programs that meet there, at least one of them writing, are

    race   when one of the two is plain: undefined in PTX, where only atomics and volatile loads are "strong"
    stale  when they are a volatile load and an atomic: defined, but the load may see an older value

and nothing when both are atomics. An address outside of all arguments is an AssertionError.

Not seen: warps of one program against each other, acquire and release (all atomics count as relaxed), torn accesses.
"""

import collections
import contextlib
import inspect
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple
from unittest import mock

import greenlet
import numpy as np
import triton
import triton.runtime.interpreter as interpreter
from torch import Tensor
from triton._C.libtriton import ir

SCHEDULES = ("sequential", "reversed", "round robin", "random", "priorities", "one held", "half held")
HELD_UNTIL = 40  # accesses at most that a program makes before it is held back
NOBODY = np.iinfo(np.int32).max
SKIPPED = (str(Path(triton.__file__).parent), __file__)


class Meeting(NamedTuple):
    """Two accesses of different programs to the same addresses."""

    kind: str  # "race" or "stale"
    kernel: str
    array: str  # name of the kernel's argument
    first: str  # "store labelling.py:262 _resolve_kernel"
    second: str


class Place(NamedTuple):
    """Where a kernel reads or writes: an access, by its kind and line."""

    kind: str  # "load", "volatile load", "store" or "atomic"
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.kind} {Path(self.file).name}:{self.line} {self.function}"


class Array:
    """The memory of one argument of a kernel, or of several that overlap."""

    def __init__(self, name: str, start: int, stop: int):
        self.name, self.start, self.stop = name, start, stop
        self.item = 0  # bytes of an element, known at the first access
        self.touched: dict[Place, tuple[np.ndarray, np.ndarray]] = {}  # least and greatest program, by element
        self.left: dict[int, list] = {}  # element -> the value before the first atomic, and what each atomic left
        self.known: dict[tuple[int, int], int] = {}  # (program, element) -> place in `left`, the oldest it may see

    def elements(self, addresses: np.ndarray, item: int) -> np.ndarray:
        """Indices of the elements at addresses, which are all of one size in one array."""
        self.item = self.item or item
        assert item == self.item and addresses.max() + item <= self.stop, f"{self.name}: outside, or of two types"
        return (addresses - self.start) // item

    def touch(self, program: int, place: Place, elements: np.ndarray) -> None:
        """Notes who was there."""
        if place not in self.touched:
            count = (self.stop - self.start) // self.item
            self.touched[place] = np.full(count, NOBODY, np.int32), np.full(count, -1, np.int32)
        least, greatest = self.touched[place]
        least[elements] = np.minimum(least[elements], program)
        greatest[elements] = np.maximum(greatest[elements], program)

    def meetings(self) -> Iterator[tuple[str, Place, Place, int]]:
        """(kind, two places, elements) where different programs met."""
        for pair in itertools.combinations_with_replacement(sorted(self.touched), 2):
            kinds = {place.kind for place in pair}
            if kinds <= {"load", "volatile load"} or kinds == {"atomic"}:
                continue
            (least, greatest), (other_least, other_greatest) = (self.touched[place] for place in pair)
            both = (greatest >= 0) & (other_greatest >= 0)
            met = both & (np.minimum(least, other_least) != np.maximum(greatest, other_greatest))
            if met.any():
                yield "stale" if kinds == {"volatile load", "atomic"} else "race", *pair, int(met.sum())


class Watch:
    """What happened under one schedule; it stands in the interpreter's place while kernels run."""

    def __init__(self, schedule: str, seed: int, stale: float):
        self.schedule, self.stale, self.random = schedule, stale, random.Random(seed)
        self.meetings: collections.Counter[Meeting] = collections.Counter()  # and how many addresses each had
        self.launches: dict[str, int] = {}  # kernel -> programs
        self.accesses = 0
        self.arrays: list[Array] = []  # of the launch that runs, by address
        self.program = 0  # that runs
        self.host = greenlet.getcurrent()

    def run(self, executor: interpreter.GridExecutor, args: tuple, constants: dict) -> None:
        """A launch, as GridExecutor.__call__ but for the order of the programs."""
        kernel = executor.fn
        named = inspect.getfullargspec(kernel).args
        given, constants = executor._init_args_hst(args, {k: v for k, v in constants.items() if k in named})
        values = inspect.getcallargs(kernel, *given, **constants)
        self.arrays = arrays_of(values)
        scope = interpreter._patch_lang(kernel)
        try:
            values = {k: v if k in executor.constexprs else interpreter._implicit_cvt(v) for k, v in values.items()}
            grid = (*executor.grid, 1, 1)[:3]
            interpreter.interpreter_builder.set_grid_dim(*grid)
            self.interleave([lambda: kernel(**values)] * int(np.prod(grid)), list(np.ndindex(grid)))
        finally:
            scope.restore()
        self.launches[kernel.__name__] = int(np.prod(grid))
        for array in self.arrays:
            for kind, first, second, count in array.meetings():
                self.meetings[Meeting(kind, kernel.__name__, array.name, str(first), str(second))] += count

    def interleave(self, bodies: list[Callable], indices: list[tuple[int, ...]]) -> None:
        """Runs programs to their ends, one access at a time."""
        self.host = greenlet.getcurrent()
        programs = [greenlet.greenlet(body) for body in bodies]
        alive, done = list(range(len(programs))), [0] * len(programs)
        following = chooser(self.schedule, len(programs), self.random)
        while alive:
            self.program = following(alive, done)
            done[self.program] += 1
            interpreter.interpreter_builder.set_grid_idx(*indices[self.program])
            programs[self.program].switch()
            if programs[self.program].dead:
                alive.remove(self.program)

    def hand_over(self) -> None:
        """Called in a program, before an access: others may go on first."""
        self.accesses += 1
        self.host.switch()

    def located(self, kind: str, pointers, mask) -> tuple[Array | None, np.ndarray, np.ndarray]:
        """(array, its elements, lanes) of an access, which is noted; no array where no lane is active."""
        addresses, on = (part.reshape(-1) for part in np.broadcast_arrays(pointers.data, mask.data))
        lanes = np.flatnonzero(on)
        addresses = addresses[lanes].astype(np.int64)
        if not len(lanes):
            return None, addresses, lanes
        array = next((array for array in self.arrays if array.start <= addresses.min() < array.stop), None)
        place = place_of(kind, sys._getframe(2))
        assert array is not None, f"{place}: outside of all arguments"
        elements = array.elements(addresses, numpy_type(pointers).itemsize)
        array.touch(self.program, place, elements)
        return array, elements, lanes

    def load(self, original: Callable, builder, pointers, mask, other, cache, eviction, volatile):
        """Stands for InterpreterBuilder.create_masked_load."""
        self.hand_over()
        got = original(builder, pointers, mask, other, cache, eviction, volatile)
        array, elements, lanes = self.located("volatile load" if volatile else "load", pointers, mask)
        if array is None or not array.left:
            return got
        seen = got.data.copy().reshape(-1)
        for element, lane in zip(elements.tolist(), lanes.tolist()):
            if element in array.left:
                left = array.left[element]
                oldest, newest = array.known.get((self.program, element), 0), len(left) - 1
                one = self.random.randint(oldest, newest) if self.random.random() < self.stale else newest
                array.known[self.program, element] = one
                seen[lane] = left[one]
        return interpreter.TensorHandle(seen.reshape(got.data.shape), got.dtype)

    def store(self, original: Callable, builder, pointers, value, mask, *hints):
        """Stands for InterpreterBuilder.create_masked_store."""
        self.hand_over()
        array, elements, _ = self.located("store", pointers, mask)
        for element in elements.tolist() if array is not None and array.left else ():
            array.left.pop(element, None)
        return original(builder, pointers, value, mask, *hints)

    def atomic(self, original: Callable, builder, operation, pointers, value, mask, order, scope):
        """Stands for InterpreterBuilder.create_atomic_rmw. Atomic within its own program only is plain to others."""
        self.hand_over()
        kind = "store" if scope == ir.MEM_SYNC_SCOPE.CTA else "atomic"
        array, elements, lanes = self.located(kind, pointers, mask)
        before = values_at(pointers, lanes)
        done = original(builder, operation, pointers, value, mask, order, scope)
        for element, old, new in zip(elements.tolist(), before, values_at(pointers, lanes)):
            left = array.left.setdefault(element, [old])
            left.append(new)
            array.known[self.program, element] = len(left) - 1
        return done


@contextlib.contextmanager
def watched(schedule: str, seed: int, stale: float) -> Iterator[Watch]:
    """Kernels started within run under a schedule of SCHEDULES; the share `stale` of loads may see older values."""
    assert schedule in SCHEDULES, schedule
    watch, builder = Watch(schedule, seed, stale), interpreter.InterpreterBuilder

    def standing_in(method: Callable, original: Callable) -> Callable:
        return lambda *args: method(original, *args)

    def unknown(*_args):
        raise AssertionError("no kernel here has used tl.atomic_cas or a descriptor: teach the detector first")

    replaced = {
        "create_masked_load": standing_in(watch.load, builder.create_masked_load),
        "create_masked_store": standing_in(watch.store, builder.create_masked_store),
        "create_atomic_rmw": standing_in(watch.atomic, builder.create_atomic_rmw),
        "create_atomic_cas": unknown,
        "create_make_tensor_descriptor": unknown,
    }
    with mock.patch.multiple(builder, **replaced), mock.patch.object(
        interpreter.GridExecutor, "__call__", lambda executor, *args, **constants: watch.run(executor, args, constants)
    ):  # fmt: skip
        yield watch


def chooser(schedule: str, programs: int, rng: random.Random) -> Callable[[list[int], list[int]], int]:
    """Says which of the living programs goes on, from how far each has come (in accesses)."""
    if schedule == "sequential":
        return lambda alive, done: alive[0]
    if schedule == "reversed":
        return lambda alive, done: alive[-1]
    if schedule == "round robin":
        return lambda alive, done: min(alive, key=done.__getitem__)
    if schedule == "random":
        return lambda alive, done: rng.choice(alive)
    if schedule == "priorities":
        rank = [rng.random() for _ in range(programs)]

        def highest(alive: list[int], done: list[int]) -> int:
            if rng.random() < 0.02:
                rank[rng.choice(alive)] = rng.random()
            return max(alive, key=rank.__getitem__)

        return highest
    held = set(rng.sample(range(programs), 1 if schedule == "one held" else -(-programs // 2)))
    until = rng.randrange(1, HELD_UNTIL)

    def others(alive: list[int], done: list[int]) -> int:
        starting = [program for program in alive if program in held and done[program] < until]
        return rng.choice(starting or [program for program in alive if program not in held] or alive)

    return others


def arrays_of(values: dict) -> list[Array]:
    """The memory of a kernel's tensor arguments; those that overlap are one array."""
    arrays: list[Array] = []
    tensors = ((name, value) for name, value in values.items() if isinstance(value, Tensor) and value.numel())
    for name, tensor in sorted(tensors, key=lambda named: named[1].data_ptr()):
        start, last = tensor.data_ptr(), sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride()))
        stop = start + (last + 1) * tensor.element_size()
        if arrays and start < arrays[-1].stop:
            arrays[-1].name += f"/{name}"
            arrays[-1].stop = max(arrays[-1].stop, stop)
        else:
            arrays.append(Array(name, start, stop))
    return arrays


def place_of(kind: str, frame: FrameType | None) -> Place:
    """The line of the kernel that is being interpreted."""
    while frame is not None and frame.f_code.co_filename.startswith(SKIPPED):
        frame = frame.f_back
    assert frame is not None
    return Place(kind, frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def numpy_type(pointers) -> np.dtype:
    """What a block of pointers points to."""
    return np.dtype(interpreter._get_np_dtype(pointers.get_element_ty()))


def values_at(pointers, lanes: np.ndarray) -> np.ndarray:
    """What lies at the addresses of lanes now."""
    addresses, dtype = pointers.data.reshape(-1)[lanes], numpy_type(pointers)
    return interpreter._interpreter.load(addresses, np.ones(len(lanes), bool), np.zeros(len(lanes), dtype), dtype)
