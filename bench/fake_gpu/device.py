"""The Python side of the fake GPU: what was asked of it, and convolutions and products.

    device.attach()
    with device.recorded() as records:
        train_step(...)
    [r.name for r in records if r.kind == "sync"]

cuDNN and cuBLAS need a real driver, so convolutions and products return tensors that nobody fills, in the layout that
torch's own choice of a backend says; each leaves a record of what it was called with (`Convolution`).
"""

import contextlib
import ctypes
import json
import os
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.errors import UserError

LIBRARY = ctypes.CDLL(None)  # what is preloaded
PROCESSORS = int(os.environ.get("FAKE_GPU_PROCESSORS", 132))  # with one, a kernel's few programs can be interpreted
SAYS = ["NVIDIA H200", 150109880320, 9, 0, PROCESSORS, 62914560, 2048, 65536, 232448]  # as cuda.cpp has it
REPLACED = torch.library.Library("aten", "IMPL")


class Record(NamedTuple):
    """One call that the device was given."""

    kind: str  # kernel, triton, memcpy, memcpy sync, memset, sync, malloc, free, host_alloc, capture, graph, mark
    name: str  # of the kernel; of a copy its direction and the host's memory: "H2D pinned"; of a mark its text
    amount: int  # programs of a launch, bytes of a copy or an allocation
    captured: bool  # in a CUDA graph, not done yet


class Convolution(NamedTuple):
    """A call of a convolution, as the text of a mark."""

    phase: str  # forward, or backward: dgrad and wgrad as `mask` says
    transposed: bool
    image: list[int]  # shapes
    weight: list[int]
    output: list[int]
    layouts: list[str]  # of image, weight and output (backward: of its gradient)
    itemsize: int
    mask: list[bool]  # whose gradients are wanted: image, weight, bias


def attach() -> None:
    """Checks that torch reads the fake GPU right, and replaces what needs cuDNN and cuBLAS; once a process.

    Raises:
        UserError: this process has no fake GPU, or torch reads from it what it does not say.
    """
    if not present():
        raise UserError("there is no fake GPU under this process: start it with bench.fake_gpu.build.environment()")
    LIBRARY.fake_gpu_records.restype = ctypes.c_char_p
    read: Any = torch.cuda.get_device_properties(0)  # torch's stub lacks half of it
    found = [read.name, read.total_memory, read.major, read.minor, read.multi_processor_count, read.L2_cache_size]
    found += [read.max_threads_per_multi_processor, read.regs_per_multiprocessor, read.shared_memory_per_block_optin]
    if found != SAYS:
        raise UserError(f"torch {torch.__version__} reads the fake GPU wrong ({found}): mend DeviceProp in abi.h")
    calls = {"convolution": _convolution, "convolution_backward": _convolution_backward}
    calls |= {"mm": _product, "bmm": _product, "addmm": lambda bias, rows, columns, **_: _product(rows, columns)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "overriding a previously registered kernel": that is meant
        for name, call in calls.items():
            REPLACED.impl(name, call, "CUDA", allow_override=True)


def present() -> bool:
    """Whether this process has a fake GPU."""
    return hasattr(LIBRARY, "fake_gpu_record")


@contextlib.contextmanager
def recorded() -> Iterator[list[Record]]:
    """What is asked of the device meanwhile; the list is filled at the end."""
    records: list[Record] = []
    LIBRARY.fake_gpu_record(1)
    try:
        yield records
    finally:
        LIBRARY.fake_gpu_record(0)
        for line in LIBRARY.fake_gpu_records().decode().splitlines():
            kind, name, amount, captured = line.split("\t")
            records.append(Record(kind, name, int(amount), captured == "1"))


def mark(text: str) -> None:
    """Puts a line of text between the records."""
    LIBRARY.fake_gpu_mark(text.encode())


def waits(records: list[Record]) -> list[str]:
    """What of it made the host wait for the device: synchronisations and copies of pageable memory."""
    waiting = [r for r in records if r.kind in ("sync", "memcpy sync") or ("pageable" in r.name and r.kind != "mark")]
    return [f"{r.kind} {r.name}, {r.amount} bytes" if r.amount else f"{r.kind} {r.name}" for r in waiting]


def layout(tensor: Tensor) -> str:
    """NHWC, NCHW, both (one channel, or one pixel), or strided."""
    last, plain = tensor.is_contiguous(memory_format=torch.channels_last), tensor.is_contiguous()
    return "both" if last and plain else "NHWC" if last else "NCHW" if plain else "strided"


def _note(phase: str, transposed: bool, x: Tensor, weight: Tensor, output: Tensor, mask: list[bool]) -> None:
    shapes = (list(x.shape), list(weight.shape), list(output.shape))
    layouts = [layout(tensor) for tensor in (x, weight, output)]
    call = Convolution(phase, transposed, *shapes, layouts, x.element_size(), list(mask))
    mark(f"convolution {json.dumps(call)}")


def _format(x: Tensor, weight: Tensor, options: tuple) -> torch.memory_format:
    backend = torch._C._select_conv_backend(x, weight, None, *options, None)
    return torch._C._conv_determine_backend_memory_format(x, weight, backend)


def _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    options = (stride, padding, dilation, transposed, output_padding, groups)
    meta = [None if t is None else t.to("meta") for t in (x, weight, bias)]
    shape = torch.ops.aten.convolution.default(*meta, *options).shape
    output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x, weight, options))
    _note("forward", transposed, x, weight, output, [])
    return output


def _convolution_backward(gradient, x, weight, _sizes, *rest):
    *options, mask = rest
    form = _format(x, weight, tuple(options))
    _note("backward", options[3], x, weight, gradient, mask)
    made = [torch.empty(t.shape, dtype=t.dtype, device=t.device, memory_format=form) for t in (x, weight)]
    made.append(gradient.new_empty(gradient.shape[1]))
    return tuple(tensor if wanted else None for tensor, wanted in zip(made, mask, strict=True))


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    out = rows.new_empty(*rows.shape[:-1], columns.shape[-1])
    mark(f"product {2 * rows.numel() * out.shape[-1]} {sum(t.nbytes for t in (rows, columns, out))}")
    return out
