"""How a row of `pytest bench/` is measured: rounds of the peer and ours in turn, percentiles, memory, device.

On a CPU the figure is ours over the peer's time, both taken in the same round: a busy or slower machine slows both. The
clock is this process's CPU time (all its threads, torch and OpenCV at one), so other processes hardly count; what runs
in other processes, or waits, needs clock="wall". On a GPU it is microseconds between two CUDA events, one call a
sample, the L2 cache overwritten before it. That part has not run on a GPU yet.
"""

import ctypes
import datetime
import functools
import gc
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch

from bench.verdict import Row
from engine.run.provenance import device_name, git_state

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
SAMPLE_S = 0.02  # a shorter call is repeated until a sample lasts this long
# A shorter call is made once more before each sample: cold from the other's turn, find_quads takes 15 % longer, and the
# figure would depend on how often a call is repeated (0.70 of the peer's time once, 0.60 four times).
COLD_S = 0.1
BUDGET_S = 1.5  # of a row's rounds, if their number is not given
ROUNDS = (7, 20)  # least, most
GPU_ROUNDS = (7, 100)
L2_BYTES = 256 << 20  # more than any GPU's L2 cache
PACKAGES = ("torch", "triton", "numpy", "opencv-python-headless", "shapely", "pyclipper", "cleval", "timm")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
DALI_PREFIX = "nvidia-dali-cuda"
ISA = {"amx_tile": "amx", "avx512f": "avx512", "avx2": "avx2", "sve": "sve", "asimd": "neon"}  # best first


def measure(
    benchmark,
    bench: str,
    case: str,
    ours: Callable[[], object],
    peer: Callable[[], object] | None = None,
    *,
    peer_name: str = "",
    impl: str = "reference",
    dtype: str = "float32",
    images: int = 0,
    moved_bytes: int = 0,
    rounds: int | None = None,
    clock: str = "cpu",
    device: str = "cpu",
    planted: bool = False,
) -> Row:
    """Measures `ours` against `peer` and returns the row; see `bench/conftest.py` for the fixture that judges it.

    benchmark: pytest-benchmark's fixture; it drives the rounds, each of which is peer, then ours.
    ours, peer: do the same work once; called once more for warming up and ours once more for its memory.
    images, moved_bytes: of one call of ours, for the rate.
    rounds: as many as fit in BUDGET_S, within ROUNDS, if None.
    clock: on a CPU "cpu", or "wall" where the work is done or waited for in other processes.
    device: "cuda" times ours alone, in microseconds.
    planted: ours runs twice for each call that is counted, a planted slowdown of 2.
    """
    on_gpu = device.startswith("cuda")
    assert on_gpu or (peer is not None and peer_name), "a row on a CPU needs a peer: absolute times mean nothing there"
    timed = _cuda_seconds if on_gpu else functools.partial(_seconds, CLOCKS[clock])
    with _steady(one_thread=not on_gpu and clock == "cpu"):
        mine, others = _rounds(benchmark, timed, (ours, peer), rounds, on_gpu, 2 if planted else 1)
        peak = _cuda_peak_mib(ours, device) if on_gpu else _cpu_peak_mib(ours)
    figure = 1e6 * mine if on_gpu else mine / others
    fast, median, slow = np.quantile(1e3 * mine, (0.2, 0.5, 0.8)).tolist()
    p20, p50, p80 = np.quantile(figure, (0.2, 0.5, 0.8)).tolist()
    rate, rate_unit = _rate(images, moved_bytes, median / 1e3)
    row = Row(
        bench=bench,
        case=case,
        impl=impl,
        dtype=dtype,
        metric="cuda_us" if on_gpu else f"{clock}_ratio",
        unit="us" if on_gpu else f"of {peer_name}",
        p20=p20,
        p50=p50,
        p80=p80,
        n=len(mine),
        ms=(fast, median, slow),
        peer_ms=float(np.median(1e3 * others)) if peer else None,
        peak_mib=peak,
        rate=rate,
        rate_unit=rate_unit,
        **provenance(device),
    )
    benchmark.extra_info.update(p20=row.p20, p50=row.p50, p80=row.p80, unit=row.unit, rate=rate, rate_unit=rate_unit)
    return row


