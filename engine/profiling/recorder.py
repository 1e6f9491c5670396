"""`trainer.profile=true`: a few steps of a run under torch.profiler, as a trace and a table of where the step goes.

    python -m engine.train preset=NAME name=RUN trainer.profile=true
    runs/RUN/profile/trace.json.gz    for chrome://tracing or ui.perfetto.dev
    runs/RUN/profile/profile.md       parts of the step, kinds of work, every copy, model TFLOP/s and share of the peak

Rank 0 records SKIPPED + 1 .. SKIPPED + 1 + STEPS of the session, not across the end of an epoch; then the run goes on.
The profiler itself costs host time (some microseconds an operator), so small steps look slower than they are.
"""

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from engine.config import Config
from engine.console import optional
from engine.distributed import Ranks
from engine.model.forward import arithmetic
from engine.profiling import trace_table
from engine.profiling.flops import training_flops
from engine.profiling.trace_table import COMMUNICATION, CopyRow, Trace

SKIPPED = 2  # steps before: compilation, choice of algorithms, first allocations
STEPS = 5  # recorded, after one more step in which the profiler itself starts


class Recorder:
    """Records some steps of a run into `folder/profile`, and shows the report by `say`, line by line.

    Without `trainer.profile`, and on ranks above 0, it does nothing.
    """

    def __init__(self, config: Config, ranks: Ranks, folder: Path, say: Callable[[str], None]) -> None:
        self._config, self._device, self._folder, self._say = config, ranks.device, folder / "profile", say
        self._wanted = config.trainer.profile and ranks.main
        self._profiler: profile | None = None
        self._seen = 0  # steps of this epoch
        self._start = 0.0
        self._dtype = arithmetic(config, ranks.device)
        self._peak = matrix_peak(ranks.device, self._dtype) if self._wanted else 0.0

    def stepped(self) -> None:
        """To be called after each step: starts, goes on with or ends the recording."""
        if not self._wanted:
            return
        self._seen += 1
        if self._seen == SKIPPED:
            if self._device.type != "cuda":  # "ERROR: gpuGetDeviceCount failed" is none where no GPU is wanted
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
            plan = schedule(wait=0, warmup=1, active=STEPS)
            self._profiler = profile(activities=kinds, schedule=plan, record_shapes=True)
            self._profiler.start()
        elif self._seen == SKIPPED + 1 + STEPS:
            self.finish()
        elif self._seen > SKIPPED:
            if self._seen == SKIPPED + 1:
                self._wait()
            assert self._profiler is not None
            self._profiler.step()
            if self._seen == SKIPPED + 1:
                self._start = time.perf_counter()

    def finish(self) -> None:
        """Ends the recording, at the latest where an epoch ends, writes the files and shows the report."""
        if not self._wanted:
            return
        steps, self._seen = self._seen - SKIPPED - 1, 0
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            self._wait()
            wall = time.perf_counter() - self._start
            profiler.stop()
        if steps < 1:
            self._say(f"trainer.profile: nothing recorded, an epoch of {steps + SKIPPED + 1} steps is too short")
            return
        assert profiler is not None
        self._wanted = False
        with optional(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / "trace.json.gz"
            profiler.export_chrome_trace(str(path))
            with gzip.open(path, "rt") as file:
                trace = trace_table.read(json.load(file)["traceEvents"])
            text = report(self._config, trace, steps, wall, self._peak, self._dtype)
            for line in text.splitlines():  # `say` shows one line, line ends as \\n
                self._say(line)
            (self._folder / "profile.md").write_text(text)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # sync, at both ends of the recording only: wall time is the device's


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int = 0) -> float:
    """FLOP/s of a square matrix product (2 side^3 FLOPs), the best of 5 after a warm-up. Waits for the device."""
    side = side or (8192 if device.type == "cuda" else 1024)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    seconds = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:])


def report(config: Config, trace: Trace, steps: int, wall: float, peak: float, dtype: torch.dtype) -> str:
    """The tables as Markdown.

    Args:
        trace, steps: what was recorded, and the number of steps in it.
        wall: seconds they took.
        peak: FLOP/s of a matrix product in `dtype` on the same device.
        dtype: of the network's arithmetic.
    """
    rate = steps * config.data.batch_size * config.trainer.accumulate / wall
    flops = training_flops(config)
    what = "the device's time in kernels" if trace.on_gpu else "the host's time in operators"
    lines = [
        f"# Profile of {steps} steps of {config.models.encoder.name} at {'x'.join(map(str, config.data.image_size))}",
        "",
        f"{1e3 * wall / steps:.1f} ms a step, {rate:.2f} images/s on this rank with the profiler on; "
        f"{_unit(flops)}FLOP an image in training, {_unit(flops * rate)}FLOP/s of the model: {flops * rate / peak:.1%} "
        f"of the matrix peak measured at the start, {_unit(peak)}FLOP/s in {str(dtype).removeprefix('torch.')}.",
        "",
        f"| part of the step | host ms | {'device ms | ' if trace.on_gpu else ''}share of the step |",
        f"|---|---|{'---|' if trace.on_gpu else ''}---|",
    ]
    for part, host, device, share in trace_table.part_rows(trace, steps):
        beside = ", beside the rest" if part == COMMUNICATION else ""
        lines.append(f"| {part}{beside} | {host:.3f} | {f'{device:.3f} | ' if trace.on_gpu else ''}{share:.1%} |")
    lines += ["", f"| kind of work | share of {what} |", "|---|---|"]
    lines += [f"| {kind} | {share:.1%} |" for kind, share in trace_table.kind_rows(trace)]
    return "\n".join([*lines, "", *_copies(trace_table.copy_rows(trace), steps)]) + "\n"


def _unit(value: float) -> str:
    """A number to three digits with G or T before its unit."""
    size, letter = (1e12, "T") if value >= 1e12 else (1e9, "G")
    return f"{value / size:.3g} {letter}"


def _copies(rows: list[CopyRow], steps: int) -> list[str]:
    """Every copy; with channels_last end to end none of a large 4-d tensor should change its layout."""
    moved = [row for row in rows if row.relayout]
    lines = [
        f"Copies and transpositions: {sum(row.share for row in rows):.2%} of that time; "
        f"{sum(row.calls for row in moved) / steps:g} a step, {sum(row.share for row in moved):.2%}, change the memory "
        "format of a 4-d tensor (as far as operators tell; a transposing kernel inside a library shows by its name).",
        "",
        "| copy | part | calls a step | ms a step | share | shape of the longest | changes the format |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.name.replace("|", "/"), row.part, f"{row.calls / steps:g}", f"{row.us / steps / 1e3:.3f}",
            f"{row.share:.2%}", row.shape, "yes" if row.relayout else "",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines
