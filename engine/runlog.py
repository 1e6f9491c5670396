"""The record of a run: its folder, where it came from, its metrics, what is shown while it runs.

    runs/NAME/config.yaml     the resolved settings; `preset=runs/NAME/config.yaml` starts the same run again
    runs/NAME/run.json        one entry a session: command, git state, versions, device, start time
    runs/NAME/metrics.jsonl   one JSON object a line: {"kind": "train" or "validation", "step": ..., "epoch": ..., ...}

metrics.jsonl is the source of truth; W&B, if it is on, gets a copy. torch is imported nowhere here.
"""

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import Config, to_dict, to_yaml
from engine.progress import Progress
from engine.say import reason, warn
from engine.tracker import Tracker
from pipelines.errors import UserError

if TYPE_CHECKING:
    from engine.distributed import Ranks

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
RECENT_S = 900.0  # between two records of a run that lives, and for torchrun to start its ranks again
BACKLOG_BYTES = 2**24  # of records that wait for the disk: 40,000 or so


def folder_of(config: Config) -> Path:
    """The folder of a run: run_root/name, or run_root/PRESET-UTCTIME without a name.

    Workers that torchrun starts again get the folder they had (`same_job`), whatever its time stamp.
    """
    name = config.name
    if not name and "TORCHELASTIC_RUN_ID" in os.environ:
        before = [path.parent for path in Path(config.run_root).glob("*/run.json") if same_job(path.parent)]
        if before:
            return max(before, key=lambda folder: (folder / "run.json").stat().st_mtime)
    if not name:
        now = datetime.datetime.now(datetime.UTC)
        name = f"{Path(config.preset).stem}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"
    return Path(config.run_root) / name


class Taken(UserError):
    """The run's folder holds another run."""


def refuse_taken(folder: Path, config: Config) -> None:
    """Refuses a folder that holds a run already when this one does not resume, and is not started again by torchrun.

    Raises:
        Taken: it is so.
    """
    if config.resume != "none" or not folder.exists() or same_job(folder):
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise Taken(f"{folder} exists already: give another name=NAME, or resume=auto to go on with that run")


