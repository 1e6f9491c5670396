"""Every Triton kernel checked against its reference and timed on the GPU at hand, as one table.

    python -m bench.gpu --out bench/results

writes DATE-DEVICE.json and .md: first the checks, then microseconds a batch of 16 pages of 1280 x 1280, GB/s, the ratio
to the byte floor (what a device-to-device copy needs for the same bytes on this device) and to eager PyTorch,
torch.compile and the named peers, all in one run. Without a CUDA device it says "not measured" and writes nothing.
"""

import argparse
import datetime
import importlib.util
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from bench.gpu_cases import Case, check_all, memory_of_loss, time_cases
from engine import cli

# Microseconds a batch of 16 x 1280 x 1280 on one H200: what must be reached, and what to reach for.
GOALS = {"db_targets": (200, 60), "db_loss": (400, 180), "find_quads": (500, 100)}


class Timing(NamedTuple):
    """One timed call."""

    op: str
    what: str  # "kernels", "kernels as a CUDA graph", or the peer
    us: float  # median
    floor_us: float | None  # bytes it must move at the bandwidth of a copy; None for peers


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


def run_case(case: Case, device: torch.device, rate: float) -> list[Timing]:
    """Times one case as it is launched and, where it can be captured, as one CUDA graph."""
    floor = 1e6 * case.bytes / rate if case.bytes else None
    timings = [Timing(case.op, case.what, clock(case.call, device) * case.scale, floor)]
    if case.graph:
        graphed = clock(case.call, device, graph=True) * case.scale
        timings.append(Timing(case.op, f"{case.what}, one CUDA graph", graphed, floor))
    return timings


def facts(device: torch.device) -> dict:
    """Device, versions, date, command and commit."""
    commit = "no git"
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or commit
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cupy": "installed" if importlib.util.find_spec("cupy") else "not installed, so not timed",
        "commit": commit,
        "command": "python -m bench.gpu",
    }


def markdown(report: dict) -> str:
    """The report as text."""
    head = ", ".join(f"{key} {value}" for key, value in report["facts"].items())
    lines = [f"# Kernels on {report['facts']['device']}", "", head + f", copy {report['copy_gb_s']:.0f} GB/s", ""]
    lines += ["| check | result |", "|---|---|"]
    lines += [f"| {name} | {'ok' if ok else 'WRONG'}: {detail} |" for name, ok, detail in report["checks"]]
    lines += ["", f"Extra memory of the loss: {report['loss_bytes_per_pixel']:.1f} bytes a pixel (at most 16).", ""]
    lines += ["CUDA graphs are timed with a warm L2 cache, everything else with a cold one.", ""]
    lines += ["| op | what | us | floor us | of the floor's rate | slower than the kernels | goal (reach) us |"]
    lines += ["|---|---|---|---|---|---|---|"]
    timings = [Timing(*row) for row in report["timings"]]
    for row in timings:
        ours = statistics.median(other.us for other in timings if other.op == row.op and other.what == "kernels")
        floor = ("-", "-") if row.floor_us is None else (f"{row.floor_us:.0f}", f"{row.floor_us / row.us:.0%}")
        ours_too = row.what in ("kernels", "kernels, one CUDA graph") and row.op in GOALS
        goal = "{} ({})".format(*GOALS[row.op]) if ours_too else "-"
        lines.append(f"| {row.op} | {row.what} | {row.us:.0f} | {' | '.join(floor)} | {row.us / ours:.2f} | {goal} |")
    return "\n".join(lines) + "\n"


def not_measured() -> str:
    """The table of a machine without a GPU."""
    lines = ["| op | goal (reach) us | measured |", "|---|---|---|"]
    lines += [f"| {op} | {goal} ({reach}) | not measured: no CUDA device |" for op, (goal, reach) in GOALS.items()]
    return "\n".join(lines)


def measure(device: torch.device, pages: int, side: int, keep: Callable, check_side: int = 640) -> dict:
    """Checks on pages of `check_side` first, then times; see the module docstring.

    `keep(report)` is called after every check and timing, so that a failure late in the run loses nothing before it.
    """
    report = {"facts": facts(device), "shape": [pages, side, side], "checks": [], "timings": []}
    for check in check_all(device, check_side):
        report["checks"].append(check)
        keep(report)
    report["loss_bytes_per_pixel"] = memory_of_loss(device, pages, side)
    rate = bandwidth(device, pages * side * side * 8)
    report["copy_gb_s"] = rate / 1e9
    for case in time_cases(device, pages, side):
        report["timings"] += [list(timing) for timing in run_case(case, device, rate)]
        keep(report)
    return report


def write(report: dict, folder: Path | None) -> None:
    """Says the newest line on stderr, and keeps what is there as JSON and, once there are times, as Markdown."""
    print(report["timings"][-1] if report["timings"] else report["checks"][-1], file=sys.stderr, flush=True)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{report['facts']['date']}-{report['facts']['device'].replace(' ', '-')}"
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    if report["timings"]:
        (folder / f"{name}.md").write_text(markdown(report))


def main(argv: list[str]) -> int:
    """Entry point; 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the JSON and the Markdown file")
    parser.add_argument("--pages", type=int, default=16)
    parser.add_argument("--side", type=int, default=1280)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(not_measured())
        return 0
    report = measure(torch.device("cuda"), args.pages, args.side, lambda found: write(found, args.out))
    print(markdown(report))
    return 0 if all(ok for _, ok, _ in report["checks"]) else 1


if __name__ == "__main__":
    cli.run(main)
