"""Bytes and FLOPs of a training step, derived from the operators of the network: what `bench.roofline` prints.

Activations are bf16 (2 bytes). A convolution is three calls, each of which moves its own tensors once:

    forward    reads input and weights, writes output
    dgrad      reads the output's gradient and the weights, writes the input's gradient
    wgrad      reads input and the output's gradient, writes the weights' gradient

Everything between two convolutions (BatchNorm, ReLU, additions, upsampling, concatenation) is assumed to be fused as
far as BatchNorm lets it, but not into the convolutions. A map is kept in memory where a convolution or BatchNorm reads
it, or several operators do. The operators in between form one group: from its sources (kept maps, each at its own
resolution) to the kept map z that it writes:

    forward    statistics  reads the input y of every BatchNorm
               apply       reads the sources, writes z
    backward   reduce      reads every y, and z's gradients, one for each reader of z; reads z for the ReLU's mask,
                           unless z comes from one y alone (then the mask is recomputed from y). Writes the masked sum g
                           where gradients were added or masked by z, and the sums over windows for what was upsampled
               apply       reads g and y, writes y's gradient, for every BatchNorm

An element of a plain conv-BN-ReLU costs 2 + 4 = 6 bytes forward and 4 + 6 = 10 backward; one with a residual addition
whose result has two readers 2 + 6 = 8 and 10 + 6 = 16. A residual block has one of each: 7 and 13 on average.
"""

import math
from typing import NamedTuple

from engine.profiling.flops import Layer

ITEM = 2  # bytes of a bf16 activation
# Bytes a pixel of the page. Loss: 9 read (two logits, three masks and the bf16 map), 4 again to refine the threshold of
# the negatives, 9 read and 4 written backward. Targets: three masks and a bf16 map.
PER_PIXEL = {"loss": 26, "targets": 5}
# Bytes a parameter, once a step. Adam reads weight, gradient and two moments and writes three of them; a clip reads the
# gradient for its norm and scales it; the average reads two and writes one; autocast copies the weights to bf16 (4 + 2)
# and their gradients back to float32 (2 + 4).
PER_PARAMETER = {"optimizer": 28, "gradient clipping": 12, "EMA": 12, "casts of weights and gradients": 12}


class Work(NamedTuple):
    """One call or pass: what it computes and moves, for one image; weights are moved once a batch."""

    name: str
    kind: str  # as Layer.kind, or "between convolutions"
    phase: str  # forward, dgrad, wgrad, backward
    height: int  # of the map it writes in the forward pass
    flops: int
    bytes: int
    batch_bytes: int = 0  # once a batch


def _height(layer: Layer) -> int:
    return layer.output[2] if len(layer.output) == 4 else 1


def is_product(layer: Layer) -> bool:
    """Whether the operator is a convolution or a matrix product."""
    return "conv" in layer.kind or layer.kind == "matmul"


def product_work(layers: list[Layer]) -> list[Work]:
    """Forward, dgrad and wgrad of every convolution; nobody needs the gradient of the image (value 0)."""
    found = []
    for layer in filter(is_product, layers):
        read, written, weights = layer.bytes(ITEM)
        for phase in ("forward", "dgrad", "wgrad"):
            if phase != "dgrad" or layer.reads[0] != 0:
                row = Work(layer.name, layer.kind, phase, _height(layer), layer.flops, read + written, weights)
                found.append(row)
    return found


class Group(NamedTuple):
    """The fused operators that make one kept map."""

    layers: list[Layer]
    sources: dict[int, tuple[int, ...]]  # kept maps it reads: value -> shape
    norms: dict[int, tuple[int, ...]]  # those that a BatchNorm reads
    write: int
    output: tuple[int, ...]

    @property
    def masked(self) -> bool:
        """Whether the backward pass needs the map itself: an activation function of more than one source."""
        bends = any(layer.kind in ("relu", "pointwise") for layer in self.layers)
        return bends and not (len(self.sources) == 1 and len(self.norms) == 1)


def kept_maps(layers: list[Layer]) -> dict[int, tuple[int, ...]]:
    """{value: shape} of the maps that are kept in memory."""
    shapes = {value: shape for layer in layers for value, shape in zip(layer.reads, layer.inputs)}
    shapes |= {layer.write: layer.output for layer in layers}
    readers: dict[int, list[Layer]] = {}
    for layer in layers:
        for value in layer.reads:
            readers.setdefault(value, []).append(layer)
    made = {layer.write for layer in layers if is_product(layer)}
    kept = {0} | made
    for value in shapes:
        by = readers.get(value, [])
        if len(by) != 1 or is_product(by[0]) or by[0].kind == "batch norm":
            kept.add(value)
    return {value: shapes[value] for value in sorted(kept)}


