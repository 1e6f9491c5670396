"""What `bench.gpu` checks and times: inputs like real ones, our kernels, eager PyTorch, torch.compile and the peers."""

import importlib.util
import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

from kernels.components import find_quads, label
from kernels.db_loss import db_loss
from kernels.db_targets import DBTargets, db_targets

LINES = 100  # polygons a page of 1280 pixels


class Case(NamedTuple):
    """One call to time."""

    op: str
    what: str
    call: Callable
    bytes: int = 0  # that it must move; 0: a peer
    graph: bool = False  # also time it as one CUDA graph
    scale: float = 1.0  # the call does 1 / scale of the batch


def polygons(pages: int, side: int, device: torch.device) -> tuple[Tensor, ...]:
    """Arguments of db_targets: pages of slightly turned text lines in two columns."""
    rng = random.Random(0)
    lines = max(4, LINES * side // 1280)
    points = []
    for index in range(pages * lines):
        row, column = divmod(index % lines, 2)
        w, h, turn = rng.uniform(0.1, 0.4) * side, rng.uniform(0.5, 0.9) * 2 * side / lines, rng.uniform(-0.05, 0.05)
        cx, cy = (column + 0.5) * side / 2, (row + 0.5) * 2 * side / lines
        c, s = math.cos(turn), math.sin(turn)
        corners = ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
        points += [(cx + c * u - s * v, cy + s * u + c * v) for u, v in corners]
    count = pages * lines
    offsets = torch.arange(count + 1) * 4, torch.arange(pages + 1) * lines
    given = (torch.tensor(points, dtype=torch.float32), *offsets, torch.zeros(count, dtype=torch.bool))
    return tuple(tensor.to(device) for tensor in given)


def loss_inputs(pages: int, side: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, DBTargets]:
    """Logits of a half-trained network and their targets."""
    given = polygons(pages, side, device)
    targets = db_targets(*given, height=side, width=side, implementation="triton", thresh_dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    noise = torch.randn((2, pages, side, side), generator=generator, device=device)
    x, y = 2 * noise[0] - 4 + 6 * targets.shrink_map, noise[1] - 0.5
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_(), targets


def prob_maps(pages: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(pages, side, side) maps like a trained network's: soft-edged shrunken lines of text, and some noise."""
    given = polygons(pages, side, torch.device("cpu"))
    cores = db_targets(*given, height=side, width=side, implementation="reference").shrink_map.float()
    soft = avg_pool2d(avg_pool2d(cores[:, None], 3, 1, 1), 3, 1, 1)[:, 0]
    noise = torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))
    return (0.9 * soft + 0.03 * noise).clamp(0, 1).to(device, dtype)


def adversaries(side: int) -> Tensor:
    """(6, side, side) bool: noise, checkerboard, comb, rings, diagonals, full."""
    y, x = np.mgrid[:side, :side]
    noise = np.random.default_rng(0).random((side, side))
    rings = np.minimum(np.minimum(x, y), side - 1 - np.maximum(x, y)) % 2 == 0
    masks = (noise < 0.5, (x + y) % 2 == 0, (x % 2 == 0) | (y == side - 1), rings, (x - y) % 3 == 0, x >= 0)
    return torch.from_numpy(np.stack(masks))


# --- checks ---


def check_all(device: torch.device, side: int) -> Iterator[tuple[str, bool, str]]:
    """(what, whether it is right, figures) of every op against its reference on the CPU, one by one."""
    yield check_targets(device, side)
    for dtype in (torch.bfloat16, torch.float32):
        yield check_loss(device, side, dtype)
    yield check_labels(device, side)
    for mode in ("fast", "slow"):
        yield check_quads(device, side, mode)


def check_targets(device: torch.device, side: int) -> tuple[str, bool, str]:
    """Masks may differ where rounding decides: at most 4 of a million pixels."""
    given = polygons(2, side, torch.device("cpu"))
    want = db_targets(*given, height=side, width=side, implementation="reference")
    moved = [tensor.to(device) for tensor in given]
    got = db_targets(*moved, height=side, width=side, implementation="triton", thresh_dtype=torch.float32)
    differing = sum(int((a != b.cpu()).sum()) for a, b in zip(want, got) if a.dtype == torch.uint8)
    error = (want.thresh_map - got.thresh_map.cpu()).abs().max().item()
    good = differing <= 4e-6 * want.shrink_map.numel() + 1 and error < 1e-4
    return f"db_targets, 2 x {side} x {side}", good, f"{differing} mask pixels, thresh_map {error:.1e}"


def check_loss(device: torch.device, side: int, dtype: torch.dtype) -> tuple[str, bool, str]:
    """Losses to 1e-5, gradients to 1e-5 of the largest plus one rounding of the dtype.

    Four pixels of a million may differ by more: where T is within an ulp of its target, the sign of the L1 loss is
    either (a 5 % chance a run that one pixel is).
    """
    x, y, targets = loss_inputs(2, side, device, dtype)
    got = db_loss(x, y, targets, implementation="triton")
    got_grads = torch.autograd.grad(got.total, (x, y))
    again = torch.autograd.grad(db_loss(x, y, targets, implementation="triton").total, (x, y))
    a, b = (logits.detach().cpu().requires_grad_() for logits in (x, y))
    want = db_loss(a, b, DBTargets(*(field.cpu() for field in targets)), implementation="reference")
    want_grads = torch.autograd.grad(want.total, (a, b))
    loss_error = max(abs(p.item() - q.item()) / max(1.0, abs(q.item())) for p, q in zip(got, want))
    errors = torch.cat(
        [
            ((p.cpu().double() - q.double()).abs() / q.abs().max().double()).flatten()
            for p, q in zip(got_grads, want_grads)
        ]
    )
    grad_error = errors.sort().values[-1 - int(4e-6 * errors.numel())].item()
    allowed = 1e-5 + torch.finfo(dtype).eps
    same = all(torch.equal(p, q) for p, q in zip(got_grads, again))
    good = loss_error < 1e-5 and grad_error < allowed and same
    name = f"db_loss {str(dtype).removeprefix('torch.')}, 2 x {side} x {side}"
    repeated = "repeatable" if same else "NOT REPEATED"
    return name, good, f"losses {loss_error:.1e}, gradients {grad_error:.1e}, {repeated}"


def check_labels(device: torch.device, side: int) -> tuple[str, bool, str]:
    """Adversarial masks, several times: a race would show as another partition."""
    masks = adversaries(side)
    times = 20 if device.type == "cuda" else 1
    wrong = 0
    for connectivity in (4, 8):
        want = label(masks, connectivity, implementation="reference").to(device)
        for _ in range(times):
            wrong += int((label(masks.to(device), connectivity, implementation="triton") != want).sum())
    return f"label, 6 adversarial masks of {side} x {side}, {times} times", wrong == 0, f"{wrong} pixels differ"


def check_quads(device: torch.device, side: int, score_mode: str) -> tuple[str, bool, str]:
    """Counts, order and scores equal, corners to 1e-3 px."""
    maps = prob_maps(4, side, torch.device("cpu"), torch.float32)
    want = find_quads(maps, score_mode=score_mode, implementation="reference")
    got = find_quads(maps.to(device), score_mode=score_mode, implementation="triton")
    equal = torch.equal(want.counts, got.counts.cpu()) and torch.equal(want.scores, got.scores.cpu())
    error = (want.quads - got.quads.cpu()).abs().max().item()
    name = f"find_quads {score_mode}, 4 x {side} x {side}"
    return name, equal and error < 1e-3, f"{int(want.counts.sum())} quads, corners {error:.1e} px, scores equal {equal}"


# --- times ---


def time_cases(device: torch.device, pages: int, side: int) -> Iterator[Case]:
    """What is timed, kernels before peers for every op; inputs are made when their op's turn comes."""
    for cases in (targets_cases, loss_cases, quads_cases):
        yield from cases(device, pages, side)


def targets_cases(device: torch.device, pages: int, side: int) -> list[Case]:
    """Writes 5 bytes a pixel: three masks and a bfloat16 map."""
    given = polygons(pages, side, device)

    def draw(implementation: str) -> Callable:
        return lambda: db_targets(*given, height=side, width=side, implementation=implementation)

    size = pages * side * side * 5
    return [
        Case("db_targets", "kernels", draw("triton"), size, graph=device.type == "cuda"),
        Case("db_targets", "reference, eager on this device", draw("reference")),
    ]


def loss_cases(device: torch.device, pages: int, side: int) -> list[Case]:
    """bf16: 9 bytes a pixel read once, 4 again, 9 read and 4 written in the backward pass."""
    x, y, targets = loss_inputs(pages, side, device, torch.bfloat16)
    plain = torch.compile(loss_without_ohem)

    def step(call: Callable) -> Callable:
        return lambda: torch.autograd.grad(call(x, y), (x, y))

    def ours(implementation: str) -> Callable:
        return step(lambda x, y: db_loss(x, y, targets, implementation=implementation).total)

    full = [logits.detach().float().requires_grad_() for logits in (x, y)]

    def single() -> tuple[Tensor, ...]:
        return torch.autograd.grad(db_loss(full[0], full[1], targets, implementation="triton").total, full)

    pixels = pages * side * side
    return [
        Case("db_loss", "kernels", ours("triton"), pixels * 26, graph=device.type == "cuda"),
        Case("db_loss", "kernels, float32 logits", single, pixels * 46),
        Case("db_loss", "reference, eager on this device", ours("reference")),
        Case("db_loss", "original: topk and int()", step(lambda x, y: loss_with_topk(x, y, targets))),
        Case("db_loss", "without OHEM, torch.compile", step(lambda x, y: plain(x, y, targets))),
    ]


def quads_cases(device: torch.device, pages: int, side: int) -> list[Case]:
    """Reads 2 bytes a pixel."""
    maps = prob_maps(pages, side, device, torch.bfloat16)
    on_gpu, masks = device.type == "cuda", maps > 0.3
    cases = [
        Case("find_quads", "kernels", lambda: find_quads(maps, implementation="triton"), maps.numel() * 2, on_gpu),
        Case(
            "find_quads", "kernels, slow scores", lambda: find_quads(maps, score_mode="slow", implementation="triton")
        ),
        Case("find_quads", "reference, eager on this device", lambda: find_quads(maps, implementation="reference")),
        Case("label", "kernels", lambda: label(masks, implementation="triton"), maps.numel() * 5, on_gpu),
    ]
    if on_gpu and importlib.util.find_spec("cupy") is not None:
        cases += cupy_cases(maps)
    if importlib.util.find_spec("cv2") is not None and importlib.util.find_spec("pyclipper") is not None:
        from bench.peers.classic_postprocess import classic_quads

        host, what = maps[0].float().cpu().numpy(), "findContours and pyclipper on one CPU core"
        cases.append(Case("find_quads", what, lambda: classic_quads(host), scale=pages))
    return cases


def cupy_cases(maps: Tensor) -> list[Case]:
    """cupyx.scipy.ndimage.label of the same masks, page by page: labels only, no boxes."""
    import cupy
    from cupyx.scipy import ndimage

    masks = [cupy.from_dlpack((page > 0.3).to(torch.uint8)) for page in maps]
    structure = cupy.ones((3, 3))
    return [Case("find_quads", "cupy label alone", lambda: [ndimage.label(mask, structure) for mask in masks])]


def loss_without_ohem(x: Tensor, y: Tensor, targets: DBTargets) -> Tensor:
    """The loss with all negatives: what torch.compile can fuse whole."""
    x, y = x.float(), y.float()
    goal, mask, band = (targets[i].float() for i in (0, 1, 3))
    cost = binary_cross_entropy_with_logits(x, goal, reduction="none")
    prob = (cost * mask).sum() / mask.sum()
    thresh = ((y.sigmoid() - targets.thresh_map.float()).abs() * band).sum() / band.sum().clamp(min=1)
    return 5 * prob + 10 * thresh + _dice(x, y, goal, mask)


def loss_with_topk(x: Tensor, y: Tensor, targets: DBTargets) -> Tensor:
    """The published loss as its trainers write it, eager, with two host syncs and a sort."""
    x, y = x.float(), y.float()
    goal, mask, band = (targets[i].float() for i in (0, 1, 3))
    cost = binary_cross_entropy_with_logits(x, goal, reduction="none")
    positive, negative = goal * mask, (1 - goal) * mask
    count = min(int(negative.sum()), int(3 * positive.sum()))
    worst = (cost * negative).flatten().topk(count).values
    prob = ((cost * positive).sum() + worst.sum()) / (positive.sum() + count + 1e-6)
    thresh = ((y.sigmoid() - targets.thresh_map.float()).abs() * band).sum() / band.sum().clamp(min=1)
    return 5 * prob + 10 * thresh + _dice(x, y, goal, mask)


def _dice(x: Tensor, y: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
    binary = (50 * (x.sigmoid() - y.sigmoid())).sigmoid()
    return 1 - 2 * (binary * goal * mask).sum() / ((binary * mask).sum() + (goal * mask).sum() + 1e-6)


def memory_of_loss(device: torch.device, pages: int, side: int) -> float:
    """Peak bytes a pixel beyond the inputs, forward and backward, of the loss on bf16 logits; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    x, y, targets = loss_inputs(pages, side, device, torch.bfloat16)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    torch.autograd.grad(db_loss(x, y, targets, implementation="triton").total, (x, y))
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / x.numel()
