"""Processes that see a fake GPU: it must be there before torch is loaded.

    records, stdout = run.recorded("import torch; torch.zeros(3, device='cuda').cpu()")
    stdout = run.emulated("engine.train", "preset=demo", ",", "engine.evaluate", "checkpoint=...")

A test is skipped, with the reason, where the fake GPU cannot be built.
"""

import json
import subprocess
import sys

import pytest

from bench.fake_gpu import build
from bench.fake_gpu.device import Record
from pipelines.errors import UserError
from tests.conftest import ROOT

ATTACHED = """
import torch
from bench.fake_gpu import device
device.attach()
"""
RECORDED = """
import json
with device.recorded() as records:
    exec(compile({code!r}, "the test's code", "exec"))
print()
print(json.dumps(records))
"""


def environment(devices: int = 1) -> dict[str, str]:
    """For processes that see fake GPUs; skips the test where there can be none."""
    try:
        made = build.environment(devices)
    except UserError as error:
        pytest.skip(str(error))
    made.pop("TRITON_INTERPRET", None)
    return made | {"PYTHONPATH": str(ROOT)}


def _run(command: list[str], environment: dict[str, str], timeout: float) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def python(code: str, devices: int = 1, timeout: float = 600) -> str:
    """Runs Python code on a fake GPU: what it printed."""
    return _run(["-c", ATTACHED + code], environment(devices), timeout)


def recorded(code: str, devices: int = 1, timeout: float = 600) -> tuple[list[Record], str]:
    """Runs Python code on a fake GPU: what was asked of it meanwhile, and what the code printed."""
    said = python(RECORDED.format(code=code), devices, timeout)
    *printed, last = said.splitlines()
    return [Record(*row) for row in json.loads(last)], "\n".join(printed).strip()


def emulated(*commands: str, ranks: int = 0, timeout: float = 600) -> str:
    """Runs commands of the engine, parted by ",", on emulated GPUs, with `ranks` by torchrun: what they printed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks else []
    interpreted = environment(max(ranks, 1)) | {"TRITON_INTERPRET": "1", "FAKE_GPU_PROCESSORS": "1"}
    return _run([*torchrun, "-m", "tests.fake_gpu.emulate", *commands], interpreted, timeout)