def _rounds(
    benchmark, timed: Callable, calls: tuple, rounds: int | None, on_gpu: bool, repeat: int
) -> list[np.ndarray]:
    """Seconds of one call of ours and of the peer, in every round; ours is made `repeat` times for each that counts."""
    once = [_warm(timed, call) if call else 0.0 for call in calls]
    assert min(once) > 0 or not calls[1], 'a call took no CPU time: give clock="wall" for what runs in other processes'
    loops = [1, 1] if on_gpu else [math.ceil(SAMPLE_S / seconds) for seconds in once]
    times: list[list[float]] = [[], []]

    def sample(which: int, repeat: int = 1) -> None:
        if once[which] < COLD_S:
            calls[which]()
        times[which].append(timed(calls[which], repeat * loops[which]) / loops[which])

    if rounds is None:
        round_s = sum((count + (seconds < COLD_S)) * seconds for count, seconds in zip(loops, once))
        least, most = GPU_ROUNDS if on_gpu else ROUNDS
        rounds = int(min(max(BUDGET_S / round_s, least), most))
    run_peer = functools.partial(sample, 1) if calls[1] else None
    benchmark.pedantic(sample, args=(0, repeat), setup=run_peer, rounds=rounds)
    return [np.array(values) for values in times]


def _rate(images: int, moved_bytes: int, seconds: float) -> tuple[float | None, str]:
    if images:
        return images / seconds, "images/s"
    return (moved_bytes / seconds / 1e9, "GB/s") if moved_bytes else (None, "")


def _warm(timed: Callable, call: Callable) -> float:
    """Seconds of a warm call. The first may compile or fill caches; a long one is not repeated for its time."""
    first = timed(call, 1)
    return first if first > 0.5 else min(timed(call, 1) for _ in range(3))


def _seconds(now: Callable[[], float], call: Callable, loops: int) -> float:
    """Seconds of `loops` calls in turn."""
    start = now()
    for _ in range(loops):
        call()
    return now() - start


def _cuda_seconds(call: Callable, loops: int) -> float:
    """Seconds between two events around `loops` calls, after the L2 cache was overwritten. Waits for the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda").zero_()
    start.record()
    for _ in range(loops):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@contextmanager
def _steady(one_thread: bool) -> Iterator[None]:
    """No garbage collection and, if asked, one thread of torch and OpenCV, which would wait for each other's core."""
    _keep_freed_memory()
    threads = torch.get_num_threads(), cv2.getNumThreads()
    if one_thread:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, as a process does whose activations are larger than a row's tensors.

    Else a call returns its 14 MB to the system, takes them again and pays for 3,500 page faults: a third of db_targets'
    time, or none of it, by what ran before. Elsewhere than with glibc nothing is told.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most it takes


def _cpu_peak_mib(call: Callable) -> float | None:
    """How far one call raises the process's resident memory above what it was, in MiB; None where Linux's are missing.

    The heap's free pages are given back first (glibc's malloc_trim) and the kernel's high-water mark is reset, so that
    memory which the call takes again is counted; what other libraries keep in pools of their own is not.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = _status_mib("VmRSS")
    call()
    return _status_mib("VmHWM") - before


def _status_mib(name: str) -> float:
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found, f"Linux tells no {name}"
    return int(found.group(1)) / 1024


def _cuda_peak_mib(call: Callable, device: str) -> float:
    """What torch's allocator holds at most during one call beyond what it held before, in MiB."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / (1 << 20)


@functools.cache
def provenance(device: str) -> dict:
    """The fields of a row that say where it was measured: device, versions, commit, dirty, date."""
    git = git_state(Path(__file__).parent) or {"commit": "no git", "dirty": False}
    names = [dist.name for dist in importlib.metadata.distributions() if dist.name.startswith(DALI_PREFIX)]
    versions = {"python": platform.python_version()}
    for name in sorted({*PACKAGES, *names}):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device.startswith("cuda"):
        versions |= _gpu_versions(device)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"device": device_slug(device), "versions": versions, "date": today, **git}


def _gpu_versions(device: str) -> dict[str, str]:
    """CUDA's version, and driver and power limit as nvidia-smi gives them for this very GPU."""
    uuid = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader", f"--id=GPU-{uuid}"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {"cuda": str(torch.version.cuda), "driver": "unknown"}
    driver, power = (part.strip() for part in text.split(","))
    return {"cuda": str(torch.version.cuda), "driver": driver, "power limit": power}


def device_slug(device: str = "cpu") -> str:
    """A device's name as a file name: nvidia-h200, intel-xeon-platinum-8481c-2-cores-amx.

    A virtual machine's processor may be called "Intel Xeon Processor" and nothing else, so cores and vectors are added.
    """
    name = device_name(torch.device(device))
    if not device.startswith("cuda"):
        try:
            words = set(Path("/proc/cpuinfo").read_text().split())
        except OSError:
            words = set()
        best = next((short for flag, short in ISA.items() if flag in words), "")
        name = f"{name.split('@')[0]} {len(os.sched_getaffinity(0))} cores {best}"
    name = re.sub(r"\((r|tm|c)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")
