"""From a profiler's trace to the table of a step: pure functions over the events of a Chrome trace.

A trace (`torch.profiler`, `export_chrome_trace`) is a list of events with a name, a thread, a start and a duration in
microseconds. `train_step` marks its parts with ranges of the names in PARTS. Time is counted once:

- without a GPU, of each operator its own time: its duration less that of the events inside it, on the same thread;
- with a GPU, of each kernel its duration on the device. A kernel belongs to the part that the main thread was in when
  it was launched: backward launches from a thread of its own, but the main thread waits in its range meanwhile.

Collectives run beside the rest (NCCL on a stream, gloo in threads), so communication is not a share of the same whole.
"""

import bisect
import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

PARTS = ("data wait", "host to device", "targets", "forward", "loss", "backward", "optimizer", "EMA")
COMMUNICATION, OTHER = "communication", "other"
CONV, NORM, COPY, MATMUL, HOST = "convolution", "BatchNorm, pointwise", "copy, transposition", "matmul", "host code"
DATA = "data loading"
KINDS = (CONV, NORM, COPY, MATMUL, "loss", "targets", "optimizer", DATA, HOST, OTHER, COMMUNICATION)
OURS = ("loss", "targets")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")

# Inductor names a kernel after what it fuses; one that fuses nothing but these only moves data.
_MOVES = r"(to_copy|clone|copy|contiguous|transpose|permute|convolution|convolution_backward|view|unsafe_view|cat)"
# (pattern, kind), the first that is found decides. Names are of operators (aten::...) and of kernels of cuDNN, CUTLASS,
# ATen, Triton and Inductor (triton_poi = pointwise, triton_red, triton_per = with a reduction, triton_tem = product).
_NAMES = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"nccl|gloo:|c10d::", COMMUNICATION),
        (r"dali|nvjpeg|jpeg", DATA),
        (r"dbnet_engine::db_loss|_db_loss|^_?(sums|refine|choose|finish|gradient|binary)_kernel", "loss"),
        (r"dbnet_engine::db_targets|^_?(measure|bin|draw)_kernel", "targets"),
        (rf"triton_poi_fused_(_*{_MOVES})*_*\d*$", COPY),
        (r"triton_tem_fused_\w*conv|triton_\w*convolution2d", CONV),
        (r"triton_(tem_fused_\w*)?(mm|bmm|addmm)", MATMUL),
        (r"multi_tensor_apply|fused_adam|Optimizer\.|triton_for_|aten::_foreach|aten::_fused", "optimizer"),
        (r"triton_(poi|red|per)|cpp_fused|CompiledFxGraph", NORM),  # the last: Inductor's C++ on a CPU, all in one
        (r"batch_?norm|bn_(fw|bw)|dbnet_engine::norm|^_?norm_\w+_kernel", NORM),
        (r"nchwToNhwc|nhwcToNchw|(?<!conv_)transpos|copy|memcpy|convertTensor|aten::(cat|stack|clone)$", COPY),
        (r"implicit_gemm|fprop|dgrad|wgrad|winograd|cudnn|cutlass|mkldnn|conv(?!ert)", CONV),
        (r"gemm|gemv|cublas|aten::(mm|bmm|addmm|matmul|linear|addmv|mv|dot)$", MATMUL),
        (r"elementwise|reduce_kernel|upsample|pool|softmax|fill|memset", NORM),
    )
)  # fmt: skip


class Piece(NamedTuple):
    """Time of one operator or kernel."""

    name: str
    part: str  # of PARTS, "communication", or "other" for what is outside all ranges
    kind: str  # of KINDS
    us: float
    shape: str = ""  # of its first input, for operators
    relayout: bool = False  # it copies a 4-d tensor into another memory format


