"""torchrun's restarts: workers that are started again must meet under a name that the attempt before has not used.

From torch 2.5 on workers meet in the store of torchrun's agent, which outlives them: what the killed ones wrote there
is read by the next ones, who then call at addresses where nobody is (pytorch issue 135712; seen with 2.14: after any
restart "connectFullMesh failed ... Connection refused").
"""

import datetime
import os

import torch.distributed as dist


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
