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
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in OPERATORS or (name == "index" and any(_is_mask(part) for part in args[1])):
            raise HostSync(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in METHODS:
            raise HostSync(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


def _is_mask(index) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Within it, whatever would wait for a GPU raises HostSync, on a CPU too.

    The bodies of custom operators are not seen from outside: the kernels' own tests run those within this check.
    """
    with _Methods(), _Operators():
        yield