def classify(name: str, part: str = "", operator: str = "") -> str:
    """The kind of work that a kernel or operator does.

    Args:
        name: of the operator or kernel.
        part: range it was started in; decides for plain arithmetic of the loss, the targets and the optimizer.
        operator: for a kernel, the operator that launched it, if known: cuDNN runs 1x1 convolutions as products.
    """
    kind = _by_name(name)
    if kind == MATMUL and "conv" in operator.lower():
        return CONV
    if kind in (CONV, COPY, MATMUL, COMMUNICATION, DATA, *OURS):
        return kind
    if part in OURS and (kind or name.startswith("aten::")):
        return part
    if part in ("optimizer", "EMA") and (kind or name.startswith("aten::")):
        return "optimizer"
    if kind:
        return kind
    if name.startswith("aten::"):
        return HOST if re.search(r"aten::(empty|as_strided|view|to|detach|resize|permute|select|slice)", name) else NORM
    return OTHER if operator else HOST


@functools.cache  # a step has a hundred thousand events and a hundred names
def _by_name(name: str) -> str | None:
    return next((kind for pattern, kind in _NAMES if pattern.search(name)), None)


class _Frame(NamedTuple):
    """A host event, its own time, and the innermost part and operator it lies in."""

    event: dict
    own: list  # [us]
    part: str
    operator: str


def _nested(events: list[dict]) -> Iterator[_Frame]:
    """Host events of one thread with their own times: ranges nest, so a stack tells who lies in whom."""
    stack: list[_Frame] = []
    frames = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        while stack and event["ts"] >= stack[-1].event["ts"] + stack[-1].event["dur"]:
            stack.pop()
        name, part, operator = event["name"], "", ""
        if stack:
            stack[-1].own[0] -= event["dur"]
            part, operator = stack[-1].part, stack[-1].operator
        if name in PARTS:
            part = name
        ours = _by_name(operator) in OURS  # the loss's operators run in backward too
        if _by_name(name) in OURS or (event.get("cat") == "cpu_op" and not ours):
            operator = name
        frames.append(_Frame(event, [event["dur"]], part, operator))
        stack.append(frames[-1])
    return iter(frames)


class Trace(NamedTuple):
    """A trace, read: pieces of work, the host's time in each part, and the time from its first step to its end."""

    pieces: list[Piece]
    host_us: dict[str, float]
    whole_us: float
    on_gpu: bool


def read(events: Iterable[dict]) -> Trace:
    """Reads the events of a Chrome trace; see the module docstring."""
    whole = [e for e in events if e.get("ph") == "X" and "dur" in e]
    kernels = [e for e in whole if e.get("cat") in ON_DEVICE]
    host = [e for e in whole if e.get("cat") in ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")]
    marks = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in host if e["name"] in PARTS)
    host_us = {part: sum(end - start for start, end, name in marks if name == part) for part in PARTS}
    threads: dict = {}
    for event in host:
        threads.setdefault(event["tid"], []).append(event)
    frames = [frame for own in threads.values() for frame in _nested(own)]
    beside = [f for f in frames if f.event["name"].startswith("gloo:")]
    host_us[COMMUNICATION] = sum(f.event["dur"] for f in beside)
    pieces = _kernel_pieces(kernels, frames, marks) if kernels else _operator_pieces(frames, marks)
    steps = [e for e in host if e["name"] in PARTS or e["name"].startswith("ProfilerStep")]
    begin = min((e["ts"] for e in steps), default=0.0)
    whole_us = max((e["ts"] + e["dur"] for e in (*steps, *kernels)), default=0.0) - begin
    return Trace(pieces, host_us, whole_us, bool(kernels))


def _part_at(marks: list[tuple], time: float) -> str:
    """The part whose range holds a moment; parts do not overlap."""
    index = bisect.bisect_right(marks, (time, float("inf"), "")) - 1
    return marks[index][2] if index >= 0 and time < marks[index][1] else OTHER


def _operator_pieces(frames: list[_Frame], marks: list[tuple]) -> list[Piece]:
    pieces = []
    for event, (own,), part, operator in frames:
        name = event["name"]
        within = _by_name(operator)
        kind = classify(name, within if within in OURS else part)
        part = COMMUNICATION if kind == COMMUNICATION else part or _part_at(marks, event["ts"])
        pieces.append(Piece(name, part, kind, max(0.0, own), *_layouts(event)))
    return pieces


