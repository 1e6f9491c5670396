"""What a detector computes: one row an operator, from a forward pass on the meta device (no memory, no arithmetic).

FLOPs are 2 a multiply-add, by the formulas of `torch.utils.flop_counter` (convolutions and matrix products; the rest
counts as 0), and training is 3 times the forward pass: the gradients of input and of weights cost as much again each.
Counted for one image of 1280 x 1280:

    HRNet-W44 encoder, with its increasing heads      919.8 GFLOP forward      2.76 TFLOP in training
    the same without them                             903.1
    decoder (256 inner channels) and head (64)         52.7 + 67.5
    the whole detector                               1040.0                    3.12

The factor 3 is 0.06 % too high there: nobody needs the gradient of the image.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from engine.config import Config, changed
from engine.model import build_model

TRAINING = 3  # forward, gradient of the input, gradient of the weights

KINDS = {
    "native_batch_norm": "batch norm", "cudnn_batch_norm": "batch norm", "batch_norm": "batch norm",
    "relu": "relu", "add": "add", "cat": "cat", "upsample_nearest2d": "upsample", "upsample_bilinear2d": "upsample",
    "mm": "matmul", "addmm": "matmul", "bmm": "matmul", "max_pool2d_with_indices": "pool", "avg_pool2d": "pool",
    "mean": "pool",
}  # fmt: skip


class Layer(NamedTuple):
    """One operator of the forward pass. `reads` and `write` number its activations: equal numbers, same tensor."""

    name: str  # of the module that calls it, e.g. encoder.stage2.0.branches.0.0.conv1
    part: str  # encoder, decoder or head
    kind: str  # "conv 3x3", "conv 3x3 /2", "transposed conv 2x2 /2", "batch norm", "add", ...
    reads: tuple[int, ...]
    write: int
    inputs: tuple[tuple[int, ...], ...]  # shapes of what it reads, weights excluded
    output: tuple[int, ...]
    weights: int  # elements
    flops: int  # forward

    def bytes(self, itemsize: int) -> tuple[int, int, int]:
        """Bytes of input, output and weights at `itemsize` bytes an element."""
        read = sum(math.prod(shape) for shape in self.inputs)
        return read * itemsize, math.prod(self.output) * itemsize, self.weights * itemsize


class _Recorder(TorchDispatchMode):
    """Writes down every operator that reads an activation. Tensors are kept, so that an id is one tensor's for good."""

    def __init__(self, model: nn.Module, image: torch.Tensor, modules: ModuleTracker) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self._modules = modules
        self._weights = {id(t) for t in (*model.parameters(), *model.buffers())}
        self._values = {id(image): 0}  # tensor -> number of the activation that it holds now
        self._count = 1
        self._kept = [image]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [t for t in _flat(args) if isinstance(t, torch.Tensor)]
        made = [t for t in _flat([out]) if isinstance(t, torch.Tensor)]
        read = [t for t in given if id(t) in self._values]
        if not read or not made:
            return out
        self._kept += made
        if func.is_view:
            self._values |= {id(t): self._values[id(read[0])] for t in made}
            return out
        reads = tuple(self._values[id(t)] for t in read)
        write, self._count = self._count, self._count + 1
        self._values[id(made[0])] = write  # an in-place operator too makes a new activation, in the same tensor
        name = max((n for n in self._modules.parents if n != "Global"), key=lambda n: (n.count("."), len(n)))
        name = name.partition(".")[2]
        weights = sum(t.numel() for t in given if id(t) in self._weights and id(t) not in self._values)
        formula = flop_registry.get(func.overloadpacket)
        flops = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        shapes = tuple(tuple(t.shape) for t in read)
        part = name.partition(".")[0]
        row = Layer(name, part, kind_of(func, args), reads, write, shapes, tuple(made[0].shape), weights, flops)
        self.layers.append(row)
        return out


def _flat(items: Any) -> list:
    """Arguments with lists opened."""
    return [x for item in items for x in (_flat(item) if isinstance(item, (list, tuple)) else [item])]


def kind_of(func: Any, args: tuple) -> str:
    """The kind of an operator, in words; a convolution's with its window and stride."""
    name = func.overloadpacket.__name__.removesuffix("_")
    if name != "convolution":
        return KINDS.get(name, "pointwise")
    weight, stride, transposed, groups = args[1], args[3], args[6], args[8]
    words = "transposed conv" if transposed else "conv" if groups == 1 else "grouped conv"
    return f"{words} {weight.shape[2]}x{weight.shape[3]}" + (f" /{stride[0]}" if stride[0] > 1 else "")


def meta_model(config: Config) -> nn.Module:
    """The detector of a configuration on the meta device, in training mode; no weights are read.

    Without width padding and fused norms: those are the machine's work, not the model's.
    """
    plain = {"models.encoder.weights": "", "models.encoder.pad_widths": "none", "speed.fused_norms": False}
    with torch.device("meta"):
        return build_model(changed(config, plain)).train()


def trace(model: nn.Module, height: int, width: int, batch: int = 1) -> list[Layer]:
    """The operators of one forward pass of a model on the meta device, in their order."""
    image = torch.empty(batch, 3, height, width, device="meta")
    with torch.no_grad(), ModuleTracker() as modules, _Recorder(model, image, modules) as recorder:
        model(image)
    return recorder.layers


def training_flops(config: Config) -> int:
    """FLOPs of one image of data.image_size in training: 3 times the forward pass."""
    return TRAINING * sum(layer.flops for layer in trace(meta_model(config), *config.data.image_size))
