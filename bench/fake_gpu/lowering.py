"""The training step on the fake GPU: what Inductor makes of the network, and what one steady step asks of the device.

    device.attach()
    found = steady_step(config, cubins=False)
    found.records, found.kernels, found.peak_bytes

The step is `engine.training.step.train_step`. Inductor's kernels are not compiled without `cubins`: lowering HRNet-W44
takes 4 minutes of CPU, its kernels as many again. What this needs of Inductor is in `_watched`.
"""

import contextlib
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor, nn

from bench.fake_gpu import device
from bench.fake_gpu.device import Record
from engine.config import Config, changed
from engine.distributed import Ranks, seed_everything
from engine.model import build_model
from engine.model.forward import compiled
from engine.training import step as training_step
from engine.training.metrics import Stopwatch
from engine.training.state import build
from kernels import runtime
from pipelines.batch import Batch
from pipelines.errors import UserError

STEPS = 3  # the last one is steady: the first compiles, the second still fills caches
POLYGONS = 100  # a page
GPU = torch.device("cuda", 0)


class Kernel(NamedTuple):
    """One kernel of Inductor's."""

    name: str
    bytes: float  # by Inductor's own count: each buffer once
    atomic: bool
    moved: bool  # it only writes what it reads in another order


class Cubin(NamedTuple):
    """What a compiled kernel uses: registers a lane, bytes of stack and local memory."""

    name: str
    registers: int
    spilled: int


@dataclass
class Lowered:
    """What was made and asked for. A mark "generated N" stands for a launch of kernels[N]."""

    kernels: list[Kernel] = field(default_factory=list)
    graphs: int = 0
    breaks: dict[str, int] = field(default_factory=dict)
    cubins: list[Cubin] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    peak_bytes: int = 0


class _Launched:
    """Stands for a kernel in the generated code: leaves a mark, and starts the real one where there is one."""

    def __init__(self, number: int, real: Any) -> None:
        self.number, self.real = number, real

    def run(self, *args: Any, **options: Any) -> None:
        device.mark(f"generated {self.number}")
        if self.real is not None:
            self.real.run(*args, **options)


class _Part:
    """`record_function` of the step: its parts between marks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        device.mark(f"> {self.name}")

    def __exit__(self, *_: object) -> None:
        device.mark("> between")


def steady_step(config: Config, cubins: bool = False) -> Lowered:
    """The third training step of a configuration, eager or compiled as it says, on synthetic polygons."""
    config = changed(config, {"models.encoder.weights": ""})
    ranks, watch = Ranks(0, 0, 1, GPU), Stopwatch()
    seed_everything(0, deterministic=False)
    with _watched(cubins) as found:
        state = build(config, ranks)
        state.model.train()
        loader = itertools.repeat(batch(config))
        _last_of(lambda step: training_step.train_step(state, loader, config, ranks, watch, step), found)
    return found


def steady_tail(config: Config, cubins: bool = False) -> Lowered:
    """Forward and backward pass of HRNet's last module with decoder and head: a minute, and all kinds of kernels."""
    config = changed(config, {"models.encoder.weights": ""})
    height, width = config.data.image_size
    with _watched(cubins) as found:
        tail = Tail(build_model(config)).to(GPU).train()
        if config.trainer.channels_last:
            tail = tail.to(memory_format=torch.channels_last)
        whole = compiled(tail, config)
        maps = tail.maps(config.data.batch_size, height, width)

        def passes(_step: int) -> None:
            with _Part("forward"), torch.autocast("cuda", torch.bfloat16):
                logits = whole(maps)
            gradients = [torch.empty_like(x) for x in logits]
            with _Part("backward"):
                torch.autograd.backward(logits, gradients)
            for leaf in (*tail.parameters(), *maps):
                leaf.grad = None  # as the optimizer leaves them

        _last_of(passes, found)
    return found


