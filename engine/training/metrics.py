"""Numbers of the steps, read without waiting for the device: rates of the loop, and means over the ranks.

    watch, scalars = Stopwatch(), Scalars(6, device)
    for each step:
        scalars.add(train_step(...))       # a vector on the device
        watch.stepped(images)
    scalars.close_window(watch.read())     # starts a copy to the host
    for record, means in scalars.finished(): ...

On a GPU the host runs ahead of the device, so a value is handed out some steps after it was computed (`LateCopies`).
"""

import collections
import time
from typing import Generic, TypeVar

import torch
import torch.distributed as dist

Tag = TypeVar("Tag")


class Stopwatch:
    """Rates over a window of steps.

    A single step's wall time means little on a GPU: the loop runs ahead of it. Over a window between two reads of the
    loss (once per `log_every` steps) the rate is the device's own.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Starts a new window."""
        self.start = time.perf_counter()
        self.images = self.steps = 0
        self.data_wait = 0.0

    def waited(self, seconds: float) -> None:
        """Adds time in which the loop stood still for data."""
        self.data_wait += seconds

    def stepped(self, images: int) -> None:
        """Counts one step over `images` images of all ranks."""
        self.steps += 1
        self.images += images

    def read(self) -> dict[str, float]:
        """images_per_second, step_ms, data_wait_ms (per step) and data_wait_share (0..1) of the window."""
        seconds = max(time.perf_counter() - self.start, 1e-9)
        steps = max(self.steps, 1)
        return {
            "images_per_second": self.images / seconds,
            "step_ms": 1000 * seconds / steps,
            "data_wait_ms": 1000 * self.data_wait / steps,
            "data_wait_share": self.data_wait / seconds,
        }


class LateCopies(Generic[Tag]):
    """Small tensors on their way to the host, each with a tag; a copy is handed out once it has arrived.

    From a GPU the copy goes to pinned memory, and an event tells that it has arrived: asking waits for nothing. On a
    CPU there is nothing to copy.
    """

    def __init__(self) -> None:
        self._pending: collections.deque[tuple[Tag, torch.Tensor, torch.cuda.Event | None]] = collections.deque()

    def put(self, tag: Tag, values: torch.Tensor) -> None:
        """Starts the copy of a tensor that nobody changes from here on."""
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            values = host
        self._pending.append((tag, values, event))

    def arrived(self, wait: bool = False) -> list[tuple[Tag, list]]:
        """(tag, values as Python numbers) of what has arrived, in the order of `put`; with `wait`, a sync, of all."""
        done = []
        while self._pending:
            tag, values, event = self._pending[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()  # sync, where the caller asks for it
            self._pending.popleft()
            done.append((tag, values.tolist()))  # in host memory by now
        return done


class Scalars:
    """Means of a small vector over a window of steps and over the ranks.

    The vector's last value is 1 for a step that does not count (its other values are 0); of these there is the number
    in the window instead of a mean. A window of such steps alone has NaN for means.

    `add` sums on the device. `close_window` starts a copy to the host. `finished` hands out the windows whose copy has
    arrived: on a GPU one window late, on a CPU at once.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._sum = torch.zeros(size, device=device)
        self._steps = 0
        self._windows: LateCopies[dict] = LateCopies()

    def add(self, values: torch.Tensor) -> None:
        """Adds one step's vector (size,), on the device."""
        self._sum += values
        self._steps += 1

    def close_window(self, tag: dict) -> None:
        """Ends the window; `tag` comes back beside its means."""
        mean = self._sum.clone()
        mean[:-1] /= self._steps - mean[-1]
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        self._windows.put(tag, mean)
        self._sum.zero_()
        self._steps = 0

    def finished(self, wait: bool = False) -> list[tuple[dict, list[float]]]:
        """(tag, means) of the windows that have arrived; with `wait`, a sync, of all of them."""
        return self._windows.arrived(wait)
