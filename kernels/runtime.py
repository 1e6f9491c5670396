"""Where and how the Triton kernels start: the choice against the reference, the number of programs, the launch.

Everything starts through `launch`, so that `bench.cubins` can compile what the engine really starts, without a GPU.
"""

import contextlib

import torch
import triton
from torch import Tensor

IMPLEMENTATIONS = ("auto", "reference", "triton")
INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1: kernels run as numpy code, on a CPU too
INTERPRETED_PROGRAMS = 2  # a program costs milliseconds there; two still show what passes between programs


def can_run(device: torch.device) -> bool:
    """Whether the Triton kernels can run on tensors of a device."""
    return device.type == "cuda" or INTERPRETED


def use_triton(op: str, implementation: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...] = ()) -> bool:
    """Whether the Triton kernels of `op` run on `tensor`, or else its PyTorch reference.

    "auto": kernels on CUDA, reference elsewhere and for what is not in `dtypes` (() = any). "triton": kernels, on a CPU
    only where Triton interprets. Raises ValueError for another word, and for "triton" where they cannot run.
    """
    known = not dtypes or tensor.dtype in dtypes
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}")
    if implementation == "triton" and not can_run(tensor.device):
        raise ValueError(f"{op}: implementation='triton' needs tensors on a CUDA device, not {tensor.device}")
    if implementation == "triton" and not known:
        raise ValueError(f"{op}: implementation='triton' needs one of {dtypes}, not {tensor.dtype}")
    return implementation == "triton" or (implementation == "auto" and tensor.device.type == "cuda" and known)


def num_programs(device: torch.device, per_processor: int, most: int) -> int:
    """Programs of a kernel whose programs stride over the work: `per_processor` for every SM, `most` at the most."""
    if device.type != "cuda":
        return max(1, min(INTERPRETED_PROGRAMS, most))
    processors = torch.cuda.get_device_properties(device).multi_processor_count  # cached by torch, no sync
    return max(1, min(processors * per_processor, most))


def launch(kernel, grid: tuple[int, ...], *args, num_warps: int, **constants) -> None:
    """Starts `kernel` on the device of its first tensor; an empty grid starts nothing.

    Products and sums are never fused to one rounding: a GPU then rounds as the interpreter and the reference do, and
    Triton's default for this changes between its versions. Where an fma pays, kernels write tl.fma.
    """
    if 0 in grid:
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*args, num_warps=num_warps, enable_fp_fusion=False, **constants)