class Tail(nn.Module):
    """The last fusion module of HRNet and all behind it: four maps -> logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        encoder = model.get_submodule("encoder")
        self.module: Any = list(encoder.get_submodule("stage4").children())[-1]
        self.incre: Any = encoder.incre_modules  # None where models.encoder.hrnet_incre_head is false
        self.decoder, self.head = model.get_submodule("decoder"), model.get_submodule("head")

    def maps(self, pages: int, height: int, width: int) -> list[Tensor]:
        """Maps at strides 4 to 32, as the module before hands them over."""
        made = []
        for channels, stride in zip(self.module.num_in_chs, (4, 8, 16, 32), strict=True):
            x = torch.zeros(pages, channels, height // stride, width // stride, dtype=torch.bfloat16, device=GPU)
            made.append(x.to(memory_format=torch.channels_last).requires_grad_())
        return made

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        maps = self.module(list(maps))  # it writes into the list
        if self.incre is not None:
            maps = [incre(x) for incre, x in zip(self.incre, maps)]
        return self.head(self.decoder(maps))


def _last_of(step: Callable[[int], object], found: Lowered) -> None:
    for number in range(STEPS):
        torch.cuda.reset_peak_memory_stats()
        with device.recorded() as found.records:
            step(number)
    found.peak_bytes = torch.cuda.max_memory_allocated()


def batch(config: Config) -> Batch:
    """A batch as the loader hands it over, with POLYGONS quads a page somewhere on it."""
    pages, (height, width) = config.data.batch_size, config.data.image_size
    count = pages * POLYGONS
    image = torch.zeros(pages, 3, height, width, dtype=torch.float16, device=GPU)
    return Batch(
        image=image.to(memory_format=torch.channels_last),
        points_xy=torch.rand(4 * count, 2) * torch.tensor([width, height]),
        poly_offsets=torch.arange(count + 1) * 4,
        page_offsets=torch.arange(pages + 1) * POLYGONS,
        ignore=torch.zeros(count, dtype=torch.bool),
        index=np.arange(pages),
        matrix=np.broadcast_to(np.eye(2, 3), (pages, 2, 3)),
    )


@contextlib.contextmanager
def _watched(cubins: bool) -> Iterator[Lowered]:
    """Writes down what Inductor makes, and marks every launch of a Triton kernel; its private names are all here."""
    import torch._inductor.config
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    found = Lowered()
    make, precompile, launch = AsyncCompile.triton, CachingAutotuner.precompile, runtime.launch

    def triton_kernel(self, name, source, *args, **options):
        said = re.search(r"'kernel_num_gb': ([0-9.e-]+)", source)
        moved_bytes = 1e9 * float(said[1]) if said else 0.0
        found.kernels.append(Kernel(name, moved_bytes, "tl.atomic_" in source, only_moves(source)))
        return _Launched(len(found.kernels) - 1, make(self, name, source, *args, **options) if cubins else None)

    def first_choice(self, *args, **options):
        self.configs = self.configs and self.configs[:1]  # without times there is nothing to choose by
        return precompile(self, *args, **options)

    def own_kernel(kernel, grid, *args, **options):
        sizes = {t.data_ptr(): t.nbytes for t in args if isinstance(t, Tensor)}
        device.mark(f"own {kernel.fn.__name__} {sum(sizes.values())}")
        if cubins:
            launch(kernel, grid, *args, **options)

    def graph(_code: str) -> None:
        found.graphs += 1

    torch._dynamo.utils.counters.clear()
    settings = {"benchmark_kernel": True, "compile_threads": 1, "fx_graph_cache": False}
    with contextlib.ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory())
        os.environ |= {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
        held.enter_context(torch._inductor.config.patch(settings))
        held.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        for owner, name, value in (
            (AsyncCompile, "triton", triton_kernel),
            (CachingAutotuner, "precompile", first_choice),
            (GraphLowering, "save_output_code", staticmethod(graph)),
            (runtime, "launch", own_kernel),
            (training_step, "record_function", _Part),
        ):
            held.enter_context(_replaced(owner, name, value))
        yield found
        found.breaks = dict(torch._dynamo.utils.counters["graph_break"])
        found.cubins = list(_cubins(Path(folder))) if cubins else []


def only_moves(source: str) -> bool:
    """Whether a generated kernel reads one tensor and writes it, perhaps as another type, in another order.

    A slice along the channels of an NHWC tensor keeps the order: neighbours in it are neighbours before.
    """
    body = source[source.find("@triton.jit") :].partition("\ndef get_args")[0]
    read = re.findall(r"tl\.load\(\w+ \+ \((.*?)\), ", body)
    written = re.findall(r"tl\.store\(\w+ \+ \((.*)\), tmp", body)
    steps = re.findall(r"^\s+tmp\d+ = (.*)$", body, re.MULTILINE)
    plain = all(re.fullmatch(r"tl\.load\(.*|tmp\d+(\.to\(.*\))?", step) for step in steps)
    order_kept = all(re.match(r"\(?(x0 \+|x\d+\)?$)", index) for index in (*read, *written))
    return plain and len(read) == len(written) == 1 and read != written and not order_kept


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    if name not in vars(owner):
        raise UserError(f"torch {torch.__version__} has no {owner.__name__}.{name}: mend bench/fake_gpu/lowering.py")
    saved = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, saved)


def _cubins(folder: Path) -> Iterator[Cubin]:
    """Of every compiled kernel below a folder."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for path in sorted(folder.rglob("*.cubin")):
        command = [str(tool), "--dump-resource-usage", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        use = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
        assert use, said
        yield Cubin(path.stem, int(use[1]), int(use[2]) + int(use[3]))