def groups(layers: list[Layer]) -> list[Group]:
    """What lies between the convolutions, one group a kept map."""
    kept = kept_maps(layers)
    maker = {layer.write: layer for layer in layers}
    found = []
    for layer in layers:
        if layer.write not in kept or is_product(layer):
            continue
        group = Group([], {}, {}, layer.write, layer.output)
        waiting = [layer]
        while waiting:
            at = waiting.pop()
            group.layers.append(at)
            for value, shape in zip(at.reads, at.inputs):
                if value in kept:
                    group.sources[value] = shape
                    if at.kind == "batch norm":
                        group.norms[value] = shape
                elif maker[value] not in group.layers:
                    waiting.append(maker[value])
        found.append(group)
    return found


def gradients_of(layers: list[Layer], made: list[Group]) -> dict[int, int]:
    """{value: number of gradients that arrive for it}: one a convolution or group that reads it, one from the loss."""
    arriving: dict[int, int] = {}
    read = [layer.reads for layer in layers if is_product(layer)] + [tuple(group.sources) for group in made]
    for values in read:
        for value in values:
            arriving[value] = arriving.get(value, 0) + 1
    for value in kept_maps(layers):
        arriving.setdefault(value, 1)  # nothing in the network reads it: the loss does
    return arriving


def between_work(layers: list[Layer]) -> list[Work]:
    """Forward and backward passes of every group, and the sums of several gradients at a convolution's output."""
    made = groups(layers)
    arriving = gradients_of(layers, made)
    found = []
    for group in made:
        count = arriving[group.write]
        forward, backward = group_elements(group, count)
        name, height = group.layers[-1].name or group.layers[-1].part, _height(group.layers[0])
        for phase, elements in (("forward", forward), ("backward", backward)):
            found.append(Work(name, "between convolutions", phase, height, 0, ITEM * elements))
    for layer in filter(is_product, layers):
        count = arriving[layer.write]
        if count > 1:
            moved = ITEM * (count + 1) * math.prod(layer.output)
            found.append(Work(layer.name, "between convolutions", "backward", _height(layer), 0, moved))
    return found


def group_elements(group: Group, arriving: int) -> tuple[int, int]:
    """Elements that a group reads and writes, (forward, backward); see the module docstring."""
    size = math.prod(group.output)
    normed = sum(math.prod(shape) for shape in group.norms.values())
    forward = normed + sum(math.prod(shape) for shape in group.sources.values()) + size
    shrunk = sum(math.prod(shape) for shape in group.sources.values() if shape[2:] != group.output[2:])
    writes_sum = arriving > 1 or group.masked
    if not (normed or shrunk or writes_sum):
        return forward, 0  # its gradient is the one that arrives, or a slice of it
    reduce = arriving * size + size * group.masked + normed + size * writes_sum + shrunk
    return forward, reduce + 3 * normed


def step_work(layers: list[Layer], parameters: int, pixels: int) -> list[Work]:
    """All of a step: convolutions, what lies between them, loss, targets, and what is done once a step."""
    rest = [Work("", kind, "page", 0, 0, each * pixels) for kind, each in PER_PIXEL.items()]
    rest += [Work("", kind, "step", 0, 0, 0, each * parameters) for kind, each in PER_PARAMETER.items()]
    return product_work(layers) + between_work(layers) + rest


def seconds(work: Work, flops: float, bandwidth: float, batch: int) -> float:
    """Least time of one image's share of the work at `flops` FLOP/s and `bandwidth` bytes/s."""
    return max(work.flops / flops, (work.bytes + work.batch_bytes / batch) / bandwidth)


def pad(layers: list[Layer], width: int, to: int) -> list[Layer]:
    """The same network with every map of `width` channels computed in `to` channels."""

    def wide(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], to, *shape[2:]) if len(shape) == 4 and shape[1] == width else shape

    found = []
    for layer in layers:
        inputs, output = tuple(wide(shape) for shape in layer.inputs), wide(layer.output)
        grown = output[1] / layer.output[1] * (inputs[0][1] / layer.inputs[0][1] if is_product(layer) else 1)
        weights, flops = round(layer.weights * grown), round(layer.flops * grown)
        found.append(layer._replace(inputs=inputs, output=output, weights=weights, flops=flops))
    return found


def kept_bytes(layers: list[Layer]) -> int:
    """Bytes of one image's maps that the backward pass needs if nothing is recomputed: what products and norms read."""
    needed: dict[int, tuple[int, ...]] = {}
    for layer in layers:
        if is_product(layer) or layer.kind == "batch norm":
            needed |= dict(zip(layer.reads, layer.inputs))
    return ITEM * sum(math.prod(shape) for shape in needed.values())
