"""The training step as Inductor lowers it for an H200, counted without a GPU: bytes, launches, what must not be there.

    python -m bench.cuda_step [preset=hrnet_w44_1280_fast] [section.key=value ...]
    python -m bench.cuda_step --tail            HRNet's last module with decoder and head only: a minute instead of four
    python -m bench.cuda_step --tail --cubins --write     and keeps it as bench/baselines/cuda_step.json, for the tests

Every figure is counted, none is a time: a call takes max(FLOPs / 790 TFLOP/s, bytes / 4.3 TB/s), as `bench.cost_model`
has it. A generated kernel's bytes are Inductor's own count (each buffer once), a convolution's are its three tensors,
one of ours has those of its arguments; of torch's own kernels (optimizer, clipping) launches are counted, and no bytes.
So the images/s are more than a GPU can give, and useful against each other and against `bench.roofline`'s floor.

Exits with 1 where the steady step has an atomic in a generated kernel, a layout copy, a convolution that is not NHWC, a
spill, a graph break, or makes the host wait. `--cubins` compiles the kernels too, for registers and spills.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import collections
import dataclasses
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from bench.cost_model import seconds, step_work
from bench.fake_gpu import build, device
from bench.fake_gpu.device import Convolution, Record
from bench.fake_gpu.lowering import Kernel, Lowered, steady_step, steady_tail
from bench.roofline import GPUS, table
from engine import cli
from engine.config import Config, changed
from engine.config.load import load_config
from engine.profiling.flops import meta_model, trace
from pipelines.errors import UserError

GOLDEN = Path(__file__).parent / "baselines" / "cuda_step.json"
GPU = GPUS["h200"]
SHORT_S = 3e-6  # about the least that a launch takes
FAULTS = ("atomics", "layout copies", "not NHWC", "spills", "graph breaks", "waits")


class Call(NamedTuple):
    """One launch of the steady step."""

    part: str  # of the step: forward, backward, optimizer, ...
    kind: str
    name: str
    flops: int
    bytes: float

    @property
    def seconds(self) -> float:
        """The least it can take."""
        return max(self.flops / GPU.flops, self.bytes / GPU.bandwidth)


@dataclasses.dataclass
class Figures:
    """What is printed and kept, of one step."""

    config: list[str]
    gb_per_image: float
    ms_per_image: float
    images_per_second: float
    launches: dict[str, int]  # by kind
    short_launches: int
    peak_gib: float
    graphs: int
    largest_registers: int  # 0: nothing was compiled
    median_registers: int
    faults: dict[str, list[str]]  # FAULTS: what is there that must not be
    floor_ms_per_image: float = 0.0  # 0: of no whole step


def convolution_calls(part: str, call: Convolution) -> Iterator[Call]:
    """Forward; or dgrad, wgrad and the bias's sum, those that were asked for."""
    reduced = math.prod(call.weight[1:])  # multiply-adds of an output, or of an input of a transposed one
    flops = 2 * reduced * math.prod(call.image if call.transposed else call.output)
    moved = call.itemsize * sum(math.prod(shape) for shape in (call.image, call.weight, call.output))
    name = f"{call.image} x {call.weight}" + (" transposed" if call.transposed else "")
    if call.phase == "forward":
        yield Call(part, "convolution forward", name, flops, moved)
        return
    for phase, wanted in zip(("dgrad", "wgrad"), call.mask):
        if wanted:
            yield Call(part, f"convolution {phase}", name, flops, moved)
    if call.mask[2]:
        yield Call(part, "sum of a bias's gradient", name, 0, call.itemsize * math.prod(call.output))


def kernel_kind(kernel: Kernel) -> str:
    """What a generated kernel is, for the table."""
    if kernel.atomic:
        return "generated, with atomics"
    if kernel.moved:
        return "layout copies"
    return "reductions" if kernel.name.startswith(("triton_red", "triton_per")) else "pointwise"


