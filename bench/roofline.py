"""The cost model of the training step: bytes and FLOPs of every layer, the floor they set, what scaling will cost.

    python -m bench.roofline [--gpu h200|h100|a100|rtx3090] [--preset NAME] [--batch N] [--layers]

The floor is the sum over all calls of max(FLOPs / matrix peak, bytes / bandwidth); what each call must read and write
is derived in `bench.cost_model`. It needs no GPU and is no prediction: no real kernel reaches it, and it knows nothing
of tiles and alignment. Rates that `bench.gpu` measured are printed beside it.

HRNet-W44 at 1280 on an H200, batch 16: 9.13 ms or 110 images/s. The encoder's convolutions take 4.02 ms of it, what
lies between them 4.04 (6.8 + 13.3 bytes an element of their outputs), decoder and head 1.0, all else 0.07.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from bench.cost_model import ITEM, Work, is_product, kept_bytes, pad, seconds, step_work
from engine import cli
from engine.config import Config
from engine.config.load import load_config
from engine.profiling.flops import TRAINING, Layer, meta_model, trace
from pipelines.errors import UserError

RESULTS = Path(__file__).parent / "results"


class Gpu(NamedTuple):
    """A GPU's limits: bf16 matrix FLOP/s, bytes/s, bytes of memory, and where the figures are from."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    source: str


GPUS = {
    "h200": Gpu("H200", 790e12, 4.3e12, 141e9, "both measured on one H200 (large bf16 product, copy)"),
    "h100": Gpu("H100 SXM", 989e12, 3.35e12, 80e9, "data sheet, not measured: no product or copy reaches it"),
    "a100": Gpu("A100 SXM 80 GB", 312e12, 2.04e12, 80e9, "data sheet, not measured: no product or copy reaches it"),
    "rtx3090": Gpu("RTX 3090", 71e12, 0.936e12, 24e9, "data sheet, not measured: no product or copy reaches it"),
}


class Link(NamedTuple):
    """GPUs joined for training: how many, and the bus bandwidth (nccl-tests' busbw) of a large all-reduce."""

    what: str
    gpus: int
    bandwidth: float
    source: str


LINKS = (
    Link("one node, NVLink 4", 8, 200e9, "estimated at 25 MB buckets; 475 at 4 GB, nccl-tests#272"),
    Link("8 nodes, 8 x 400 Gb/s each", 64, 320e9, "seen on 4 nodes, nccl#1221"),
    Link("8 nodes, 4 x 200 Gb/s each", 64, 91e9, "seen on 2 nodes, nccl-tests#100"),
    Link("8 nodes, 100 Gb/s Ethernet each", 64, 11e9, "line rate less 12 %"),
)
BUCKET_BYTES = 25e6  # DDP's: the last one has no computation left to hide behind
JITTER = 0.005  # standard deviation of a rank's step; the slowest rank decides
STATE_BYTES = {"weights": 4, "gradients": 4, "Adam's moments": 8, "EMA": 4, "bf16 copies of the weights": 2}


class Model(NamedTuple):
    """What the tables are made of."""

    config: Config
    layers: list[Layer]
    parameters: int
    pixels: int
    saved: int  # bytes of one image that eager autograd keeps, in bf16

    def work(self) -> list[Work]:
        """All of a step."""
        return step_work(self.layers, self.parameters, self.pixels)


def load(preset: str) -> Model:
    """The detector of a preset, traced; UserError where there is none of that name."""
    config, _ = load_config([f"preset={preset}"])
    model = meta_model(config)
    height, width = config.data.image_size
    layers = trace(model, height, width)
    parameters = sum(p.numel() for p in model.parameters())
    return Model(config, layers, parameters, height * width, saved_bytes(model.bfloat16(), height, width))