def same_job(folder: Path) -> bool:
    """Whether a folder holds the unfinished run of this very torchrun job, whose workers are started again.

    It does if its last session had our torchrun id and our arguments, and either this is a restart or the run was alive
    within RECENT_S: an agent that joins late counts no restarts, but some start every job with the same id. The id
    "none" (the static rendezvous) says nothing.
    """
    job, restarts = os.environ.get("TORCHELASTIC_RUN_ID"), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if not job or (folder / "summary.json").exists():
        return False
    signs = [p.stat().st_mtime for p in (folder / "run.json", folder / "metrics.jsonl") if p.exists()]
    if not signs or (restarts == "0" and (job == "none" or time.time() - max(signs) > RECENT_S)):
        return False
    known = _sessions(folder / "run.json")[-1:]
    if not known or not isinstance(known[0], dict):
        return False
    environment, command = known[0].get("environment"), known[0].get("command")
    recorded = environment.get("TORCHELASTIC_RUN_ID") if isinstance(environment, dict) else None
    return recorded == job and isinstance(command, list) and command[2:] == sys.argv[1:]


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one move: a reader sees the old text or the new one, a full disk leaves the old one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:
    """A value as JSON has it: numpy scalars and arrays become Python's, NaN and infinity None, the unknown its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not isinstance(value, (bool, int, float, str, type(None))):
        return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Appends JSON lines to metrics.jsonl, each written and flushed whole.

    A run is not thrown away for its log. What cannot be written (full or read-only disk) is kept, up to BACKLOG_BYTES,
    and written with a later record, from the very byte on at which the disk stopped. A file that was deleted under the
    run is made anew from what the open one still holds, with `beside` (name: text), the other files of its folder.
    """

    def __init__(self, path: Path, resumed_step: int = 0, beside: Mapping[str, str] | None = None) -> None:
        self.path, self.lost = path, 0
        self._beside, self._backlog, self._problem = beside or {}, b"", ""
        if path.exists():
            read = read_metrics(path)  # what went wrong did, also in steps that are done again
            kept = [r for r in read if r.get("step", 0) <= resumed_step or r.get("kind") == "incident"]
            write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record; numbers that are not finite are written as null."""
        if len(self._backlog) < BACKLOG_BYTES:
            self._backlog += (json.dumps(plain(record), allow_nan=False) + "\n").encode()
        else:
            self.lost += 1
        self._flush()

    def _flush(self) -> None:
        """Writes what is to be written; says so when that begins to fail, and when it works again."""
        problem = ""
        try:
            if self._deleted():
                self._renew()
            while self._backlog:
                self._backlog = self._backlog[os.write(self._file, self._backlog) :]
        except OSError as error:
            problem = reason(error)
        if problem and not self._problem:
            warn(f"WARNING: {self.path} cannot be written ({problem}); training goes on, records wait in memory")
        elif self._problem and not problem:
            warn(f"note: {self.path} is written again, {f'{self.lost} records' if self.lost else 'nothing'} is missing")
        self._problem = problem

    def _deleted(self) -> bool:
        """Whether the path is not, or no longer, the open file."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def _renew(self) -> None:
        missing = not self.path.exists()  # else somebody has put another file there, and it is gone on with
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if missing:
            self._backlog = os.pread(self._file, os.fstat(self._file).st_size, 0) + self._backlog
            warn(f"WARNING: {self.path} was deleted under the run; it, config.yaml and run.json are made anew")
        os.close(self._file)
        self._file = file
        for name, text in self._beside.items():
            if not (self.path.parent / name).exists():
                write_text(self.path.parent / name, text)

    def close(self) -> None:
        """Closes the file and says how many records were lost, if any."""
        self._flush()
        os.close(self._file)
        missing = self.lost + self._backlog.count(b"\n")
        if missing:
            warn(f"WARNING: {missing} records are missing in {self.path}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl in file order; lines torn by a kill or a full disk are passed over.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


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


class RunLog:
    """What a running training reports to; silent on ranks above 0, where every part is None."""

    def __init__(self, metrics: MetricsLog | None, progress: Progress | None, tracker: Tracker | None) -> None:
        self.metrics, self.progress, self.tracker = metrics, progress, tracker

    def say(self, text: str) -> None:
        """Shows one line."""
        if self.progress is not None:
            self.progress.say(text)

    def train(self, record: Mapping[str, Any]) -> None:
        """Logs a window of steps: step, epoch (finished ones), lr, losses, images_per_second, data_wait_share, ..."""
        self._log("train", record)

    def validation(self, record: Mapping[str, Any]) -> None:
        """Logs an evaluation: step, epoch, hmean, precision, recall, score, ..."""
        self._log("validation", record)

    def incident(self, step: int, text: str) -> None:
        """Logs and shows something that went wrong and was dealt with."""
        if self.metrics is not None:
            self.metrics.write({"kind": "incident", "step": step, "text": text})
        self.say(f"step {step}: {text}")

    def _log(self, kind: str, record: Mapping[str, Any]) -> None:
        if self.metrics is None or self.progress is None:
            return
        record = plain(record)
        self.metrics.write({"kind": kind, **record})
        if kind == "train":
            self.progress.train(record)
        else:
            self.progress.validation(record)
        if self.tracker is not None:
            prefix = "val" if kind == "validation" else "train"
            known = {f"{prefix}/{key}": value for key, value in record.items() if key != "step" and value is not None}
            self.tracker.log(known, record["step"])

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures, for W&B's summary."""
        if self.tracker is not None:
            self.tracker.summary(plain(values))

    def close(self) -> None:
        """Ends the display, closes the file, gives the tracker a few seconds."""
        for part in (self.progress, self.metrics, self.tracker):
            if part is not None:
                part.close()


def open_run(folder: Path, config: Config, ranks: "Ranks", step: int = 0, steps_per_epoch: int = 0) -> RunLog:
    """Makes the run's folder and opens its log.

    Args:
        folder: as `engine.lock.claim` gave it.
        config: the resolved settings.
        ranks: who we are; ranks above 0 get a silent log and write nothing.
        step: step the run goes on from; later records of an earlier session are cut off, in one move.
        steps_per_epoch: for the time left; 0 = unknown.

    Raises:
        UserError: the folder cannot be written.
    """
    if not ranks.main:
        return RunLog(None, None, None)
    session = {**provenance(config, ranks.world_size, device_name(ranks.device)), "first_step": step}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sessions = _sessions(folder / "run.json") if step else []
        record = json.dumps({"sessions": [*sessions, session]}, indent=1) + "\n"
        beside = {"run.json": record, "config.yaml": to_yaml(config)}
        for name, text in beside.items():
            write_text(folder / name, text)
        metrics = MetricsLog(folder / "metrics.jsonl", step, beside)
    except OSError as error:
        raise UserError(f"{folder}: the run's folder cannot be written ({error.strerror})") from None
    limit = config.trainer.max_steps or math.inf
    total = min(limit, config.trainer.max_epochs * steps_per_epoch) if steps_per_epoch else config.trainer.max_steps
    progress = Progress(int(total), config.trainer.max_epochs, step)
    tracker = None
    if config.wandb:
        labels = {"group": config.wandb_group, "job_type": config.wandb_job_type}
        tracker = Tracker(config.wandb_project, folder.name, to_dict(config), folder, labels)
    return RunLog(metrics, progress, tracker)


def _sessions(path: Path) -> list:
    try:
        return json.loads(path.read_text())["sessions"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # an older or damaged file; the settings and metrics are kept elsewhere