def calls(records: list[Record], kernels: list[Kernel]) -> Iterator[Call]:
    """The launches of a step. What a real launch records behind its mark is the mark's."""
    part = "between"
    for record in records:
        word, _, rest = record.name.partition(" ")
        if record.kind == "kernel":
            yield Call(part, "torch's own", record.name, 0, 0.0)
        elif record.kind in ("memcpy", "memset", "graph"):
            yield Call(part, "copies and fills" if record.kind != "graph" else "graphs", record.name, 0, 0.0)
        elif record.kind != "mark":
            continue
        elif word == ">":
            part = rest
        elif word == "generated":
            kernel = kernels[int(rest)]
            yield Call(part, kernel_kind(kernel), kernel.name, 0, kernel.bytes)
        elif word == "own":
            name, moved = rest.split()
            yield Call(part, "ours", name, 0, float(moved))
        elif word == "product":
            flops, moved = rest.split()
            yield Call(part, "product", "mm", int(flops), float(moved))
        elif word == "convolution":
            yield from convolution_calls(part, Convolution(*json.loads(rest)))


def faults(found: Lowered, made: list[Call]) -> dict[str, list[str]]:
    """What must not be in a steady step, each fault with what it is at and how often."""
    strange = []
    for record in found.records:
        if record.kind == "mark" and record.name.startswith("convolution "):
            call = Convolution(*json.loads(record.name.partition(" ")[2]))
            if not set(call.layouts) <= {"NHWC", "both"}:
                strange.append(f"{call.phase} {call.image} x {call.weight}: {', '.join(call.layouts)}")
    listed = {
        "atomics": [call.name for call in made if call.kind == "generated, with atomics"],
        "layout copies": [call.name for call in made if call.kind == "layout copies"],
        "not NHWC": strange,
        "spills": [f"{cubin.name}: {cubin.spilled} bytes" for cubin in found.cubins if cubin.spilled],
        "graph breaks": [reason for reason, count in found.breaks.items() for _ in range(count)],
        "waits": device.waits(found.records),
    }
    counted = {kind: collections.Counter(names) for kind, names in listed.items()}
    return {kind: [f"{n} x {name}" for name, n in counts.items()] for kind, counts in counted.items()}


def floor_ms(config: Config) -> float:
    """Milliseconds an image of `bench.roofline`'s floor."""
    model = meta_model(config)
    height, width = config.data.image_size
    parameters = sum(p.numel() for p in model.parameters())
    work = step_work(trace(model, height, width), parameters, height * width)
    return 1e3 * sum(seconds(row, GPU.flops, GPU.bandwidth, config.data.batch_size) for row in work)


def figures(found: Lowered, made: list[Call], config: Config, settings: list[str]) -> Figures:
    """The step's sums."""
    pages, whole = config.data.batch_size, sum(call.seconds for call in made)
    registers = [cubin.registers for cubin in found.cubins]
    kinds = collections.Counter("convolutions" if "convolution" in call.kind else call.kind for call in made)
    return Figures(
        config=settings,
        gb_per_image=sum(call.bytes for call in made) / pages / 1e9,
        ms_per_image=1e3 * whole / pages,
        images_per_second=pages / whole,
        launches=dict(sorted(kinds.items())),
        short_launches=sum(call.seconds < SHORT_S for call in made),
        peak_gib=found.peak_bytes / 2**30,
        graphs=found.graphs,
        largest_registers=max(registers, default=0),
        median_registers=int(statistics.median(registers)) if registers else 0,
        faults=faults(found, made),
    )


def parts_table(made: list[Call], pages: int) -> list[str]:
    """Calls by part of the step and kind."""
    groups: dict[tuple[str, str], list[Call]] = {}
    for call in made:
        groups.setdefault((call.part, call.kind), []).append(call)
    rows = []
    for (part, kind), group in groups.items():
        moved, least = sum(call.bytes for call in group), sum(call.seconds for call in group)
        short = sum(call.seconds < SHORT_S for call in group)
        rows.append((part, kind, len(group), short, f"{moved / pages / 1e6:.1f}", f"{1e3 * least / pages:.3f}"))
    return table(["part", "launches of", "launches", "under 3 us", "MB an image", "counted ms an image"], rows)