def _kernel_pieces(kernels: list[dict], frames: list[_Frame], marks: list[tuple]) -> list[Piece]:
    # cudaLaunchKernel and the like
    launches = {f.event["args"]["correlation"]: f for f in frames if "correlation" in (f.event.get("args") or {})}
    by_id = {(f.event.get("args") or {}).get("External id"): f.event for f in frames if f.event.get("cat") == "cpu_op"}
    pieces = []
    for event in kernels:
        given = event.get("args") or {}
        launch = launches.get(given.get("correlation"))
        operator = launch.operator if launch else ""
        part = _part_at(marks, launch.event["ts"]) if launch else OTHER
        within = _by_name(operator)
        kind = classify(event["name"], within if within in OURS else part, operator or "unknown")
        part = {COMMUNICATION: COMMUNICATION, DATA: OTHER}.get(kind, part)  # DALI has threads of its own
        source = by_id.get(given.get("External id"), {})
        pieces.append(Piece(event["name"], part, kind, event["dur"], *_layouts(source)))
    return pieces


def _layouts(event: dict) -> tuple[str, bool]:
    """(shape of the first input, whether two 4-d inputs of one shape have their dimensions in different orders)."""
    given = event.get("args") or {}
    dims, strides = given.get("Input Dims", []), given.get("Input Strides", [])
    shape = "x".join(str(n) for n in dims[0]) if dims and all(isinstance(n, int) for n in dims[0]) else ""
    if len(dims) < 2 or len(strides) < 2 or dims[0] != dims[1] or len(dims[0]) != 4:
        return shape, False
    wide = [i for i in range(4) if dims[0][i] > 1]  # the stride of a dimension of 1 means nothing

    def order(of: list[int]) -> list[int]:
        return sorted(wide, key=lambda i: (-of[i], i))

    return shape, order(strides[0]) != order(strides[1])


# --- tables ---


def part_rows(trace: Trace, steps: int) -> list[tuple[str, float, float, float]]:
    """(part, host ms a step, device ms a step, share of the step's time); the share is the device's where there is one.

    The last row is what is in no range: on the host the loop, on a GPU its idle time. Communication runs beside.
    """
    device = dict.fromkeys((*PARTS, COMMUNICATION, OTHER), 0.0)
    for piece in trace.pieces:
        device[piece.part] += piece.us
    rows, named = [], 0.0
    for part in (*PARTS, COMMUNICATION):
        host, own = trace.host_us[part], device[part] if trace.on_gpu else 0.0
        used = own if trace.on_gpu else host
        named += used if part != COMMUNICATION else 0.0
        rows.append((part, host / steps / 1e3, own / steps / 1e3, used / trace.whole_us))
    rest = max(0.0, trace.whole_us - named)
    label = "other, and the device's idle time" if trace.on_gpu else "other (the loop itself)"
    host = 0.0 if trace.on_gpu else rest / steps / 1e3
    rows.append((label, host, device[OTHER] / steps / 1e3, rest / trace.whole_us))
    return rows


def kind_rows(trace: Trace) -> list[tuple[str, float]]:
    """(kind, share of the time of all pieces but communication), in the order of KINDS, without empty ones."""
    whole = sum(p.us for p in trace.pieces if p.kind != COMMUNICATION) or 1.0
    sums = {kind: sum(p.us for p in trace.pieces if p.kind == kind) for kind in KINDS if kind != COMMUNICATION}
    return [(kind, us / whole) for kind, us in sums.items() if us]


class CopyRow(NamedTuple):
    """All copies of one name in one part, those that change a layout apart from the others."""

    name: str
    part: str
    relayout: bool
    calls: int
    us: float
    share: float  # of the time of all pieces but communication
    shape: str  # of the longest one


def copy_rows(trace: Trace) -> list[CopyRow]:
    """Every operator or kernel that copies or transposes, the longest first."""
    whole = sum(p.us for p in trace.pieces if p.kind != COMMUNICATION) or 1.0
    groups: dict[tuple[str, str, bool], list[Piece]] = {}
    for piece in trace.pieces:
        if piece.kind == COPY:
            groups.setdefault((piece.name, piece.part, piece.relayout), []).append(piece)
    rows = []
    for key, found in groups.items():
        us = sum(p.us for p in found)
        rows.append(CopyRow(*key, len(found), us, us / whole, max(found, key=lambda p: p.us).shape))
    return sorted(rows, key=lambda row: -row.us)
