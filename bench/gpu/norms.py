"""norm_relu for `bench.gpu`: checked on the device against the CPU, timed against PyTorch's layers, eager and compiled.

The map is HRNet-W44's first branch in 48 channels, a quarter of the page's side: 16 x 48 x 320 x 320 in bfloat16.

    bytes an element, forward and backward                  plain     with a residual
    kernels                                                 6 + 10    8 + 14
    F.batch_norm and relu, torch.compile                    7 + 12    9 + 15

The second row is what Inductor counts itself (`num_bytes_accessed`, its CPU backend) for this call: alone it keeps the
sign of z as a byte. In a chain of BasicBlocks it keeps z, which the next convolution needs, and moves 6 + 14 and
8 + 18; there the two gradients that reach a block's output are added up too, 4 to 6 bytes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.cases import Case
from kernels.norm_relu import norm_relu

CHANNELS, STRIDE, EPS = 48, 4, 1e-5
BYTES = {False: 6 + 10, True: 8 + 14}  # an element, by whether there is a residual


def norm_inputs(pages: int, side: int, device: torch.device, add: bool) -> tuple[list[Tensor | None], Tensor]:
    """([y, weight, bias, residual or None], dz): bfloat16 maps in channels_last, float32 vectors, with gradients."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (pages, CHANNELS, side // STRIDE, side // STRIDE)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    maps = [normal(*shape).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2 + add)]
    vectors = [normal(CHANNELS).requires_grad_() for _ in range(2)]
    y, dz = maps[0].requires_grad_(), maps[1]
    return [y, *vectors, maps[2].requires_grad_() if add else None], dz


def by_layers(y: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """What a network without the operator does."""
    z = F.batch_norm(y, None, None, weight, bias, training=True, eps=EPS)
    return F.relu(z if residual is None else z + residual)


def by_operator(implementation: str) -> Callable:
    """norm_relu as a function like `by_layers`."""
    return lambda y, weight, bias, residual: norm_relu(
        y, weight, bias, residual, eps=EPS, implementation=implementation
    )[0]


def gradients(call: Callable, given: list[Tensor | None], dz: Tensor) -> list[Tensor]:
    """z and the gradients of everything that is given."""
    z = call(*given)
    return [z.detach(), *torch.autograd.grad(z, [t for t in given if t is not None], dz)]


def norm_cases(device: torch.device, pages: int, side: int) -> list[Case]:
    """Forward and backward together; the operator's bytes are what it must move."""
    cases = []
    for add in (False, True):
        given, dz = norm_inputs(pages, side, device, add)
        op, size = "norm_add_relu" if add else "norm_relu", BYTES[add] * dz.numel()

        def step(call: Callable, given: list = given, dz: Tensor = dz) -> Callable:
            return lambda: gradients(call, given, dz)

        cases += [
            Case(op, "kernels", step(by_operator("triton")), size, device.type == "cuda"),
            Case(op, "F.batch_norm and relu, torch.compile", step(torch.compile(by_layers, dynamic=False))),
            Case(op, "F.batch_norm and relu, eager", step(by_layers)),
            Case(op, "reference, eager on this device", step(by_operator("reference"))),
        ]
    return cases


def check_norms(device: torch.device, side: int) -> tuple[str, bool, str]:
    """Kernels on the device against PyTorch's layers in float64 on the CPU, twice the same bits.

    Maps to a bfloat16 rounding of the largest value, 2^-8, twice that in Triton's interpreter, which cuts off, but for
    4 of a million: ReLU decides those within 1e-6 of 0 otherwise. The sums (dweight, dbias) to 1e-3 of the largest.
    """
    limit = 2.0**-8 if device.type == "cuda" else 2.0**-7
    worst, far, same = 0.0, 0.0, True
    for add in (False, True):
        given, dz = norm_inputs(2, side, device, add)
        got, again = (gradients(by_operator("triton"), given, dz) for _ in range(2))
        same = same and all(torch.equal(a, b) for a, b in zip(got, again))
        exact = [None if t is None else t.detach().cpu().double().requires_grad_() for t in given]
        want = gradients(by_layers, exact, dz.cpu().double())
        for a, b in zip(got, want):
            error = (a.cpu() - b).abs() / b.abs().max()
            if a.ndim == 4:
                far = max(far, ((error > limit).sum() - 1).item() / a.numel())
            else:
                worst = max(worst, error.max().item())
    name = f"norm_relu and norm_add_relu, 2 x {CHANNELS} x {side // STRIDE} x {side // STRIDE}"
    detail = f"{1e6 * max(far, 0):.1f} of a million far off, sums {worst:.1e}, two runs equal {same}"
    return name, same and far <= 4e-6 and worst <= 1e-3, detail
