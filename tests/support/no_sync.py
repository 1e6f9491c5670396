"""A check that fails on whatever makes the host wait for the device. It needs no GPU: it looks at what is called."""

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result or size the host must read, and the tensor's methods that hand values to Python.
OPERATORS = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "equal",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "bincount",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # with a mask they count it first
METHODS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__array__",
    "__contains__",
}


class HostSync(AssertionError):
    """Something that waits for the device."""


class _Operators(TorchDispatchMode):
    def __init__(self, uploads: bool) -> None:
        super().__init__()
        self.uploads = uploads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in OPERATORS or (name in INDEXING and any(_is_mask(part) for part in args[1])):
            raise HostSync(f"{name} waits for the device")
        source, target = None, None
        if name == "copy_":
            source, target = args[1].device, args[0].device
        elif name == "_to_copy" and (kwargs or {}).get("device") is not None:
            source, target = args[0].device, torch.device(kwargs["device"])
        if source != target and not (self.uploads and source.type == "cpu"):
            raise HostSync(f"a copy from {source} to {target} waits for the device")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in METHODS:
            raise HostSync(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


def _is_mask(index) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@contextlib.contextmanager
def no_sync(uploads: bool = False) -> Iterator[None]:
    """Within it, what usually makes the host wait for a GPU raises HostSync, on a CPU too.

    That is: values read by Python, results whose size depends on values, copies between devices (with `uploads` those
    from the host are let through: pinned memory makes them asynchronous). Printing a tensor is not seen. The bodies of
    custom operators are not seen from outside: the kernels' own tests run those within this check.
    """
    with _Methods(), _Operators(uploads):
        yield