def saved_bytes(model: nn.Module, height: int, width: int) -> int:
    """Bytes of activations that eager autograd keeps for the backward pass of one image, in the model's dtype.

    Tensors that share memory count once; parameters and buffers do not count. The model must be on the meta device.
    """
    image = torch.empty(1, 3, height, width, device="meta", dtype=next(model.parameters()).dtype)
    fixed = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in fixed:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(image)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def table(head: Iterable, rows: Iterable[Iterable]) -> list[str]:
    """A Markdown table as lines."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines] + [""]


def floor_seconds(model: Model, gpu: Gpu, batch: int) -> float:
    """Least seconds of one image of a step."""
    return sum(seconds(row, gpu.flops, gpu.bandwidth, batch) for row in model.work())


def layer_table(model: Model, gpu: Gpu, batch: int, every: bool) -> list[str]:
    """Calls summed by kind and height of their maps, or every layer (`every`): FLOPs, bytes, time of each phase."""
    groups: dict[tuple, list[Work]] = {}
    for row in model.work():
        if row.phase not in ("page", "step"):
            groups.setdefault((row.name, row.kind, row.height) if every else (row.kind, row.height), []).append(row)
    head = ["layer"] * every + ["kind", "map", "calls", "GFLOP", "MB", "forward us", "backward us", "FLOP-bound"]
    rows = []
    for key, found in (
        groups.items() if every else sorted(groups.items(), key=lambda group: (group[0][0], -group[0][1]))
    ):
        times = [1e6 * seconds(row, gpu.flops, gpu.bandwidth, batch) for row in found]
        forward = sum(us for us, row in zip(times, found) if row.phase == "forward")
        bound = sum(us for us, row in zip(times, found) if us <= 1e6 * row.flops / gpu.flops)
        flops, moved = sum(row.flops for row in found), sum(row.bytes + row.batch_bytes / batch for row in found)
        cells = (*key, len(found), f"{flops / 1e9:.1f}", f"{moved / 1e6:.1f}", f"{forward:.1f}")
        rows.append((*cells, f"{sum(times) - forward:.1f}", f"{bound / sum(times):.0%}"))
    return ["For one image, of forward, dgrad and wgrad together:", "", *table(head, rows)]


def step_table(model: Model, gpu: Gpu, batch: int) -> list[str]:
    """The floor by phase, and what it means."""
    sums: dict[str, float] = {}
    for row in model.work():
        where = row.kind if row.phase in ("page", "step") else row.phase
        name = where if row.kind in (where, "between convolutions") else f"convolutions, {where}"
        name = f"between convolutions, {where}" if row.kind == "between convolutions" else name
        sums[name] = sums.get(name, 0.0) + seconds(row, gpu.flops, gpu.bandwidth, batch)
    whole, forward = sum(sums.values()), sum(layer.flops for layer in model.layers)
    rows = [(name, f"{1e3 * each:.3f}", f"{each / whole:.1%}") for name, each in sums.items()]
    rate = TRAINING * forward / whole
    outputs = sum(math.prod(layer.output) for layer in model.layers if is_product(layer))
    between = [row for row in step_work(model.layers, 0, 0) if row.kind == "between convolutions"]
    each = [sum(row.bytes for row in between if row.phase == phase) / outputs for phase in ("forward", "backward")]
    return [
        *table(["part of the step", "ms an image", "share"], rows),
        f"**Floor: {1e3 * whole:.2f} ms an image, {1 / whole:.4g} images/s, {rate / 1e12:.3g} model TFLOP/s "
        f"({rate / gpu.flops:.0%} of the matrix peak)**; {TRAINING * forward / 1e12:.3g} TFLOP an image. "
        f"Between convolutions {each[0]:.1f} bytes forward and {each[1]:.1f} backward an element of their outputs.",
        "",
    ]


def padding_table(model: Model, gpu: Gpu, batch: int) -> list[str]:
    """HRNet's finest branch in 48 and 64 channels; nothing for another encoder."""
    width = finest_width(model)
    if not width:
        return []
    plain, forward = floor_seconds(model, gpu, batch), sum(layer.flops for layer in model.layers)
    rows = []
    for to in sorted({width, 48, 64}):
        if to >= width:
            wide = model._replace(layers=pad(model.layers, width, to))
            flops = sum(layer.flops for layer in wide.layers) / forward - 1
            now, then = (sum(row.bytes for row in step_work(each.layers, 0, 0)) for each in (model, wide))
            floor = floor_seconds(wide, gpu, batch)
            rows.append(
                (to, f"{flops:+.1%}", f"{then / now - 1:+.1%}", f"{1e3 * floor:.2f}", f"{floor / plain - 1:+.1%}")
            )
    return [
        f"Finest branch ({width} channels) padded with zeros. The floor only counts what padding adds; what it may "
        f"save, 16-byte loads (a pixel has {ITEM * width} bytes now) and whole tiles, only a GPU can say:",
        "",
        *table(["channels", "FLOPs", "bytes", "floor ms an image", "floor"], rows),
    ]


def finest_width(model: Model) -> int:
    """Channels of HRNet's finest branch; 0 for another encoder."""
    name = "encoder.stage2.0.branches.0.0.conv1"
    return next((layer.output[1] for layer in model.layers if layer.name == name), 0)


