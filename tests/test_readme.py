"""Every command of the documents is run, in order and in one folder: short ones whole, long ones with `--dry-run`.

What scores pages must print H-means above 0.8 there, what finds regions must find some. The README keeps its size, and
paths and links in all documents lead to something.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from tests.conftest import ROOT, SUPPORT

TOUR = ("README.md", "engine/README.md", "engine/search/README.md", "bench/README.md")  # their commands are run
DOCUMENTS = (*TOUR, "CONTRIBUTING.md", "engine/DECISIONS.md", "bench/results/LOG.md")
TEXTS = {name: (ROOT / name).read_text() for name in DOCUMENTS}
TREE = re.search(r"<!-- tree -->\n```\n(.*?)```", TEXTS["README.md"], re.S)
LEAST_HMEAN = 0.8
SMALL = " data.image_size=64 data.batch_size=1 trainer.device=cpu trainer.compile=false run_root=runs --dry-run"
# Words of a command, and what of its output is an H-mean, or a number of things found.
HMEANS = {
    "engine.train preset=demo name=": r"^val: H-mean ([\d.]+)",
    "engine.evaluate": r'"hmean": ([\d.]+)',
    "engine.report": r"^hmean ([\d.]+)",
    "engine.tune": r"own maps: ([\d.]+) -> ([\d.]+)",
    "engine.ensemble": r"^(?:runs/|mean of|soup of).*?  ([\d.]+) ",
    "engine.folds": r"^(?:fold \d|out of fold) +\d+ +([\d.]+)",
    "--rapidocr": r"H-mean ([\d.]+) in RapidOCR, ([\d.]+) in the engine",
    "bench.rapidocr_receipts": r"^(?:PP-OCR|ours).*? (\d\.\d{4}) ",
}
FINDS = {
    "engine.evaluate": r'"chars_hit": (\d+)',
    "engine.predict": r"(\d+) regions",
    "engine.export": r"(\d+) quads the same",
    "engine/export/example.py": r"^0\.\d+ (\d+)",
    "program.py": r"(\d+) regions",
}


def _blocks(language: str) -> list[str]:
    return [block for name in TOUR for block in re.findall(rf"```{language}\n(.*?)```", TEXTS[name], re.S)]


def _commands() -> list[str]:
    blocks = _blocks("bash")
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def _how(command: str) -> str | None:
    """What a command is run as here; None: not in this test, for the reason beside it."""
    if command.startswith("pip install"):
        return None
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
    if "schedules=" in command:
        return f"{command} --dry-run"
    command = command.replace("runs/receipts", "runs/demo")  # no training on receipts has run here
    if "engine/export/example.py" in command:
        return command.replace("engine/", f"{ROOT}/engine/")
    if "engine.tune" in command:
        return command.replace("SROIE/val.txt", "pages") + " --trials 1 --folds 2"
    if "rapidocr_receipts" in command:
        return f"{command} turns=1"
    return f"{command} --dry-run" if "name=frozen" in command else command


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
    """A folder with what the commands name and do not make: train.json, val.json, SROIE/, hrnet_w44.safetensors."""
    import safetensors.torch
    import timm

    from pipelines.synthetic import receipts

    folder = tmp_path_factory.mktemp("readme")
    made = receipts.write_dataset(folder / "made", 8, 5, 320, 320)  # the demo's size
    for name in ("train.json", "val.json"):
        shutil.copy(made, folder / name)
    shutil.copytree(made.parent / "images", folder / "images")
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
    for name, listed in (("train.txt", ids), ("val.txt", ids[:3])):
        (folder / "SROIE" / name).write_text("\n".join(listed) + "\n")
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
    if command.startswith("python -m") and not re.search(r"[*&|;$<>]", command):
        words = shlex.split(command)[2:]
        done = forked.run(words, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, timeout=timeout)
    else:
        how = {"capture_output": True, "text": True, "timeout": timeout, "check": False}
        done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, **how)
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done


def _see(command: str, output: str) -> None:
    """Fails where a command that scores pages or finds regions shows zeros."""
    for patterns, least in ((HMEANS, LEAST_HMEAN), (FINDS, 0)):
        for words, pattern in patterns.items():
            if words in command and "--dry-run" not in command:
                numbers = [float(text) for match in re.finditer(pattern, output, re.M) for text in match.groups()]
                assert numbers and min(numbers) > least, f"{command}: {pattern} gives {numbers}\n{output[-1500:]}"


def test_there_are_commands_and_none_names_a_place_of_ours():
    assert len(_commands()) > 15
    for text in TEXTS.values():
        assert "@" not in re.sub(r"\S+@\S+\.\S+|USR1@60", "", text), "a figure is missing"


def test_the_readme_is_short():
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 220
    assert len(text.split()) <= 2000
    assert text[: TREE.start()].count("\n") + 1 < 60
    assert len(TEXTS["CONTRIBUTING.md"].splitlines()) <= 90


def test_what_the_tree_names_exists():
    """A line is one or several names, then two blanks and what they are; two blanks in front of it: inside the last."""
    folders = []
    for line in TREE[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in line.strip().split("  ")[0].split():
            path = ROOT.joinpath(*folders[:depth], name)
            assert path.is_dir() if name.endswith("/") else path.is_file(), path
        folders[depth:] = [name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_and_links_lead_to_something(name):
    text, folder = TEXTS[name], (ROOT / name).parent
    for path in re.findall(r"`((?:engine|kernels|pipelines|bench|tests)/[\w/.*]*)`", text):
        assert any(ROOT.glob(path)) or (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text):
        path, _, anchor = "".join(link).partition("#")
        if not path.startswith("http"):
            target = folder / path if path else ROOT / name
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target.read_text()), link


def _anchors(text: str) -> list[str]:
    """What GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def _run_here() -> list[str]:
    """The commands that are run here: of those that come to the same words in another order, the first."""
    found = {}
    for command in _commands():
        if how := _how(command):
            found.setdefault(" ".join(sorted(how.split())), command)
    return list(found.values())


