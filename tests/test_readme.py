"""Every command of the README is run: short ones whole, long ones with `--dry-run` at a size that 2 cores can hold."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, SUPPORT

TEXT = (ROOT / "README.md").read_text()
SMALL = " data.image_size=64 data.batch_size=1 trainer.device=cpu trainer.compile=false run_root=runs --dry-run"
CONTEST = " eval.protocol=contest"


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def _how(command: str) -> str | None:
    """What a command is run as here; None: not in this test, for the reason beside it."""
    if command.startswith("python3 -m venv"):
        # The environment is the one these tests run in; installing is .ci/run's part. What follows the install is run.
        after = command.split("&& ")[-1]
        return None if after.startswith("pytest") else after  # pytest is what is running
    if command == "pytest bench/":
        return None  # test_benchmarks below
    if command == "python -m bench.cubins":
        return None  # tests/bench/test_cubins.py compiles everything by this command, and prints its table
    if "faults.report" in command:
        return f"{command} restarts"  # one of its rows
    if "--max-restarts" in command:
        return command.replace("--nproc_per_node 8", "--nproc_per_node 2") + " preset=demo" + SMALL
    if command.startswith("torchrun") and "preset=" not in command:
        return None  # test_eight_ranks_of_the_default_preset below
    if command.startswith("python -m engine.search"):
        return _search(command)
    if "hrnet_w44" in command:
        local = "models.encoder.weights=hrnet_w44.safetensors"
        # The presets take timm's weights from its hub, which tests do without.
        command = command.replace(" models.encoder.weights=timm", "").replace(local, "") + f" {local}" + SMALL
        if "progressive" in command:  # one page of 32 px would leave one value a channel, which BatchNorm refuses
            command = command.replace("[640,960]", "[64]").replace("image_size=64", "image_size=96")
        return command
    if "receipts_cpu" in command:
        return command + SMALL
    if "preset=demo schedules" in command or "engine.folds" in command:
        return _many(command)
    command = command.replace("runs/receipts", "runs/mine")  # no training on receipts has run here
    if "engine/export/example.py" in command:
        return command.replace("engine/", f"{ROOT}/engine/")
    if "engine.tune" in command:
        return f"{command} --trials 1 --folds 2"
    if "rapidocr_receipts" in command:
        return f"{command} turns=1"
    return command + " --dry-run" if "name=tuned" in command else command


def _many(command: str) -> str:
    """Commands that train several times: schedules are only planned, folds trained for two steps."""
    if "schedules" in command:
        return f"{command} --dry-run"
    return re.sub(r"max_steps=\d+", "max_steps=2", command) + " data.image_size=64 data.batch_size=1 trainer.overlays=0"


def _search(command: str) -> str:
    """The command with --dry-run; where it makes or goes on with a study, that too, with a function for a training."""
    if "--import" in command:
        return command.replace("bench/data", str(ROOT / "bench" / "data"))
    if "--study mine" in command:
        function = "--study mine --objective search_objective:quadratic --sweep sweep.yaml --confirm 1"
        return f"{command} --dry-run && python -m engine.search --budget 5 {function}"
    if "--resume" in command or "--refine" in command:
        return re.sub(r"--budget \d+", "--budget 7" if "--resume" in command else "--budget 2", command)
    return command if "--report" in command else f"{command} --dry-run"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what the README's commands name: train.json, val.json, SROIE/, pictures, hrnet_w44.safetensors."""
    import safetensors.torch
    import timm

    from pipelines.synthetic import receipts

    folder = tmp_path_factory.mktemp("readme")
    made = receipts.write_dataset(folder / "made", 8, 5, 120, 150)
    for name in ("train.json", "val.json"):
        shutil.copy(made, folder / name)
    shutil.copytree(made.parent / "images", folder / "images")
    for name in ("page.jpg", "receipt.jpg", "b.png", "c.jpg"):
        Image.open(min((folder / "images").iterdir())).save(folder / name)
    (folder / "SROIE" / "box").mkdir(parents=True)
    shutil.copytree(made.parent / "images", folder / "SROIE" / "img")
    ids = []
    for name, page in json.loads(made.read_text())["images"].items():
        ids.append(Path(name).stem)
        rows = [
            ",".join(f"{v:.1f}" for point in word["points"] for v in point) + "," + word["transcription"]
            for word in page["words"].values()
        ]
        (folder / "SROIE" / "box" / f"{ids[-1]}.csv").write_text("\n".join(rows) + "\n")
    for name in ("train.txt", "val.txt"):
        (folder / "SROIE" / name).write_text("\n".join(ids) + "\n")
    sweep = (
        "method: bayes\nmetric: {name: val/hmean, goal: maximize}\nparameters:\n  T_max: {values: [15, 18, 20, 25]}\n"
    )
    lr = "  lr: {distribution: log_uniform_values, min: 1e-5, max: 2e-4}\n"
    (folder / "sweep.yaml").write_text(sweep + lr)
    safetensors.torch.save_file(timm.create_model("hrnet_w44").state_dict(), folder / "hrnet_w44.safetensors")
    return folder


