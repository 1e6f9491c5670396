"""Sections of `bench.gpu`: the matrix peak, and HRNet's 3x3 convolutions in its own and in padded widths.

perf: 44 bf16 channels of NHWC are 88 bytes a pixel, no multiple of 16. Whether 48 or 64 channels pay for their FLOPs is
decided here: milliseconds of the forward pass and of both gradients, and TFLOP/s of the work that 44 channels need.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bench.gpu.kernels import clock
from engine.profiling.recorder import matrix_peak

# Stride of a branch and its widths, W44's own first
BRANCHES = ((4, (44, 48, 64)), (8, (88, 96, 128)), (16, (176, 192)), (32, (352, 384)))
# What else may be far from the peak: stride of the input, kernel's side, channels in and out, transposed.
OTHERS = {
    "head, 3x3 256 -> 64": (4, 3, 256, 64, False),
    "head, both branches, 3x3 256 -> 128": (4, 3, 256, 128, False),
    "head, transposed 64 -> 64": (4, 2, 64, 64, True),
    "head, transposed 64 -> 1": (2, 2, 64, 1, True),
    "incre module, 1x1 64 -> 256": (4, 1, 64, 256, False),
}


def rows(what: str, size: Any) -> Iterator[tuple[str, dict]]:
    """`peak` or `grid`; see `bench.gpu`. `size`: pages, side, device."""
    device = torch.device(size.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if what == "peak":
        yield "matrix product", {"tflop_s": matrix_peak(device, dtype) / 1e12, "end": True}
        return
    assert what == "grid", what
    torch.backends.cudnn.benchmark = True  # as in training: the algorithms differ by width
    for stride, widths in BRANCHES:
        for width in widths:
            layer = nn.Conv2d(width, width, 3, padding=1, bias=False).to(device, dtype)
            ms, outputs = times(layer, size.pages, size.side // stride)
            flops = 3 * 2 * 9 * widths[0] ** 2 * outputs  # those that W44's own channels need
            yield f"{width} channels at 1/{stride}", {**ms, "useful_tflop_s": flops / sum(ms.values()) / 1e9}
    for name, (stride, sides, inputs, width, transposed) in OTHERS.items():
        doubling = nn.ConvTranspose2d(inputs, width, 2, stride=2)
        other = doubling if transposed else nn.Conv2d(inputs, width, sides, padding=sides // 2)
        ms, outputs = times(other.to(device, dtype), size.pages, size.side // stride)
        flops = 3 * 2 * inputs * width * (1 if transposed else sides**2) * outputs
        figures = {**ms, "useful_tflop_s": flops / sum(ms.values()) / 1e9}
        yield name, figures | ({"end": True} if name == list(OTHERS)[-1] else {})


def times(layer: nn.Conv2d | nn.ConvTranspose2d, pages: int, side: int) -> tuple[dict[str, float], int]:
    """Times of a layer, NHWC, forward and of its two gradients; and the number of pixels that come out."""
    nhwc = torch.channels_last
    layer = layer.to(memory_format=nhwc)
    weight = layer.weight
    x = torch.randn(pages, layer.in_channels, side, side, device=weight.device, dtype=weight.dtype)
    x = x.contiguous(memory_format=nhwc).requires_grad_()
    y = layer(x)
    gradient = torch.randn_like(y)
    ms = {
        "forward_ms": clock(lambda: layer(x), x.device) / 1e3,
        "to_input_ms": clock(lambda: torch.autograd.grad(y, x, gradient, retain_graph=True), x.device) / 1e3,
        "to_weight_ms": clock(lambda: torch.autograd.grad(y, weight, gradient, retain_graph=True), x.device) / 1e3,
    }
    return ms, pages * y.shape[-2] * y.shape[-1]
