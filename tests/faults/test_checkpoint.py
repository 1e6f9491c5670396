"""SIGKILL at random bytes of a checkpoint write, and flipped bytes: `last` is always whole, the one before is used."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint import store
from pipelines.errors import UserError
from tests.conftest import TINY
from tests.faults import harness

# For every line of stdin a fork that writes checkpoints with the engine's own writer, again and again, from where the
# last one was killed, and says which step is on disk.
WRITES = """
import os, sys, torch
from pathlib import Path
from engine.checkpoint import store
from engine.checkpoint.writer import Writer
folder, side = Path(sys.argv[1]), int(sys.argv[2])
parts = {
    "model": {f"w{i}": torch.full((side, 256), float(i)) for i in range(24)},
    "optimizer": {f"{i}.exp_avg": torch.full((side, 256), float(i)) for i in range(24)},
}
def write():
    saved = store.newest(folder)
    step = store.load_state(saved)["step"] if saved else 0
    writer = Writer(folder, 2, 1)
    while True:
        step += 1
        writer.save(parts, {"step": step, "score": None if step % 3 else step % 7 / 10}, "seed: 0\\n")
        writer.wait()
        print(step, flush=True)
print("go", flush=True)
while sys.stdin.readline():
    pid = os.fork()
    if not pid:
        write()
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


def size(side: int) -> int:
    """Bytes of tensors in one: 12.6 MB with side 256."""
    return 2 * 24 * side * 256 * 4


@dataclasses.dataclass
class Kills:
    """What `kills` did: how many, at which share of a checkpoint's bytes those inside a write, checkpoints lost."""

    tried: int
    inside: list[float]
    lost: int


def written(folder: Path) -> int:
    """Bytes of the checkpoint that is being written; -1 while none is."""
    total = -1
    for temporary in folder.glob(".tmp_step_*"):
        try:
            total = max(total, sum(file.stat().st_size for file in temporary.iterdir()))
        except OSError:
            continue  # it has just been renamed
    return total


def after_kill(folder: Path, said: int) -> int:
    """Looks at what a killed writer has left; `said` was on disk. Returns the bytes of a half one, -1 for none."""
    assert store.verify(folder / "last") == ""
    steps = sorted(folder.glob("step_*"))
    assert all(store.verify(path) == "" for path in steps)
    assert not (folder / "best").is_symlink() or store.verify(folder / "best") == ""
    assert store.newest(folder) == steps[-1]
    assert said <= store.load_state(steps[-1])["step"] <= said + 1, "a checkpoint that was on disk is gone"
    assert len(list(folder.glob(".tmp_*"))) <= 2, "leftovers pile up"
    return written(folder)


def kills(folder: Path, count: int, side: int, seed: int = 0) -> Kills:
    """Kills the writing process `count` times: at random bytes of a write, and in what comes after the last byte."""
    rng, found = random.Random(seed), Kills(0, [], 0)
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(folder), str(side)],
        env=harness.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as writes:  # fmt: skip
        assert writes.stdout.readline() == "go\n"
        said = 0
        for _ in range(count):
            writes.stdin.write("\n")
            lines = [writes.stdout.readline(), writes.stdout.readline()]  # its number, its first checkpoint
            goal = rng.uniform(0, 1.2) * size(side)
            while written(folder) < min(goal, size(side)):
                time.sleep(0.0005)
            if goal > size(side):
                time.sleep(rng.uniform(0, 0.1))
            pid = max(int(line) for line in lines)
            os.kill(pid, signal.SIGKILL)
            while lines[-1] != "gone\n":
                lines.append(writes.stdout.readline())
            said = max(int(line) for line in lines[:-1] if int(line) != pid)
            half = after_kill(folder, said)
            found.tried += 1
            if half >= 0:
                found.inside.append(half / size(side))
                found.lost = max(found.lost, said + 1 - store.load_state(folder / "last")["step"])
        writes.stdin.close()
    found.inside.sort()
    return found


def test_10_kills_at_random_bytes_of_a_write(tmp_path):
    memory = Path("/dev/shm")  # a kill leaves the same there, and fsync waits for no disk that others write to
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        found = kills(Path(folder) / "checkpoints", 10, side=128)
    assert found.tried == 10 and len(found.inside) >= 5 and found.lost <= 1


@pytest.mark.slow
def test_200_kills_at_random_bytes_of_a_write(tmp_path):
    found = kills(tmp_path / "checkpoints", 240, side=256)
    shares = found.inside
    early = sum(share < 0.5 for share in shares)
    print(f"{found.tried} kills, {len(shares)} inside a write ({early} in its first half), {found.lost} lost at most")
    assert len(shares) >= 200 and found.lost <= 1
    assert early and len(shares) > early  # a busy machine looks late, so most are late


def flip(path: Path) -> None:
    """Turns one bit in the middle of a file, in place."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "manifest.json")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A checkpoints folder with steps 1 to 3, the third `last`, the second `best`."""
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    tensors = {part: {"w": torch.arange(1000.0)} for part in store.PARTS}
    for step in (1, 2, 3):
        path = store.write(folder, tensors, {"step": step, "score": None}, "seed: 0\n")
        store.link(folder, "last" if step == 3 else "best", path)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_found_and_the_one_before_is_used(three, tmp_path, name, capsys):
    folder = shutil.copytree(three, tmp_path / "run" / "checkpoints", symlinks=True)
    flip(folder / "step_00000003" / name)
    assert store.newest(folder).name == "step_00000002"
    assert "step_00000003 is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"checkpoint=.*last: damaged .*use .*step_00000002, which is whole"):
        store.locate(folder.parent, prefer="last")
    assert store.locate(folder.parent).resolve().name == "step_00000002"
    flip(folder / "step_00000002" / name)
    flip(folder / "step_00000001" / name)
    with pytest.raises(UserError, match=r"best: damaged .*has no other that is whole"):
        store.locate(folder.parent)


def test_a_link_that_leads_nowhere_is_not_passed_over_in_silence(three, tmp_path):
    folder = shutil.copytree(three, tmp_path / "run" / "checkpoints", symlinks=True)
    shutil.rmtree(folder / "step_00000002")
    with pytest.raises(UserError, match=r"best: damaged .*use .*step_00000003, which is whole"):
        store.locate(folder.parent)
    assert store.locate(folder.parent, prefer="last").resolve().name == "step_00000003"


@pytest.mark.slow
def test_resume_auto_goes_on_from_the_one_before_a_damaged_one_and_ends_alike(tmp_path):
    """The real command, once for each file of the newest checkpoint."""
    assert harness.finish(harness.start([*TINY, "name=calm", f"run_root={tmp_path}"], tmp_path)) == 0
    cut = [*TINY, f"run_root={tmp_path}", "resume=auto", "trainer.checkpoint_every_steps=1"]
    assert harness.finish(harness.start([*cut, "name=cut", "trainer.max_steps=6"], tmp_path)) == 0
    for name in FILES:
        if name == "ema.safetensors":
            continue  # the tiny run keeps no average
        run = shutil.copytree(tmp_path / "cut", tmp_path / "damaged", symlinks=True)
        flip(run / "checkpoints" / "step_00000006" / name)
        job = harness.start([*cut, "name=damaged"], tmp_path)
        assert harness.finish(job) == 0, harness.output(job)
        assert "step_00000006 is damaged" in harness.output(job)
        assert harness.sessions(run)[-1]["first_step"] == 5
        assert harness.differences(run, tmp_path / "calm") == [] and harness.faults_of(run) == {}
        shutil.rmtree(run)
