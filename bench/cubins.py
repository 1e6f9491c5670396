"""What the Triton kernels become on three GPU generations: registers, spills, shared memory, load width. Needs no GPU.

    python -m bench.cubins                prints the table
    python -m bench.cubins --write        and keeps it as bench/baselines/cubins.json, the golden file of the tests

The public functions are called on empty tensors of the full size (16 pages of 1280 x 1280) with the launches recorded
instead of started; every recorded kernel is compiled for sm_80, sm_90 and sm_100 with the types, constants and
divisibilities of its real arguments, and ptxas reports what it uses.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from engine import cli
from kernels import runtime
from kernels.components import find_quads, label
from kernels.db_loss import binary_map, db_loss
from kernels.db_targets import DBTargets, db_targets
from kernels.norm_relu import norm_relu
from pipelines.errors import UserError

CAPABILITIES = (80, 90, 100)
GOLDEN = Path(__file__).parent / "baselines" / "cubins.json"
PAGES, SIDE, POLYGONS = 16, 1280, 1600
PROCESSORS = 132  # of an H100 or H200: some kernels have the number of programs as a constant
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.bool: "i1",
}


class Launch(NamedTuple):
    """One kernel as it was started."""

    case: str
    kernel: triton.JITFunction
    args: tuple
    num_warps: int
    constants: dict


def record() -> list[Launch]:
    """The launches of every public function on tensors of the full size; nothing is computed."""
    launches: list[Launch] = []
    saved = runtime.launch, runtime.use_triton, runtime.num_programs
    try:
        runtime.use_triton = lambda op, implementation, tensor, dtypes=(): True
        runtime.num_programs = lambda device, per_processor, most: min(PROCESSORS * per_processor, most)
        for case, call in _cases():

            def launch(kernel, grid, *args, num_warps, case=case, **constants):
                launches.append(Launch(case, kernel, args, num_warps, constants))

            runtime.launch = launch
            call()
    finally:
        runtime.launch, runtime.use_triton, runtime.num_programs = saved
    return launches


def _cases() -> Iterator[tuple[str, Callable]]:
    shape = (PAGES, SIDE, SIDE)
    offsets = torch.arange(POLYGONS + 1) * 4
    polygons = (torch.empty(4 * POLYGONS, 2), offsets, torch.arange(PAGES + 1) * (POLYGONS // PAGES))
    ignore = torch.empty(POLYGONS, dtype=torch.bool)
    yield "paper", lambda: db_targets(*polygons, ignore, height=SIDE, width=SIDE)
    yield "baseline", lambda: db_targets(*polygons, ignore, height=SIDE, width=SIDE, mode="baseline")
    masks = [torch.empty(shape, dtype=torch.uint8) for _ in range(3)]
    targets = DBTargets(masks[0], masks[1], torch.empty(shape, dtype=torch.bfloat16), masks[2])
    for dtype in (torch.bfloat16, torch.float32):
        for mode in ("paper", "baseline"):
            if (dtype, mode) != (torch.float32, "baseline"):
                x, y = (torch.empty(shape, dtype=dtype, requires_grad=True) for _ in range(2))
                case = f"{TYPES[dtype]} {mode}"
                yield case, lambda x=x, y=y, mode=mode: db_loss(x, y, targets, mode=mode).total.backward()
    wide = torch.empty(PAGES, 2, SIDE, SIDE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    wide.requires_grad_()
    yield "bf16 channels_last", lambda: db_loss(wide[:, 0], wide[:, 1], targets).total.backward()
    yield "bf16", lambda: binary_map(wide.detach()[:, 0].contiguous(), wide.detach()[:, 1].contiguous())
    for dtype in (torch.bfloat16, torch.float32):
        prob = torch.empty(shape, dtype=dtype)
        yield f"{TYPES[dtype]} fast", lambda prob=prob: find_quads(prob)
    yield "fp32 slow", lambda: find_quads(prob, score_mode="slow")
    yield "mask", lambda: label(torch.empty(shape, dtype=torch.bool))
    yield from _norm_cases()


def _norm_cases() -> Iterator[tuple[str, Callable]]:
    """norm_relu, forward and backward, on the first branch of HRNet-W44: padded to 48 channels, and as it is."""

    def maps(dtype: torch.dtype, channels: int) -> Iterator[torch.Tensor]:
        shape = (PAGES, channels, SIDE // 4, SIDE // 4)
        while True:
            yield torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)

    def step(dtype: torch.dtype, channels: int, add: bool) -> None:
        y, dz, residual = itertools.islice(maps(dtype, channels), 3)
        weight = torch.empty(channels)
        z, _, _ = norm_relu(y.requires_grad_(), weight, weight, residual if add else None, eps=1e-5)
        z.backward(dz)

    def two_gradients() -> None:
        y, z, dz, more = itertools.islice(maps(torch.bfloat16, 48), 4)
        torch.ops.dbnet_engine.norm_add_relu_gradient(dz, y, z, *[torch.empty(48)] * 4, 1e-5, True, more)

    for dtype, channels, add in (
        (torch.bfloat16, 48, False),
        (torch.bfloat16, 48, True),
        (torch.bfloat16, 44, False),
        (torch.float32, 48, True),
    ):
        case = f"{TYPES[dtype]} {channels} channels" + (", residual" if add else "")
        yield case, lambda dtype=dtype, channels=channels, add=add: step(dtype, channels, add)
    yield "bf16 48 channels, two gradients", two_gradients


def source(launch: Launch) -> ASTSource:
    """The kernel with the signature that Triton's launcher would give these arguments."""
    names = [parameter.name for parameter in launch.kernel.params]
    values = dict(zip(names, launch.args)) | launch.constants
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = values.get(parameter.name, parameter.default)
        divisible, special = False, not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], divisible = "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
        elif isinstance(value, int):
            signature[parameter.name], divisible = "i32" if abs(value) < 2**31 else "i64", special and value % 16 == 0
        else:
            signature[parameter.name] = parameter.annotation_type or "fp32"
        if divisible:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def compiled(launch: Launch, capability: int) -> dict:
    """Registers, spilled bytes, stack bytes, shared bytes and the widest global load in bytes of one kernel."""
    options = {"num_warps": launch.num_warps, "enable_fp_fusion": False}
    options |= {name: launch.constants[name] for name in ("maxnreg",) if name in launch.constants}
    made = triton.compile(source(launch), target=GPUTarget("cuda", capability, 32), options=options)
    said = ptxas_report(made.asm["ptx"], capability)
    used, frame = re.search(r"Used (\d+) registers", said), re.search(STACK, said)
    assert used and frame, said
    stack, stores, loads = map(int, frame.groups())
    return {
        "registers": int(used.group(1)),
        "spills": stores + loads,
        "stack": stack,
        "shared": made.metadata.shared,
        "load": max((_bytes(found) for found in re.findall(r"\bld\.global(\S*)", made.asm["ptx"])), default=0),
    }


