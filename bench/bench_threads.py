"""Threads that soon sleep while they wait, as `import engine` has them, against OpenMP's spinning.

Both sides are processes with a thread a core that train a few small convolutions: many short parallel regions, as in a
detector with a small encoder. They work in turn, alone and beside two busy loops a core (with one a
core spinning is 1 to 10 times slower, as it happens); by the wall clock.
"""

if __name__ == "__main__":
    raise SystemExit("error: rows for pytest: run `pytest bench/bench_threads.py`")


import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from engine import SHORT_SPIN

PAGES, STEPS = 2, 3
WORKER = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
layers = [torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU()] * 12
net = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
pages = torch.randn(int(sys.argv[2]), 16, 48, 48).to(memory_format=torch.channels_last)
for line in sys.stdin:
    for _ in range(int(line)):
        net(pages).square().mean().backward()
    print(flush=True)
"""
CORES = len(os.sched_getaffinity(0))


@contextlib.contextmanager
def worker(**policy: str) -> Iterator[Callable[[], None]]:
    """A process with its own OpenMP; the call trains STEPS steps in it."""
    own = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in own} | policy
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(CORES), str(PAGES)], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    asked, done = process.stdin, process.stdout

    def work() -> None:
        asked.write(f"{STEPS}\n")
        asked.flush()
        assert done.readline() == "\n", "the worker has died"

    with process:
        try:
            yield work
        finally:
            process.kill()


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but take a core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.skipif(CORES < 2, reason="one thread waits for no other")
@pytest.mark.parametrize("others", [0, 2 * CORES], ids=["quiet", "loaded"])
def test_waiting_threads(measure, others):
    case = f"two busy loops a core beside {CORES} threads" if others else f"{CORES} threads alone"
    with worker(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT=SHORT_SPIN) as ours, worker() as peer:
        ours(), peer()  # torch is loaded
        with busy(others):
            row = measure(
                "waiting_threads", case, ours, peer, peer_name="spinning", impl="OpenMP",
                images=PAGES * STEPS, clock="wall", rounds=7,
            )  # fmt: skip
    assert row.times_faster >= (3 if others else 0.9)