def memory_table(model: Model, gpu: Gpu, batch: int) -> list[str]:
    """Activations kept for the backward pass, and the state of the parameters."""
    state = model.parameters * sum(STATE_BYTES.values())
    kept = {
        "every map that a convolution or BatchNorm reads, once": kept_bytes(model.layers),
        "what eager autograd keeps (counted)": model.saved,
    }
    rows = []
    for what, each in kept.items():
        whole, most = batch * each, int((gpu.memory - state) // each)
        rows.append((what, f"{each / 1e9:.2f}", f"{whole / 1e9:.1f}", f"{(state + whole) / 1e9:.1f}", most))
    return [
        f"Memory of {gpu.memory / 1e9:.0f} GB; parameters and their state take {state / 1e9:.2f} GB "
        f"({sum(STATE_BYTES.values())} bytes each: {', '.join(STATE_BYTES)}). Workspaces and DALI come on top:",
        "",
        *table(["activations", "GB an image", f"GB at batch {batch}", "GB with state", "largest batch"], rows),
    ]


def expected_maximum(count: int) -> float:
    """Mean of the largest of `count` standard normal values: the integral of x d(cdf(x)^count)."""
    return quad(lambda x: x * count * norm.cdf(x) ** (count - 1) * norm.pdf(x), -8, 8)[0]


def scaling(link: Link, parameters: int, step: float, backward: float) -> tuple[float, float, float]:
    """(seconds of the gradients' all-reduce, seconds of it that nothing hides, efficiency 0..1) of training on a link.

    A ring sends 2 (N - 1) / N of the float32 gradients (4 bytes a parameter). It runs beside the backward pass, but the
    last bucket starts when that has ended. The slowest of N ranks decides: mean of the largest of N normal values.
    step, backward: seconds on one GPU, and those of them in which gradients can travel.
    """
    gradients = 4 * parameters
    reduce = 2 * (link.gpus - 1) / link.gpus * gradients / link.bandwidth
    exposed = max(reduce - backward, reduce * min(1.0, BUCKET_BYTES / gradients))
    slowest = step * (1 + JITTER * expected_maximum(link.gpus))
    return reduce, exposed, step / (slowest + exposed)


def scaling_table(model: Model, gpu: Gpu, batch: int) -> list[str]:
    """Predicted efficiency at 8 to 64 GPUs; at the floor's step, where communication weighs most."""
    step = batch * floor_seconds(model, gpu, batch)
    backward_work = [row for row in model.work() if row.phase in ("dgrad", "wgrad", "backward")]
    backward = batch * sum(seconds(row, gpu.flops, gpu.bandwidth, batch) for row in backward_work)
    rows = []
    for link in LINKS:
        reduce, exposed, efficiency = scaling(link, model.parameters, step, backward)
        cells = (link.gpus, link.what, f"{link.bandwidth / 1e9:.0f} ({link.source})", f"{1e3 * reduce:.1f}")
        rows.append(
            (*cells, f"{1e3 * exposed:.1f}", f"{efficiency:.1%}", f"{efficiency * link.gpus * batch / step:.0f}")
        )
    head = ["GPUs", "link", "GB/s", "all-reduce ms", "not hidden ms", "efficiency", "images/s at the floor"]
    return [
        f"Predicted scaling: a step of {1e3 * step:.0f} ms, {1e3 * backward:.0f} of it backward, "
        f"{4e-6 * model.parameters:.0f} MB of gradients, jitter of {JITTER:.1%} a rank. A slower step hides more:",
        "",
        *table(head, rows),
    ]


def measured(folder: Path = RESULTS) -> Iterator[tuple[str, str, float]]:
    """(file, what, images/s) of every report below bench/results that has a key images_per_second.

    Its value is {what: rate, ...} or a list of rows {"what": ..., "images_per_second": rate}; a row without a rate (not
    measured, for a reason given there) is passed over. Raises UserError for a file that is no JSON.
    """
    for path in sorted(folder.glob("*/*.json")):
        try:
            found = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: not a JSON file; repair it or take it away") from None
        rows = found.get("images_per_second", {}) if isinstance(found, dict) else {}
        if isinstance(rows, list):
            rows = {row["what"]: row.get("images_per_second") for row in rows}
        for what, rate in rows.items():
            if isinstance(rate, (int, float)):
                yield str(path.relative_to(folder)), what, float(rate)


def measured_table(model: Model, gpu: Gpu, batch: int, folder: Path = RESULTS) -> list[str]:
    """What `bench.gpu` measured, beside the floor of the chosen GPU."""
    floor = 1 / floor_seconds(model, gpu, batch)
    rows = [(*names, f"{rate:.1f}", f"{rate / floor:.0%}") for *names, rate in measured(folder)]
    if not rows:
        return [
            "Measured: not measured (no images_per_second in bench/results/*/*.json; python -m bench.gpu makes it).",
            "",
        ]
    return ["Measured:", "", *table(["file", "what", "images/s", f"of the floor on {gpu.name}"], rows)]


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=__doc__.split("\n\n")[0])
    parser.add_argument("--gpu", default="h200", help=", ".join(GPUS))
    parser.add_argument("--preset", default="hrnet_w44_1280", help="whose model and page size (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images a GPU (default: %(default)s)")
    parser.add_argument("--layers", action="store_true", help="print every layer instead of sums by kind and map")
    args = parser.parse_args(argv)
    if args.gpu not in GPUS:
        raise UserError(f"--gpu {args.gpu}: expected one of {', '.join(GPUS)}")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: expected at least 1")
    gpu, model = GPUS[args.gpu], load(args.preset)
    encoder, size = model.config.models.encoder.name, "x".join(map(str, model.config.data.image_size))
    lines = [
        f"# Cost of a training step: {encoder} at {size}, batch {args.batch}, {ITEM}-byte activations, on {gpu.name}",
        "",
        f"{gpu.flops / 1e12:.0f} TFLOP/s and {gpu.bandwidth / 1e12:.3g} TB/s ({gpu.source}), "
        f"{model.parameters / 1e6:.1f} M parameters.",
        "",
        *layer_table(model, gpu, args.batch, args.layers),
    ]
    for make in (step_table, padding_table, memory_table, scaling_table, measured_table):
        lines += make(model, gpu, args.batch)
    print("\n".join(lines).rstrip())
    return 0


if __name__ == "__main__":
    cli.run(main)
