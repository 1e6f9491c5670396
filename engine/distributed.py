"""Ranks: start, device, seeds, sums over ranks. torchrun's environment, NCCL on GPUs, gloo on CPUs."""

import dataclasses
import datetime
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from engine.console import one_line
from pipelines.errors import UserError

# Building an index of a large set on rank 0 takes minutes on a network disk, and the others wait in a collective.
TIMEOUT = datetime.timedelta(minutes=60)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Who we are among the processes: rank, local_rank, world_size (torchrun's words) and our device."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    def __post_init__(self) -> None:
        # Without a number DALI would take "cuda" for no GPU, and decode on the CPU.
        assert self.device.type != "cuda" or self.device.index is not None, "a GPU has a number: cuda:0"

    @property
    def main(self) -> bool:
        """Whether this rank prints and writes the run folder."""
        return self.rank == 0


def start(device: str = "auto", threads: int = 0) -> Ranks:
    """Joins the process group that torchrun describes; alone without torchrun.

    Args:
        device: auto, cpu or cuda (trainer.device).
        threads: torch's, of this process (trainer.threads); 0 = torch's own choice.

    Raises:
        UserError: cuda asked for where there is none, or more local ranks than GPUs.
    """
    limit_threads(threads)
    loopback_for_one_node()
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    use_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if use_cuda and not torch.cuda.is_available():
        raise UserError("trainer.device=cuda: torch sees no GPU here; use trainer.device=cpu or auto")
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"--nproc_per_node asks for local rank {local_rank}, this machine has {torch.cuda.device_count()} GPU(s)"
        )
    chosen = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(chosen)
    if world_size > 1:
        dist.init_process_group(
            "nccl" if use_cuda else "gloo",
            timeout=TIMEOUT,
            store=store(TIMEOUT),
            rank=rank,
            world_size=world_size,
            device_id=chosen if use_cuda else None,
        )
    return Ranks(rank, local_rank, world_size, chosen)


def limit_threads(threads: int) -> None:
    """Torch's threads of this process; 0 leaves them as they are."""
    if threads:
        torch.set_num_threads(threads)


def loopback_for_one_node() -> None:
    """Keeps the ranks' own sockets on the loopback device where all ranks are on this machine.

    gloo and NCCL otherwise listen on the interface of the host's name, for anybody who reaches it, without a password.
    A choice of the user's (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME) stays, and NCCL's is gloo's too where it names one
    device: `Agreement` uses gloo beside it.
    """
    chosen = os.environ.get("NCCL_SOCKET_IFNAME", "")
    if chosen and chosen.isalnum():  # not a list, `^docker` or `=eth`
        os.environ.setdefault("GLOO_SOCKET_IFNAME", chosen)
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE", "1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")


def stop() -> None:
    """Leaves the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def seed_everything(seed: int, deterministic: bool) -> None:
    """Same weights on every rank from the same seed. Augmentation has its own keyed generator and ignores this."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic


def sum_over_ranks(values: np.ndarray, device: torch.device) -> np.ndarray:
    """Element-wise sum of a float64 vector over all ranks; exact for integers below 2^53, so order does not matter."""
    if not dist.is_initialized():
        return values
    tensor = torch.as_tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()  # a sync, outside the step


def gather_objects(item: object) -> list:
    """One small picklable object from every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [item]
    items: list = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def broadcast_object(item: Any) -> Any:
    """Rank 0's object on every rank."""
    if not dist.is_initialized():
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(model: torch.nn.Module) -> None:
    """Rank 0's BatchNorm statistics to every rank: they are the authoritative ones (DDP does not broadcast them).

    One broadcast for each dtype, not one for each of HRNet-W44's 975 buffers.
    """
    if not dist.is_initialized():
        return
    buffers = list(model.buffers())
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):  # in the same order on all ranks
        group = [buffer for buffer in buffers if buffer.dtype == dtype]
        joined = torch.cat([buffer.reshape(-1) for buffer in group])
        dist.broadcast(joined, src=0)
        for buffer, part in zip(group, torch.split(joined, [buffer.numel() for buffer in group]), strict=True):
            buffer.copy_(part.view(buffer.shape))


class Agreement:
    """Small integers that the ranks agree on after every step, on the host: a request to stop, skipped steps.

    A gloo group of its own, so nothing waits for the device, whose queue holds the step's work meanwhile.

    Raises:
        UserError: the ranks cannot reach one another by gloo.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if not dist.is_initialized():
            return
        try:
            group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        except RuntimeError as error:  # torch's own kinds are its children
            raise UserError(
                f"the ranks do not reach one another by gloo ({one_line(error)}): set GLOO_SOCKET_IFNAME to the "
                "network device between the machines"
            ) from None
        assert isinstance(group, dist.ProcessGroup), "every rank is in it"
        self._group = group

    def max_over_ranks(self, *values: int) -> list[int]:
        """The largest of every value over the ranks, the same on all; all must call it at the same step."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return tensor.tolist()


def from_main(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """The picklable result of `work`, done by rank 0 only, on every rank; its UserError ends all of them."""
    result = on_main_first(ranks, lambda: work() if ranks.main else None)
    return broadcast_object(result)


def on_main_first(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """Runs `work` on rank 0 first (it may write files), then on the others (they find them ready).

    A UserError on rank 0 is raised on every rank, so that no rank waits for one that has left.
    """
    result, failure = None, None
    if ranks.main:
        try:
            result = work()
        except UserError as error:
            failure = str(error)
    failure = broadcast_object(failure)
    if failure is not None:
        if ranks.main:
            raise UserError(failure)
        time.sleep(2)  # rank 0 says why; torchrun ends all ranks as soon as one has left
        sys.exit(2)
    return result if ranks.main else work()


def store(timeout: datetime.timedelta) -> dist.Store | None:
    """The agent's store under a name of this attempt, for `init_process_group`; None = what torch does by itself.

    Only with one agent, whose count of restarts all workers share. Agents of several nodes count each for themselves.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    address, port, ranks = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
    common = dist.TCPStore(address, int(port), int(ranks), is_master=False, timeout=timeout)
    return dist.PrefixStore(f"attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", common)


def caution() -> str:
    """One line where several agents share a store and may restart their workers, else ""."""
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if several and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return (
            "torchrun cannot restart workers of several nodes that share its store (pytorch issue 135712): set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment it is started from"
        )
    return ""
