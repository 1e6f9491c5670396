"""The kernels compiled ahead of time for three GPU generations, against the golden file."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

GOLDEN = ROOT / "bench" / "baselines" / "cubins.json"
ARCHS = ("sm_80", "sm_90", "sm_100")


@pytest.fixture(scope="module")
def found():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.cubins", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_table_that_the_command_prints(found):
    from bench import cubins

    rows = cubins.markdown(found["kernels"]).splitlines()[-len(found["kernels"]) :]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in found["kernels"]]
    assert all(
        row.count("|") == 3 + len(ARCHS) and f"| {kernel['warps']} |" in row
        for row, kernel in zip(rows, found["kernels"].values(), strict=True)
    )


def test_no_kernel_spills(found):
    for name, row in found["kernels"].items():
        assert [row[arch]["spills"] for arch in ARCHS] == [0, 0, 0], name


def test_kernels_that_read_whole_maps_load_16_bytes_a_lane(found):
    streams = ("sums_kernel", "gradient_kernel", "binary_kernel", "pack_kernel [bf16", "pack_kernel [fp32")
    rows = [row for name, row in found["kernels"].items() if name.startswith(streams)]
    assert len(rows) >= 10
    assert {row[arch]["load"] for row in rows for arch in ARCHS} == {16}


def test_norms_load_16_bytes_a_lane_where_the_channels_allow(found):
    """The moments read nothing but the map; 44 channels of 2 bytes are 88 bytes a pixel, a multiple of 8."""
    rows = {name: row for name, row in found["kernels"].items() if name.startswith("norm_moments_kernel")}
    assert len(rows) == 3
    for name, row in rows.items():
        assert {row[arch]["load"] for arch in ARCHS} == {8 if "44 channels" in name else 16}, name


def test_every_kernel_of_the_package_is_compiled(found):
    """A kernel that no public function starts at full size would escape the table."""
    started = {name.split(" ")[0] for name in found["kernels"]}
    for path in (ROOT / "kernels").rglob("*.py"):
        for kernel in re.findall(r"runtime\.launch\(\s*(\w+)", path.read_text()):
            assert kernel.removeprefix("_") in started, f"{kernel} in {path.name}"


def test_the_table_is_the_golden_one(found):
    """`python -m bench.cubins --write` renews it after a change that is meant."""
    golden = json.loads(GOLDEN.read_text())
    assert found["kernels"].keys() == golden["kernels"].keys()
    for name, row in found["kernels"].items():
        for arch in ARCHS:
            assert row[arch]["load"] == golden["kernels"][name][arch]["load"], f"{name}, {arch}: load width"
        if found["triton"] == golden["triton"]:
            assert row == golden["kernels"][name], name
