"""How the network runs: precision, memory format, compilation, distribution. Imports torch only.

The order is fixed: the bare module is compiled, DDP wraps the compiled one. So evaluation and training share the
module, and DDP's hooks stay outside the graph.
"""

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.config import Config
from engine.distributed import Ranks
from kernels import runtime
from pipelines.errors import UserError

# Graphs of a module: one per canvas, batch size and mode. Four sizes of data.progressive, trained and evaluated, twice.
GRAPHS = 16
# DDP's switch for broadcasting buffers in every step; newer torch has another name for it and warns of the old one.
BUFFERS = "broadcast_buffers"
if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters:
    BUFFERS = "forward_sync_buffers"


def arithmetic(config: Config, device: torch.device) -> torch.dtype:
    """The network's dtype: `trainer.precision`, where auto is bf16 on GPUs and float32 elsewhere."""
    precision = config.trainer.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "float32"
    return {"bf16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}[precision]


def run_network(forward: Callable, image: torch.Tensor, config: Config) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """image (N, 3, H, W), float32 or float16, on the device -> what `forward` gives; bf16 runs under autocast.

    The image is cast once, here: DALI gives float16 on a GPU, which a float32 network would refuse.
    """
    dtype = arithmetic(config, image.device)
    image = image.to(dtype)
    if dtype != torch.bfloat16:
        return forward(image)
    with torch.autocast(image.device.type, dtype):
        return forward(image)


def compiled(model: nn.Module, config: Config) -> nn.Module:
    """The module to call: `model` itself, or compiled as `speed.*` says. Weights and names are `model`'s in each case.

    `speed.scope=blocks` compiles the repeated blocks in place, one graph for all alike (their weights are inputs of the
    graph), and leaves what joins them to eager.

    Raises:
        UserError: there is no C++ compiler, which Inductor needs on a CPU.
    """
    if not config.trainer.compile:
        return model
    compiler = os.environ.get("CXX", "g++")  # Inductor's choice
    gpu = next(model.parameters()).is_cuda
    if not gpu and shutil.which(compiler) is None:
        raise UserError(
            f"trainer.compile=true: there is no {compiler}; install it (or set CXX), or trainer.compile=false"
        )
    speed, options = config.speed, inductor_options(config, gpu)
    parts = list(blocks(model)) if speed.scope == "blocks" else [model]
    _allow_graphs(GRAPHS * len(parts))
    dynamo: Any = torch._dynamo.config
    dynamo.optimize_ddp = speed.optimize_ddp
    torch._functorch.config.activation_memory_budget = speed.memory_budget
    # dynamic=False: with the default a second size compiles a graph of any size, slower for all.
    if speed.scope == "model":
        whole = torch.compile(model, dynamic=False, options=options)
        assert isinstance(whole, nn.Module)
        return whole
    for block in parts:
        block.compile(dynamic=False, options=options)
    return model


def _allow_graphs(most: int) -> None:
    """Raises dynamo's limits to `most`: beyond them it goes on in eager, with one line in the log.

    Modules compiled in place share one code object, and so one limit.
    """
    settings = torch._dynamo.config
    settings.recompile_limit = max(most, settings.recompile_limit)
    settings.accumulated_recompile_limit = max(2 * most, settings.accumulated_recompile_limit)


def inductor_options(config: Config, gpu: bool) -> dict[str, Any]:
    """`speed.*` in Inductor's words; only what differs from its defaults."""
    speed = config.speed
    chosen = {
        "max_autotune": speed.max_autotune,
        "triton.cudagraphs": config.cuda_graphs and gpu,
        "combo_kernels": speed.combo_kernels,
        "force_layout_optimization": speed.force_layout,
    }
    options: dict[str, Any] = {name: True for name, on in chosen.items() if on}
    if speed.fused_norms:
        from kernels.norm_relu.fold import FoldSums  # here: it imports Inductor, which takes a second

        options["post_grad_custom_pre_pass"] = FoldSums()
    return options


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The parts that `speed.scope=blocks` compiles: HRNet's modules, any other encoder's stages, decoder and head."""
    for name, child in model.get_submodule("encoder").named_children():
        inside = child.children() if name.startswith(("stage", "blocks", "incre_modules")) else (child,)
        # A graph for a lone convolution gains nothing over eager, and a ModuleList has no forward.
        yield from (part for part in inside if any(part.children()) and not isinstance(part, nn.ModuleList))
    yield from (model.get_submodule("decoder"), model.get_submodule("head"))


def data_parallel(forward: nn.Module, config: Config, ranks: Ranks) -> nn.Module:
    """`forward` with gradients averaged over the ranks; itself on one rank."""
    if ranks.world_size == 1:
        return forward
    options: dict[str, Any] = {BUFFERS: False}  # 642 BatchNorm buffers in HRNet; rank 0's are broadcast to be judged
    return DistributedDataParallel(
        forward,
        device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
        bucket_cap_mb=config.speed.bucket_mib,
        gradient_as_bucket_view=True,
        static_graph=config.trainer.accumulate == 1,  # no_sync and static_graph do not mix
        **options,
    )


def check_kernels(config: Config, device: torch.device) -> None:
    """Raises UserError when `trainer.kernels=triton` cannot run on the device: before the data is opened, not after."""
    if config.trainer.kernels == "triton" and not runtime.can_run(device):
        raise UserError(
            "trainer.kernels=triton needs a GPU; use trainer.kernels=auto (on a CPU the PyTorch reference), or "
            "TRITON_INTERPRET=1 to step through the kernels slowly"
        )
