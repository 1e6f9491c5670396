"""The library by itself: what torch does on it is recorded, and what does not fit is said in one line."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from bench.fake_gpu import build, device
from bench.fake_gpu.device import Record
from pipelines.errors import UserError
from tests.fake_gpu import run

ONE = """
ordinary, pinned = torch.ones(1000), torch.ones(1000).pin_memory()
device.mark("uploads")
x, y = ordinary.to("cuda", non_blocking=True), pinned.to("cuda", non_blocking=True)
device.mark("downloads")
assert torch.equal(y.cpu(), pinned)
torch.empty(1000, pin_memory=True).copy_(y, non_blocking=True)
device.mark("kernels")
x.mul_(2), torch._foreach_add_([x, y], 1)
device.mark("waits")
x.sum().item(), torch.cuda.synchronize()
device.mark("capture")
graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
with torch.cuda.graph(graph, stream=stream):
    x.add_(1)
device.mark("replay")
graph.replay()
device.mark("end")
read = torch.cuda.get_device_properties(0)
print(read.name, torch.cuda.device_count(), torch.cuda.memory_allocated() >= 8000)
try:
    torch.empty(200 << 30, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    print("out of memory")
"""


@pytest.fixture(scope="module")
def one() -> tuple[dict[str, list[Record]], list[str]]:
    """What was recorded between each mark and the next, and what was printed."""
    records, said = run.recorded(ONE)
    parts: dict[str, list[Record]] = {}
    for record in records:
        if record.kind == "mark":
            parts[record.name] = []
        elif parts:
            parts[list(parts)[-1]].append(record)
    return parts, said.splitlines()


def test_it_is_an_h200_whose_memory_ends(one):
    assert one[1] == ["NVIDIA H200 1 True", "out of memory"]


def test_copies_tell_their_direction_and_the_hosts_memory(one):
    parts, _ = one
    copies = [(r.name, r.amount) for r in parts["uploads"] if r.kind == "memcpy"]
    assert copies == [("H2D pageable", 4000), ("H2D pinned", 4000)]
    assert [r.name for r in parts["downloads"] if r.kind == "memcpy"] == ["D2H pageable", "D2H pinned"]


def test_launches_have_names(one):
    first, second = (r.name for r in one[0]["kernels"] if r.kind == "kernel")
    assert "MulFunctor" in first and "multi_tensor_apply" in second


def test_what_waits_is_found(one):
    assert [r.name for r in one[0]["waits"] if r.kind == "sync"][-2:] == ["stream", "device"]
    assert len(device.waits(one[0]["downloads"])) >= 1 and device.waits(one[0]["kernels"]) == []


def test_a_captured_launch_is_no_launch_and_a_replay_is_one(one):
    parts, _ = one
    assert [r.captured for r in parts["capture"] if r.kind == "kernel"] == [True]
    assert [r.kind for r in parts["replay"] if r.kind in ("kernel", "graph")] == ["graph"]


def test_convolutions_and_products_have_torchs_layouts():
    code = """
import json
conv = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1).to("cuda")
up = torch.nn.ConvTranspose2d(16, 8, 2, stride=2).to("cuda")
for form in (torch.channels_last, torch.contiguous_format):
    x = torch.empty(2, 8, 12, 20, device="cuda").to(memory_format=form).requires_grad_()
    y = up(conv.to(memory_format=form)(x))
    y.sum().backward()
    print(tuple(y.shape), device.layout(y), device.layout(x.grad), device.layout(conv.weight.grad))
print(tuple((torch.ones(3, 4, device="cuda") @ torch.ones(4, 5, device="cuda")).shape))
"""
    records, said = run.recorded(code)
    shape = (2, 8, 12, 20)
    assert said.splitlines() == [f"{shape} NHWC NHWC NHWC", f"{shape} NCHW NCHW NCHW", "(3, 5)"]
    calls = [r.name.partition(" ")[2] for r in records if r.name.startswith("convolution")]
    first = device.Convolution(*json.loads(calls[0]))
    assert first == ("forward", False, [2, 8, 12, 20], [16, 8, 3, 3], [2, 16, 6, 10], ["NHWC"] * 3, 4, [])
    assert [json.loads(call)[0] for call in calls] == ["forward", "forward", "backward", "backward"] * 2


def test_two_devices():
    code = """
x = torch.arange(5.0, device="cuda:1")
print(torch.cuda.device_count(), x.device, torch.cuda.memory_allocated(0), torch.cuda.memory_allocated(1) > 0)
x.to("cuda:0")
try:
    torch.zeros(1, device="cuda:2")
except (RuntimeError, AssertionError) as error:
    print("no third")
"""
    records, said = run.recorded(code, devices=2)
    assert said.splitlines() == ["2 cuda:1 0 True", "no third"]
    assert ("memcpy", "D2D", 20) in [r[:3] for r in records]


@pytest.fixture
def own_sources(tmp_path, monkeypatch):
    """The sources in a folder where they may be changed, and a cache of their own."""
    run.environment()  # skips where there is no compiler
    folder = tmp_path / "sources"
    folder.mkdir()
    for source in build.SOURCES:
        shutil.copy(source, folder)
    monkeypatch.setattr(build, "SOURCES", tuple(folder / source.name for source in build.SOURCES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_a_function_that_torch_calls_and_the_library_has_not_is_named(own_sources):
    path = own_sources / "cuda.cpp"
    path.write_text(path.read_text().replace("NOTHING(cudaEventQuery)", ""))
    with pytest.raises(UserError, match="calls what the fake GPU has not: cudaEventQuery; add it to"):
        build.library()


def test_a_struct_that_torch_reads_otherwise_is_found(own_sources):
    path = own_sources / "abi.h"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("static_assert")]
    moved = "\n".join(kept).replace("int major, minor;", "int more[4], major, minor;").replace("rest[76]", "rest[72]")
    path.write_text(moved)
    command = [sys.executable, "-c", "from bench.fake_gpu import device; device.attach()"]
    done = subprocess.run(command, env=run.environment(), cwd=run.ROOT, capture_output=True, text=True, check=False)
    assert "UserError: torch" in done.stderr and "reads the fake GPU wrong" in done.stderr


def test_what_is_missing_is_said(own_sources, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="is built by no-such-compiler, which is not here"):
        build.library()
    for version, words in ((None, "has no CUDA"), ("12.8", "is for CUDA 12.8")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(UserError, match=words):
            build.library()
    with pytest.raises(UserError, match="no fake GPU under this process"):
        device.attach()