STACK = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"


def ptxas_report(ptx: str, capability: int) -> str:
    """What `ptxas -v` says of one PTX text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        gpu = f"--gpu-name={sm_arch_from_capability(capability)}"
        command = [get_ptxas(capability).path, "-v", "--fmad=false", gpu, str(path), "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _bytes(suffix: str) -> int:
    """Bytes of one lane's load; `.v4.b32` -> 16."""
    vector, width = re.search(r"\.v(\d)", suffix), re.search(r"\.[bsuf](\d+)", suffix)
    assert width, suffix
    return (int(vector.group(1)) if vector else 1) * int(width.group(1)) // 8


def table() -> dict[str, dict]:
    """{"kernel [case]": {"sm_80": {...}, "warps": n, ...}} of every different kernel, in the order of their start."""
    rows: dict[str, dict] = {}
    seen = set()
    for launch in record():
        made = source(launch)
        key = (made.name, str(made.signature), str(made.constants), str(made.attrs), launch.num_warps)
        if key in seen:
            continue
        seen.add(key)
        name = f"{made.name.removeprefix('_')} [{launch.case}]"
        if name in rows:
            name += f" {sum(other.startswith(name) for other in rows) + 1}"
        rows[name] = {"warps": launch.num_warps} | {f"sm_{c}": compiled(launch, c) for c in CAPABILITIES}
    return rows


def markdown(rows: dict[str, dict]) -> str:
    """The table; a cell is registers / shared bytes / widest load in bytes, and says so when there are spills."""
    lines = [
        "Cells: registers per lane / bytes of shared memory / bytes of the widest global load of a lane.",
        "",
        "| kernel [first started by] | warps | " + " | ".join(f"sm_{c}" for c in CAPABILITIES) + " |",
        "|---|---|" + "---|" * len(CAPABILITIES),
    ]
    for name, row in rows.items():
        cells = [row[f"sm_{c}"] for c in CAPABILITIES]
        texts = [
            f"{c['registers']} / {c['shared']} / {c['load']}" + (f", spills {c['spills']}" if c["spills"] else "")
            for c in cells
        ]
        lines.append(f"| {name} | {row['warps']} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.cubins", description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"keep the table as {GOLDEN.name}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args(argv)
    if runtime.INTERPRETED:
        raise UserError("bench.cubins compiles: start it without TRITON_INTERPRET")
    found = {"triton": triton.__version__, "kernels": table()}
    print(json.dumps(found) if args.json else markdown(found["kernels"]))
    if args.write:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
