"""Sections of `bench.gpu`: every Triton kernel checked against its reference, then timed beside floor and peers.

Times are microseconds a batch; `floor_us` is what a device-to-device copy needs for the same bytes on this device. CUDA
graphs are timed with a warm L2 cache, everything else with a cold one.
"""

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from bench.gpu.cases import Case, check_all, loss_cases, memory_of_loss, quads_cases, targets_cases
from bench.gpu.norms import check_norms, norm_cases

# Microseconds a batch of 16 x 1280 x 1280 on one H200: what must be reached, and what to reach for.
GOALS = {"db_targets": (200, 60), "db_loss": (400, 180), "find_quads": (500, 100)}
CHECK_SIDE = 640
# An entry each: where a capture fails, the rows of the others are there.
TIMED = {"db_targets": targets_cases, "db_loss": loss_cases, "find_quads": quads_cases, "norm_relu": norm_cases}


def rows(what: str, size: Any) -> Iterator[tuple[str, dict]]:
    """`checks`, or `times, OP`; see `bench.gpu`. `size`: pages, side, device."""
    device = torch.device(size.device)
    if what == "checks":
        side = min(size.side, CHECK_SIDE)
        for name, right, detail in itertools.chain(check_all(device, side), [check_norms(device, side)]):
            yield name, {"right": right, "detail": detail}
        yield "memory of db_loss", {"bytes_per_pixel": memory_of_loss(device, size.pages, size.side), "end": True}
        return
    kind, _, op = what.partition(", ")
    assert kind == "times" and op in TIMED, what
    before = clocks(device)
    rate = bandwidth(device, size.pages * size.side**2 * 8)
    for case in TIMED[op](device, size.pages, size.side):
        yield from run_case(case, device, rate)
    yield (
        f"device-to-device copy, before {op}",
        {"gb_s": rate / 1e9, "clocks": f"{before}; {clocks(device)}", "end": True},
    )


def clocks(device: torch.device) -> str:
    """Clock of the processors, power and temperature as the driver tells them; "" where it does not."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw,temperature.gpu", "--format=csv,noheader", "-i", "0"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()


def clock(call: Callable, device: torch.device, *, graph: bool = False) -> float:
    """Median microseconds of a call; on a CPU (in tests) one call's."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - start)
    if graph:
        return 1e3 * triton.testing.do_bench_cudagraph(call, return_mode="median")
    return 1e3 * triton.testing.do_bench(call, return_mode="median")


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second of a device-to-device copy, reads and writes counted."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2e6 * size / clock(lambda: target.copy_(source), device)


def run_case(case: Case, device: torch.device, rate: float) -> Iterator[tuple[str, dict]]:
    """Times one case as it is launched and, where it can be captured, as one CUDA graph."""
    for graph in [False, True][: 1 + case.graph]:
        us = clock(case.call, device, graph=graph) * case.scale
        figures: dict = {"us": us}
        if case.bytes:
            floor = 1e6 * case.bytes / rate
            figures |= {"floor_us": floor, "of_the_floors_rate": floor / us}
        if case.what == "kernels" and case.op in GOALS:
            figures["goal_us (reach)"] = "{} ({})".format(*GOALS[case.op])
        yield f"{case.op}: {case.what}" + (", one CUDA graph" if graph else ""), figures
