"""Sections of `bench.gpu`: the matrix peak, and HRNet's 3x3 convolutions in its own and in padded widths.

perf: 44 bf16 channels of NHWC are 88 bytes a pixel, no multiple of 16. Whether 48 or 64 channels pay for their FLOPs is
decided here: milliseconds of the forward pass and of both gradients, and TFLOP/s of the work that 44 channels need.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from bench.gpu.kernels import clock
from engine.profiling.recorder import matrix_peak

# Stride of a branch and its widths, W44's own first
BRANCHES = ((4, (44, 48, 64)), (8, (88, 96, 128)), (16, (176, 192)), (32, (352, 384)))


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
            last = stride == BRANCHES[-1][0] and width == widths[-1]
            figures = convolution(size.pages, width, size.side // stride, widths[0], device, dtype)
            yield f"{width} channels at 1/{stride}", figures | ({"end": True} if last else {})


def convolution(pages: int, width: int, side: int, own: int, device: torch.device, dtype: torch.dtype) -> dict:
    """Times of a 3x3 convolution width -> width, NHWC; TFLOP/s counts the FLOPs of `own` channels."""
    nhwc = torch.channels_last
    x = torch.randn(pages, width, side, side, device=device, dtype=dtype).to(memory_format=nhwc).requires_grad_()
    weight = torch.randn(width, width, 3, 3, device=device, dtype=dtype).to(memory_format=nhwc).requires_grad_()
    y = F.conv2d(x, weight, padding=1)
    gradient = torch.randn_like(y)
    ms = {
        "forward_ms": clock(lambda: F.conv2d(x, weight, padding=1), device) / 1e3,
        "to_input_ms": clock(lambda: torch.autograd.grad(y, x, gradient, retain_graph=True), device) / 1e3,
        "to_weight_ms": clock(lambda: torch.autograd.grad(y, weight, gradient, retain_graph=True), device) / 1e3,
    }
    flops = 3 * 2 * 9 * own * own * pages * side * side
    return {**ms, "useful_tflop_s": flops / sum(ms.values()) / 1e9}
