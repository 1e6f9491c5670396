"""W&B that is away, slow, refuses, is killed or finds its disk full: the training does not notice, its record is whole.

Whole minutes, since W&B has limits of its own (20 s for its start); test_runlog.py has the short ones.
"""

import contextlib
import dataclasses
import http.server
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from engine.run.log import read_metrics
from tests.conftest import TINY
from tests.faults import harness

# The real training; the time inside each of its logging calls is written to $SPENT, with the step's own, in seconds.
TIMED = """
import json, os, sys, time
from engine import cli, train
from engine.run.log import RunLog
log, spent = RunLog._log, []
def timed(self, kind, record):
    start = time.perf_counter()
    log(self, kind, record)
    spent.append((time.perf_counter() - start, record.get("step_ms", 0) / 1000))
RunLog._log = timed
def main(argv):
    code = train.main(argv)
    with open(os.environ["SPENT"], "w") as file:
        json.dump(spent, file)
    return code
cli.run(main)
"""
EVERY, STEPS = 4, 240  # of 25 ms: a call of 1 ms is 1 %; a real run calls once in 20 steps of 200 ms or more
SETTINGS = (
    *TINY, "name=a", "wandb=true", "trainer.max_epochs=60", "eval.every_epochs=20", "resume=auto",
    f"trainer.log_every={EVERY}",
)  # fmt: skip
LOGGED = list(range(EVERY, STEPS + 1, EVERY))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What logging took: share of the time of the steps, mean and longest call in ms."""

    share: float
    mean_ms: float
    longest_ms: float


def environment(folder: Path, **more: str) -> dict[str, str]:
    """No key, mode or server but the given; W&B's own files in `folder`."""
    home = {name: str(folder) for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    return {"SPENT": str(folder / "spent.json"), "WANDB_MODE": "", "WANDB_API_KEY": "", "NETRC": "", **home, **more}


def start(folder: Path, **more: str) -> harness.Job:
    command = [sys.executable, "-c", TIMED, *SETTINGS, f"run_root={folder}"]
    return harness.start_command(command, folder, environment(folder, **more))


def unharmed(job: harness.Job, folder: Path) -> Cost:
    """Waits for the end; the run ended well, without a trace, its metrics are complete; returns what logging cost."""
    harness.wait_for(lambda: job.process.poll() is not None, 240, None)
    said = harness.output(job)
    assert job.process.returncode == 0 and "Traceback" not in said, said
    records = read_metrics(folder / "a" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == LOGGED
    assert [r["step"] for r in records if r["kind"] == "validation"] == [80, 160, 240]
    calls = json.loads((folder / "spent.json").read_text())
    assert len(calls) == len(LOGGED) + 3
    inside, steps = sum(call for call, _ in calls), EVERY * sum(step for _, step in calls)
    cost = Cost(inside / (inside + steps), 1000 * inside / len(calls), 1000 * max(call for call, _ in calls))
    print(f"{cost}, step {1000 * steps / STEPS:.1f} ms")
    assert cost.share < 0.01
    return cost


def histories(path: Path) -> list[int]:
    """Steps of the history records of a .wandb file, as `wandb sync` would send them.

    The format is LevelDB's log: 7 bytes, then blocks of 32 KiB of (crc32, length, kind, data); kinds 1 = whole record,
    2, 3, 4 = first, middle, last piece. A file whose writer was killed may end in a piece of one.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, pieces, steps = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + 7 : at + 7 + length]
        if len(piece) < length:
            break
        assert crc == zlib.crc32(piece, zlib.crc32(bytes([kind])))
        pieces = piece if kind in (1, 2) else pieces + piece
        at += 7 + length
        if kind in (1, 4):
            record = Record.FromString(pieces)
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
    return steps


def offline(folder: Path) -> list[int]:
    """Steps in the run's W&B file of the offline mode, once its processes have ended."""
    (path,) = (folder / "a" / "wandb").glob("offline-run-*/*.wandb")
    return histories(path)


@contextlib.contextmanager
def web(answer: int, seconds: float):
    """A server that answers every request with a status, after some seconds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            time.sleep(seconds)
            with contextlib.suppress(OSError):
                self.send_response(answer)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40}
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no key", "refused", "blackhole", "wrong key", "slow", "slow errors"])
def test_a_server_that_is_away_slow_or_refuses(tmp_path, fault):
    with contextlib.ExitStack() as stack:
        if fault == "no key":
            more = {}
        elif fault == "refused":
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            more = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "a" * 40}
        elif fault == "blackhole":
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
            more = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}", "WANDB_API_KEY": "a" * 40}
        else:
            code, seconds = {"wrong key": (401, 0.0), "slow": (200, 10.0), "slow errors": (500, 10.0)}[fault]
            more = stack.enter_context(web(code, seconds))
        job = start(tmp_path, **more)
        unharmed(job, tmp_path)
        assert "W&B is offline" in harness.output(job)
        harness.wait_for(lambda: not harness.pids(job), 150)  # the W&B process has 120 s of its own
        assert offline(tmp_path) == LOGGED


def tracking(job: harness.Job, word: str) -> int:
    """The process of the job's W&B part whose command holds a word."""
    found = [pid for pid in harness.pids(job) if any(word in part for part in harness.command_line(pid))]
    return found[0] if found else 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["wandb-core", "engine.run.tracker"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_service(tmp_path, victim, number):
    job = start(tmp_path)
    harness.wait_until_step(job, tmp_path / "a", 20)
    pid = harness.wait_for(lambda: tracking(job, victim), 60, job)
    harness.wait_for(lambda: list((tmp_path / "a" / "wandb").glob("*run-*/*.wandb")), 60, job)
    os.kill(pid, number)
    unharmed(job, tmp_path)
    assert "W&B" in harness.output(job), "nothing was said"
    harness.kill(job)
    steps = offline(tmp_path)
    assert steps == LOGGED[: len(steps)], "what is there can be sent"


@pytest.mark.slow
def test_a_full_disk_below_wandb_alone(tmp_path):
    folder = tmp_path / "a" / "wandb"
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        job = start(tmp_path)
        unharmed(job, tmp_path)
        assert "is full: W&B loses records" in harness.output(job)
        harness.kill(job)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