def sums_table(sums: Figures) -> list[str]:
    """The step as one column."""
    rows: list[tuple[str, str]] = [
        ("GB an image", f"{sums.gb_per_image:.2f}"),
        ("ms an image", f"{sums.ms_per_image:.2f} ({sums.images_per_second:.1f} images/s)"),
        ("launches", f"{sum(sums.launches.values())}, of them under 3 us {sums.short_launches}"),
        ("peak memory, without cuDNN's workspaces", f"{sums.peak_gib:.1f} GiB"),
        ("graphs", str(sums.graphs)),
        *((kind, f"**{sum(int(row.split()[0]) for row in at)}**" if at else "0") for kind, at in sums.faults.items()),
    ]
    if sums.floor_ms_per_image:
        rows.insert(2, ("floor, bench.roofline", f"{sums.floor_ms_per_image:.2f} ms an image"))
    if sums.largest_registers:
        rows.append(("registers a lane", f"{sums.largest_registers} at most, median {sums.median_registers}"))
    else:
        rows[-3] = ("spills", "not looked for: --cubins compiles the kernels")
    return table(["counted", "a step"], rows)


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_step", description=__doc__.split("\n\n")[0])
    parser.add_argument("settings", nargs="*", help="preset=NAME, section.key=value; preset=hrnet_w44_1280_fast first")
    parser.add_argument("--tail", action="store_true", help="only HRNet's last module, decoder and head")
    parser.add_argument("--cubins", action="store_true", help="compile the kernels too: registers and spills")
    parser.add_argument("--write", action="store_true", help=f"keep them as {GOLDEN.name}; needs --tail --cubins")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    args = parser.parse_intermixed_args(argv)
    if args.write and not (args.tail and args.cubins):
        raise UserError("--write: the golden file is of --tail --cubins; give both")
    settings = [*([] if any(s.startswith("preset=") for s in args.settings) else ["preset=hrnet_w44_1280_fast"])]
    config, _ = load_config([*settings, *args.settings, "trainer.compile=true"])
    if args.tail and not config.models.encoder.name.startswith("hrnet"):
        raise UserError(f"--tail: models.encoder.name={config.models.encoder.name} is no HRNet")
    if config.speed.cuda_graphs == "true":
        raise UserError("speed.cuda_graphs=true: what a replayed graph launches is not seen; count the step without it")
    config = changed(config, {"speed.cuda_graphs": "false"})  # which auto chooses for few pages
    if not device.present():
        command = [sys.executable, "-m", "bench.cuda_step", *argv]
        return subprocess.run(command, env=build.environment(), check=False).returncode
    device.attach()
    found = (steady_tail if args.tail else steady_step)(config, args.cubins)
    made = list(calls(found.records, found.kernels))
    sums = figures(found, made, config, args.settings)
    if not args.tail:
        sums.floor_ms_per_image = floor_ms(config)
    show(sums, made, config, args)
    return 1 if any(sums.faults.values()) else 0


def show(sums: Figures, made: list[Call], config: Config, args: argparse.Namespace) -> None:
    """Prints what was counted, and keeps it where that was asked for."""
    said = json.dumps({"torch": torch.__version__, **dataclasses.asdict(sums)}, indent=1)
    if args.write:
        GOLDEN.write_text(said + "\n")
    if args.json:
        print(said)
        return
    what = f"{config.models.encoder.name}{', its tail' if args.tail else ''} at {config.data.image_size}"
    print(f"# The training step lowered for an H200, counted: {what}, batch {config.data.batch_size}\n")
    print("\n".join([*parts_table(made, config.data.batch_size), *sums_table(sums)]))
    for kind, at in sums.faults.items():
        for line in at:
            print(f"{kind}: {line}")


if __name__ == "__main__":
    cli.run(main)
