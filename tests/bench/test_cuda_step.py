"""The lowered step: what a launch counts, by hand; what is a fault; HRNet's tail against the golden file."""

import json
import subprocess
import sys

import pytest

from bench import cuda_step
from bench.fake_gpu.device import Convolution, Record
from bench.fake_gpu.lowering import Cubin, Kernel, Lowered, only_moves
from pipelines.errors import UserError
from tests.conftest import ROOT
from tests.fake_gpu import run

GOLDEN = json.loads(cuda_step.GOLDEN.read_text())
NHWC = ["NHWC"] * 3


def mark(text: str) -> Record:
    return Record("mark", text, 0, False)


def convolution(*values) -> Record:
    return mark(f"convolution {json.dumps(Convolution(*values))}")


def test_a_convolution_moves_its_three_tensors_once_a_call():
    call = Convolution("forward", False, [2, 8, 12, 20], [16, 8, 3, 3], [2, 16, 6, 10], NHWC, 2, [])
    (forward,) = cuda_step.convolution_calls("forward", call)
    assert forward.flops == 2 * (2 * 16 * 6 * 10) * (8 * 3 * 3)
    assert forward.bytes == 2 * (2 * 8 * 12 * 20 + 16 * 8 * 9 + 2 * 16 * 6 * 10)
    back = list(cuda_step.convolution_calls("backward", call._replace(phase="backward", mask=[True, True, True])))
    assert [row.kind for row in back] == ["convolution dgrad", "convolution wgrad", "sum of a bias's gradient"]
    assert [(row.flops, row.bytes) for row in back[:2]] == [(forward.flops, forward.bytes)] * 2
    (up,) = cuda_step.convolution_calls(
        "forward", Convolution("forward", True, [1, 16, 4, 4], [16, 8, 2, 2], [1, 8, 8, 8], NHWC, 2, [])
    )
    assert up.flops == 2 * (16 * 4 * 4) * (8 * 2 * 2)


def test_a_step_is_counted_from_its_records():
    kernels = [Kernel("triton_poi_fused_0", 8.6e9, False, False), Kernel("triton_red_fused_1", 4.3e9, True, False)]
    records = [
        mark("> forward"),
        mark("generated 0"),
        Record("triton", "triton_poi_fused_0", 1, False),  # the real launch behind its mark
        mark("own _sums_kernel 4300"),
        mark("> backward"),
        mark("generated 1"),
        Record("kernel", "elementwise", 1, False),
        Record("memcpy", "H2D pinned", 100, False),
        Record("malloc", "", 100, False),
    ]
    made = list(cuda_step.calls(records, kernels))
    assert [(call.part, call.kind) for call in made] == [
        ("forward", "pointwise"),
        ("forward", "ours"),
        ("backward", "generated, with atomics"),
        ("backward", "torch's own"),
        ("backward", "copies and fills"),
    ]
    assert [call.seconds for call in made] == pytest.approx([2e-3, 1e-9, 1e-3, 0, 0])
    table = "\n".join(cuda_step.parts_table(made, 2))
    assert "| forward | pointwise | 1 | 0 | 4300.0 | 1.000 |" in table


SOURCE = """
@triton.jit
def triton_poi_fused_0(in_ptr0, out_ptr0, xnumel, XBLOCK : tl.constexpr):
    tmp0 = tl.load(in_ptr0 + (x1 + 1600*y0), xmask)
    tmp1 = tmp0.to(tl.float32)
    tl.store(out_ptr0 + (y2 + 64*x1 + 102400*y3), tmp1, xmask)

def get_args():
    tmp = tl.load(nothing + (0), None)
"""


def test_a_layout_copy_reads_and_writes_in_another_order_and_computes_nothing():
    assert only_moves(SOURCE)
    assert not only_moves(SOURCE.replace("y2 + 64*x1 + 102400*y3", "x1 + 1600*y0"))  # a cast
    assert not only_moves(SOURCE.replace("tmp0.to(tl.float32)", "tmp0 * 2"))


def test_every_fault_is_named_with_how_often():
    found = Lowered(
        kernels=[Kernel("triton_a", 1.0, True, False), Kernel("triton_b", 1.0, False, True)],
        breaks={"Unsupported: print": 2},
        cubins=[Cubin("triton_c", 40, 0), Cubin("triton_d", 255, 16)],
        records=[
            mark("generated 0"),
            mark("generated 0"),
            mark("generated 1"),
            convolution("forward", False, [1, 8, 4, 4], [8, 8, 3, 3], [1, 8, 4, 4], ["NCHW", "both", "NHWC"], 2, []),
            convolution("forward", False, [1, 8, 4, 4], [8, 8, 3, 3], [1, 8, 4, 4], NHWC, 2, []),
            Record("sync", "stream", 0, False),
            Record("memcpy", "H2D pageable", 12, False),
        ],
    )
    said = cuda_step.faults(found, list(cuda_step.calls(found.records, found.kernels)))
    assert said == {
        "atomics": ["2 x triton_a"],
        "layout copies": ["1 x triton_b"],
        "not NHWC": ["1 x forward [1, 8, 4, 4] x [8, 8, 3, 3]: NCHW, both, NHWC"],
        "spills": ["1 x triton_d: 16 bytes"],
        "graph breaks": ["2 x Unsupported: print"],
        "waits": ["1 x sync stream", "1 x memcpy H2D pageable, 12 bytes"],
    }


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(UserError, match="is no HRNet"):
        cuda_step.main(["--tail", "preset=demo"])
    with pytest.raises(UserError, match="what a replayed graph launches is not seen"):
        cuda_step.main(["speed.cuda_graphs=true"])
    with pytest.raises(UserError, match="give both"):
        cuda_step.main(["--write"])


def lowered(*arguments: str) -> dict:
    """The figures of the command, and whether it found faults."""
    command = [sys.executable, "-m", "bench.cuda_step", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=run.environment(), capture_output=True, text=True, check=False)
    said = json.loads(done.stdout[done.stdout.index("{") :])
    assert done.returncode == any(said["faults"].values()), done.stderr[-3000:]
    return said


def counts(said: dict) -> dict[str, int]:
    return {kind: sum(int(at.split()[0]) for at in places) for kind, places in said["faults"].items()}


def test_hrnets_tail_is_lowered_as_it_was():
    """`python -m bench.cuda_step --tail --cubins --write` renews the golden file after a change that is meant."""
    said = lowered("--tail")
    assert said["gb_per_image"] == pytest.approx(GOLDEN["gb_per_image"], rel=0.02)
    assert sum(said["launches"].values()) <= sum(GOLDEN["launches"].values())
    assert said["graphs"] == GOLDEN["graphs"] and said["peak_gib"] == pytest.approx(GOLDEN["peak_gib"], rel=0.02)
    assert counts(said) == counts(GOLDEN)


@pytest.mark.slow
def test_kernels_of_the_tail_do_not_spill():
    said = lowered("--tail", "--cubins")
    assert said["faults"]["spills"] == [] and 0 < said["largest_registers"] <= 255


@pytest.mark.slow
def test_hrnet_w44_is_above_its_floor_and_near_it():
    """The whole step of hrnet_w44_1280_fast: no wait, no graph break, and no more than 15 % above the floor."""
    said = lowered()
    assert said["faults"]["waits"] == said["faults"]["graph breaks"] == []
    assert 1 < said["ms_per_image"] / said["floor_ms_per_image"] < 1.15
    assert said["graphs"] == 2
