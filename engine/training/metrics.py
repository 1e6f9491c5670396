"""Where the step's time goes, without a sync in the step: wall-clock of the loop, and the wait for data in it."""

import time

import torch
import torch.distributed as dist


class Stopwatch:
    """Rates over a window of steps.

    On a GPU the loop runs ahead of the device, so a single step's wall time means little; over a window between two
    reads of the loss (the one sync, once per `log_every` steps) the rate is the device's own.
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


class Scalars:
    """Means of a small vector over a window of steps and over the ranks, read without stopping the device.

    The vector's last value is 1 for a step that does not count (its other values are 0); of these there is the number
    in the window instead of a mean. A window of such steps alone has NaN for means.

    `add` accumulates on the device; `close_window` starts a copy to the host; `finished` hands out the windows whose
    copy has arrived, which on a GPU is one window late and on a CPU at once.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._sum = torch.zeros(size, device=device)
        self._steps = 0
        self._pending: list[tuple[dict, torch.Tensor, torch.cuda.Event | None]] = []

    def add(self, values: torch.Tensor) -> None:
        """Adds one step's vector (size,), on the device."""
        self._sum += values
        self._steps += 1

    def close_window(self, tag: dict) -> None:
        """Ends the window; `tag` comes back beside its means."""
        on_gpu = self._sum.is_cuda
        host = torch.empty(self._sum.shape, pin_memory=on_gpu)
        mean = self._sum.clone()
        mean[:-1] /= self._steps - mean[-1]
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        host.copy_(mean, non_blocking=on_gpu)
        event = torch.cuda.Event() if on_gpu else None
        if event is not None:
            event.record()
        self._pending.append((tag, host, event))
        self._sum.zero_()
        self._steps = 0

    def finished(self, wait: bool = False) -> list[tuple[dict, list[float]]]:
        """(tag, means) of the windows that have arrived; `wait` is a sync that fetches all of them."""
        done = []
        while self._pending:
            tag, host, event = self._pending[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()  # sync, at the end of an epoch
            done.append((tag, host.tolist()))
            self._pending.pop(0)
        return done
