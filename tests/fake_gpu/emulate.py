"""An emulated GPU: every operator on tensors of the fake one is computed by the CPU on the same memory.

    python -m tests.fake_gpu.emulate engine.train preset=demo ... , engine.evaluate checkpoint=...

runs these commands one after another ("," parts them) in one process that `run.environment` has started. Device memory
is host memory, so a tensor on "cuda" has an alias on the CPU. Views and allocations are torch's own; the rest runs on
aliases. Triton kernels run in Triton's interpreter. Two things are not as on a GPU: DALI's pipeline stays on the CPU,
and gloo is in NCCL's place.
"""

import ctypes
import dataclasses
import importlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from bench.fake_gpu import device

aten, CPU = torch.ops.aten, torch.device("cpu")
# Allocations, and what concerns memory alone: torch's own on the fake device.
NATIVE = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.detach.default,
    aten.record_stream.default,
    aten.is_pinned.default,
    aten._pin_memory.default,
    aten._resize_output_.default,
}
NATIVE_PREFIXES = ("aten.set_", "aten.resize_", "c10d", "_c10d", "profiler", "prim.")


def alias(tensor):
    """The same memory as a CPU tensor; whatever is no tensor on "cuda" as it is."""
    if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cuda":
        return tensor
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    buffer = (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
    raw = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    whole = torch.empty(0, dtype=tensor.dtype)
    return whole.set_(raw, tensor.storage_offset(), tensor.shape, tensor.stride())


def to_cuda(value, device: torch.device):
    """A CPU tensor's values and strides on the device; whatever is no tensor as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    out = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    if value.numel():
        alias(out).copy_(value)
    return out


def _is_view(func) -> bool:
    made = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return made and not func._schema.is_mutable


def _tensors(*trees) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, torch.Tensor) else None, trees)
    return found


class Emulated(TorchDispatchMode):
    """Within it, operators on "cuda" have values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        on = next((t.device for t in _tensors(args, kwargs) if t.device.type == "cuda"), None)
        if on is None and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            on = torch.device(kwargs["device"])
        if on is None:
            return func(*args, **kwargs)
        if func is aten._to_copy.default:
            return self._copied(*args, **kwargs)
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # below autograd, as in a custom operator or in inference mode, these come here whole
                return func.decompose(*args, **kwargs)
        name = str(func)
        if func in NATIVE or name.startswith(NATIVE_PREFIXES) or _is_view(func):
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return alias(args[0]).item()
        if func is aten.copy_.default:
            alias(args[0]).copy_(alias(args[1]))
            return args[0]
        if name.startswith("dbnet_engine"):  # its body calls operators of its own
            with self:
                return torch._library.custom_ops.OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        return self._computed(func, args, kwargs, on)

    def _computed(self, func, args, kwargs, on: torch.device):
        if kwargs.get("device") is not None:
            kwargs["device"] = CPU
        cpu_args, cpu_kwargs = tree_map(alias, args), tree_map(alias, kwargs)
        if func is aten.cudnn_batch_norm.default:
            x, weight, bias, mean, var, training, momentum, eps = cpu_args
            made = aten.native_batch_norm(x, weight, bias, mean, var, training, momentum, eps)
            return *(to_cuda(t, on) for t in made), torch.empty(0, dtype=torch.uint8, device=on)
        if func is aten.cudnn_batch_norm_backward.default:
            x, gradient, weight, mean, var, saved_mean, saved_var, eps, _reserve = cpu_args
            given = (gradient, x, weight, mean, var, saved_mean, saved_var, True, eps, [True] * 3)
            return tuple(to_cuda(t, on) for t in aten.native_batch_norm_backward(*given))
        if func is aten.histc.default and not cpu_args[0].is_floating_point():  # a GPU counts integers, a CPU does not
            return to_cuda(aten.histc(cpu_args[0].double(), *cpu_args[1:]).to(cpu_args[0].dtype), on)
        made = func(*cpu_args, **cpu_kwargs)
        if func._schema.is_mutable and any(r.alias_info is not None for r in func._schema.returns):
            return kwargs.get("out", args[0])
        return tree_map(lambda t: to_cuda(t, on), made)

    def _copied(self, x, **kwargs):
        """`x.to(...)`: torch's own copy where memory is only moved, so that it is recorded as on a GPU."""
        target = torch.device(kwargs.get("device") or x.device)
        if target.type == "cuda" and target.index is None:
            target = torch.device("cuda", torch.cuda.current_device())
        if kwargs.get("dtype") in (None, x.dtype) and x.device != target and x.is_contiguous():
            return aten._to_copy.default(x, **kwargs)
        kept = {n: v for n, v in kwargs.items() if n not in ("device", "non_blocking", "pin_memory")}
        made = aten._to_copy.default(alias(x), **kept)
        if target.type == "cuda":
            return to_cuda(made, target)
        return made.pin_memory() if kwargs.get("pin_memory") else made


def dali_on_the_cpu() -> None:
    """Loaders without DALI's GPU operators, which need a real driver; the image is copied by `Batch.to`."""
    from pipelines import loader

    plain = loader._Stream.__init__

    def on_the_cpu(self, source, options, ledger):
        plain(self, source, dataclasses.replace(options, device_id=None), ledger)

    loader._Stream.__init__ = on_the_cpu


def gloo_for_nccl() -> None:
    """Process groups of gloo where NCCL is asked for, bound to their device as with NCCL."""
    real = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda backend, **options: real("gloo", **options)


def main(argv: list[str]) -> int:
    """Runs the commands; see the module docstring."""
    device.attach()
    gloo_for_nccl()
    dali_on_the_cpu()
    with Emulated():
        while argv:
            end = argv.index(",") if "," in argv else len(argv)
            (module, *arguments), argv = argv[:end], argv[end + 1 :]
            code = importlib.import_module(module).main(arguments)
            if code:
                return code
    return 0


if __name__ == "__main__":
    from engine import cli

    cli.run(main)