def _run(command: str, folder: Path, timeout: float) -> subprocess.CompletedProcess:
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": paths,
        "PYTHONPATH": f"{ROOT}:{SUPPORT}",
        "WANDB_MODE": "offline",
    }
    environment.pop("TRITON_INTERPRET", None)  # a user's process has none
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done


def test_there_are_commands_and_none_names_a_place_of_ours():
    assert len(_commands()) > 15
    assert "@" not in re.sub(r"\S+@\S+\.\S+|USR1@60", "", TEXT), "a figure is missing"


def _run_here() -> list[str]:
    """The commands that are run here: of those that come to the same words in another order, the first."""
    found = {}
    for command in _commands():
        if how := _how(command):
            found.setdefault(" ".join(sorted(how.split())), command)
    return list(found.values())


def test_what_is_left_out_is_run_by_another_command():
    """Only the weights of the hub, which tests do without, and weights from a file come to the same."""
    (left,) = {command for command in _commands() if _how(command)} - set(_run_here())
    assert "models.encoder.weights=hrnet_w44.safetensors" in left


def _marked(command: str) -> object:
    """The fault suite's report is not CI's: the suite's quick tests are."""
    return pytest.param(command, marks=pytest.mark.slow) if "faults.report" in command else command


@pytest.mark.parametrize("command", [_marked(c) for c in _run_here()], ids=lambda c: c[:90])
def test_command(command, desk):
    done = _run(_how(command), desk, timeout=600)
    if command.endswith("engine.train preset=demo"):
        summaries = list(desk.glob("runs/demo-*/summary.json"))
        assert len(summaries) == 1
        assert json.loads(summaries[0].read_text())["val"]["hmean"] >= 0.85
        assert done.stdout.count("img/s") >= 10, "no visible progress"


def test_python(desk):
    """The blocks of Python, in one program; after the commands, which make what it reads."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    before = "import numpy as np\nfrom PIL import Image\narray = np.asarray(Image.open('page.jpg'))\n"
    after = "assert len(pages) == 3 and len(polygons) == len(scores)\nocr('page.jpg', use_rec=False, use_cls=False)\n"
    assert len(blocks) == 2
    (desk / "program.py").write_text("\n".join([before, *blocks, after]))
    _run("python program.py", desk, timeout=240)


@pytest.mark.slow
def test_eight_ranks_of_the_default_preset(desk):
    (command,) = [c for c in _commands() if c.startswith("torchrun") and "preset=" not in c and "restarts" not in c]
    _run(f"{command} models.encoder.weights=hrnet_w44.safetensors {SMALL}", desk, timeout=900)


@pytest.mark.slow
def test_benchmarks():
    _run("pytest bench/", ROOT, timeout=1800)
