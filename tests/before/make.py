"""Makes the fixtures of this folder: pages, a run, studies, an ensemble and an export as commit 249ac36 wrote them.

That is the commit before the modules of the engine moved into rooms. tests/test_before.py proves that later code still
reads these files and finds the same numbers. To make them again (4 minutes), from the root of the repository:

    git worktree add --detach /tmp/before-code 249ac36
    ln -s "$(python -c 'import sys; print(sys.prefix)')" /tmp/before-venv
    /tmp/before-venv/bin/python tests/before/make.py /tmp/before-code

Runs and studies name the folder, the command and the Python they were made with; so that these say nothing of a
machine, all of it happens in /tmp/before, which must not exist. The files are as the commands left them; left out are
pictures, pages made from others, locks, and what a resume makes again. expected.json is what the same commit's commands
then gave for a copy of them.

The run is a training of some seconds that finds most texts of its pages. trainer.max_steps ended it in the middle of an
epoch, so that its one checkpoint is `last` and `best`. The network is timm's smallest with the four maps, and momentum
keeps one number a weight where Adam keeps two: the whole of it is 1.2 MB.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import commands
import torch
from commands import Place

HERE, WORK = Path(__file__).resolve().parent, Path("/tmp/before")
MADE = ("pages", "run", "study", "cut", "ensemble.yaml", "detector.onnx")
TRAINING = (
    "preset=demo",
    "run_root=.",
    "name=run",
    "seed=1",
    "data.train=pages/train",
    "data.val=pages/val",
    "data.image_size=[96,96]",
    "data.batch_size=4",
    "data.threads=1",
    "models.encoder.name=test_efficientnet",
    "models.decoder.inner_channels=16",
    "models.decoder.output_channels=6",
    "models.head.hidden_channels=8",
    "models.optimizer.name=sgd",
    "models.optimizer.lr=0.1",
    "trainer.threads=1",
    "trainer.max_epochs=60",
    "trainer.max_steps=221",  # of 240, 4 an epoch: one step into epoch 56
    "trainer.keep_last=1",
    "trainer.overlays=0",
    "eval.every_epochs=20",
)
SEARCH = (
    "engine.search", "--objective", "objective:quadratic", "--sweep", "sweep.yaml", "--study-root", ".",
    "--epochs", "5", "lr=3e-3", "decay=1e-5", "T_max=5",
)  # fmt: skip


def synthetic(place: Place) -> None:
    """Pages whose shape is not the canvas's."""
    for name, pages, seed, size, difficulty in (("train", 16, 1, "96x80", 0.3), ("val", 6, 2, "112x80", 0.7)):
        words = ("--pages", str(pages), "--seed", str(seed), "--size", size, "--difficulty", str(difficulty))
        place.module("pipelines.dataset", "synth", "--out", f"pages/{name}", *words)


def train(place: Place) -> None:
    """The run; it must find texts, and have one checkpoint."""
    place.module("engine.train", *TRAINING)
    folder = place.folder / "run"
    hmean = json.loads((folder / "summary.json").read_text())["val"]["hmean"]
    steps = sorted(path.name for path in folder.glob("checkpoints/step_*"))
    assert 0.9 < hmean < 1 and steps == ["step_00000221"], (hmean, steps)
    (folder / "curves.png").unlink()


def search(place: Place) -> None:
    """A study that has ended, and one that SIGTERM stopped in the second epoch of its third trial."""
    place.module(*SEARCH, "--study", "study", "--budget", "5")
    driver = subprocess.Popen(
        [sys.executable, "-m", *SEARCH, "--study", "cut", "--budget", "4"], cwd=place.folder, stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(place.code), "OMP_NUM_THREADS": "1", "BEFORE_EPOCH_S": "0.6"},
    )  # fmt: skip
    ledger = place.folder / "cut" / "trials.jsonl"
    while not (ledger.exists() and '"trial": 2, "attempt": 1, "epoch": 1' in ledger.read_text()):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    driver.wait()
    for study in ("study", "cut"):
        for path in (place.folder / study).iterdir():
            if path.name not in ("trials.jsonl", "trials"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (place.folder / study / "trials").glob("*.lock"):
            path.unlink()


def join(place: Place) -> None:
    """ensemble.yaml, which names its members below its own folder: `resumed` is made by a resume before it is read."""
    out = place.folder
    members = ["run", "resumed/checkpoints/last", "data.val=pages/val", "--flips", "h", "--weights", "2,1"]
    place.module("engine.ensemble", *members, "--out", ".")
    for name in ("report.json", "ensemble.png"):
        (out / name).unlink()


def main(code: Path) -> None:
    WORK.mkdir()
    for name in ("objective.py", "sweep.yaml"):
        shutil.copy(HERE / name, WORK)
    place = Place(WORK, code)
    synthetic(place)
    train(place)
    search(place)
    place.module("engine.export", "run", "--onnx", "detector.onnx", "data.val=pages/val")
    resume_and_rest = commands.everything(WORK, code, before_ensemble=join)
    failed = {name: found for name, found in resume_and_rest.items() if "failed" in found}
    assert not failed, failed
    for name in ("lock", "report.md", "report.html", "figures"):  # of --report
        path = WORK / "study" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in MADE:
        shutil.rmtree(HERE / name) if (HERE / name).is_dir() else (HERE / name).unlink(missing_ok=True)
        copy = shutil.copytree if (WORK / name).is_dir() else shutil.copy
        copy(WORK / name, HERE / name, **({"symlinks": True} if (WORK / name).is_dir() else {}))
    record(code)


def record(code: Path) -> None:
    """expected.json: what the commands of a checkout give for a copy of this folder, and on which machine."""
    session = json.loads((HERE / "run/run.json").read_text())["sessions"][0]
    made = {"commit": session["git"]["commit"], "device": session["device"], "versions": session["versions"]}
    made["cpu"] = torch.backends.cpu.get_cpu_capability()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(
            HERE, Path(folder) / "copy", symlinks=True, ignore=shutil.ignore_patterns("expected.json")
        )
        found = commands.everything(copy, code)
    (HERE / "expected.json").write_text(json.dumps({"made": made, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