def test_what_is_left_out_is_run_by_another_command():
    """Weights of the hub, which tests do without, come to weights from a file; runs/receipts is runs/demo here."""
    left = {command for command in _commands() if _how(command)} - set(_run_here())
    assert all("hrnet_w44.safetensors" in command or "runs/receipts" in command for command in left), left


def _marked(command: str) -> object:
    """The fault suite's report is not CI's: the suite's quick tests are."""
    return pytest.param(command, marks=pytest.mark.slow) if "faults.report" in command else command


@pytest.mark.parametrize("command", [_marked(c) for c in _run_here()], ids=lambda c: c[:90])
def test_command(command, desk):
    done = _run(_how(command), desk, timeout=600)
    _see(_how(command), done.stdout)
    if command.endswith("name=demo"):
        assert json.loads((desk / "runs/demo/summary.json").read_text())["val"]["hmean"] >= 0.85
        assert done.stdout.count("img/s") >= 10, "no visible progress"


def test_python(desk):
    """The blocks of Python, in one program; after the commands, which make what it reads."""
    blocks = _blocks("python")
    assert len(blocks) == 3
    (desk / "program.py").write_text("\n".join(blocks))
    done = _run("python program.py", desk, timeout=240)
    _see("program.py", done.stdout)
    assert re.search(r"^\('.*'\)$", done.stdout, re.M), "RapidOCR has read nothing"


@pytest.mark.slow
def test_eight_ranks_of_the_default_preset(desk):
    (command,) = [c for c in _commands() if c.startswith("torchrun") and "preset=" not in c and "restarts" not in c]
    _run(f"{command} models.encoder.weights=hrnet_w44.safetensors {SMALL}", desk, timeout=900)


@pytest.mark.slow
def test_benchmarks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the machine's own baseline is the user's
    _run("pytest bench/", ROOT, timeout=1800)


def test_the_sweep_file_is_read_by_the_search_and_its_settings_by_a_training(tmp_path, capsys, monkeypatch):
    """`wandb agent` passes every parameter as --key=value to the program that the file names."""
    import yaml

    from engine import train
    from engine.search import __main__ as search

    (block,) = _blocks("yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_sweep.yaml").write_text(block)
    assert search.main(["--sweep", "my_sweep.yaml", "--budget", "8", "--dry-run"]) == 0
    assert "preset=demo" in capsys.readouterr().out
    found = yaml.safe_load(block)
    assert (ROOT / found["program"]).is_file()
    first = {k: p.get("value", p.get("min", p.get("values", [0])[0])) for k, p in found["parameters"].items()}
    with pytest.raises(SystemExit) as end:
        train.main([*(f"--{key}={str(value).lower()}" for key, value in first.items()), "--print-config"])
    assert end.value.code == 0 and "wandb: true" in capsys.readouterr().out
