"""Where a run comes from: command, git state, versions, device, environment."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.config.load import to_yaml

PACKAGES = (
    "torch",
    "triton",
    "timm",
    "numpy",
    "omegaconf",
    "shapely",
    "opencv-python-headless",
    "safetensors",
    "wandb",
)
DALI_PREFIX = "nvidia-dali-cuda"  # the package's name ends in the CUDA version
ENVIRONMENT = re.compile(r"^(CUDA|NCCL|OMP|MKL|TORCH|PYTORCH|TRITON|DALI|CUBLAS|SLURM_JOB|WORLD_SIZE|LOCAL_WORLD)")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|AUTH|COOKIE", re.IGNORECASE)
GIT_TIMEOUT_S = 5.0


def provenance(config: Config, world_size: int, device: str) -> dict[str, Any]:
    """Where a run comes from; environment values whose names look like secrets are never among it."""
    kept = {k: v for k, v in os.environ.items() if ENVIRONMENT.match(k) and not SECRET.search(k)}
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "config_sha256": hashlib.sha256(to_yaml(config).encode()).hexdigest(),
        "git": git_state(Path(__file__).resolve().parent),
        "versions": versions(),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": device,
        "world_size": world_size,
        "cpus": len(os.sched_getaffinity(0)),
        "environment": dict(sorted(kept.items())),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    dali = [d for d in importlib.metadata.distributions() if (d.name or "").startswith(DALI_PREFIX)]
    found["dali"] = dali[0].version if dali else None
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit": ..., "dirty": ...} of the checkout that holds `folder`; None outside one or without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: Any) -> str:
    """The name of a torch device: the GPU's, or the processor's."""
    if getattr(device, "type", "cpu") == "cuda":
        return sys.modules["torch"].cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    models = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return models[0] if models else platform.machine()
