"""The command: what is refused and in which words, its help, its end."""

import json
import signal
import subprocess
import sys
import time

import pytest

from engine.search import ledger, options
from engine.search.study import ENDED
from tests.conftest import ROOT, TINY
from tests.engine.search.conftest import SMALL_SWEEP, attempts_of, command, message, new


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--bugdet", "8"], ["unknown flag --bugdet", "did you mean --budget?"]),
        (["--early_stop=none"], ["did you mean --early-stop?"]),
        (["-x"], ["unknown flag -x", "--budget"]),
        (["--budget"], ["--budget: expected one argument"]),
        (["--budget", "--agents", "2"], ["--budget: expected one argument"]),
        (["--budget", "0"], ["--budget=0", "1 to 10000"]),
        (["--budget", "8.5"], ["--budget", "int value: '8.5'"]),
        (["--timeout", "nan"], ["--timeout=nan", "0 to 1e+06"]),
        (["--early-stop", "curv"], ["--early-stop", "'curv'", "curve"]),
        (["--method", "tpe"], ["'bayes', 'prior', 'random', 'grid'"]),
        (["--dry-run=yes"], ["--dry-run: ignored explicit argument 'yes'"]),
        (["train"], ["unexpected argument 'train'", "key=value"]),
        (["--study", "a/b"], ["--study a/b", "--study-root"]),
        (["--executor", "cluster"], ["--executor cluster", "local, ray, slurm"]),
        (["--resume", "--refine", "a"], ["--resume and --refine", "one of them"]),
        (["--resume"], ["studies holds no study", "--budget"]),
        (["--resume", "nowhere"], ["nowhere: no study there"]),
        (["--report", "nowhere"], ["nowhere: no study there"]),
        (["--report", "s", "preset=demo"], ["preset=demo", "--report takes a study"]),
        (["preset=dmeo"], ["preset=dmeo", "did you mean demo?"]),
        (["models.optimiser.lr=1"], ["did you mean models.optimizer.lr?"]),
        (["trainer.max_epochs=0"], ["trainer.max_epochs=0", "1 to"]),
        (["seed=3"], ["seed=3", "--seed"]),
        (["name=x"], ["name=x", "--study"]),
        (["run_root=x"], ["run_root=x", "--study-root"]),
        (["resume=auto"], ["resume=auto", "--resume"]),
        (["--epochs", "3"], ["--epochs", "trainer.max_epochs=N"]),
        (["--sweep", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["--method", "grid"], ["--method grid", "values or a q_ step"]),
        (["--agents", "8"], ["--agents 8 with --budget 8", "random search", "--agents 4", "--method prior"]),
        (["--agents", "9", "--budget", "4"], ["--agents 2"]),
        (["--objective", "a:b"], ["--objective needs --sweep"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_created(here, argv, words):
    text = message(*argv)
    assert [word for word in words if word not in text] == [], text
    assert not list(here.iterdir())


def test_help_is_quick_and_a_dry_run_creates_nothing(here):
    command = [sys.executable, "-X", "importtime", "-m", "engine.search"]

    def run(*argv):
        return subprocess.run(
            [*command, *argv], cwd=here, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )

    done = run("--help")
    assert done.returncode == 0 and all(flag in done.stdout for flag in options.FIELDS) and "preset=NAME" in done.stdout
    heavy = [
        name for name in ("torch", "skopt", "sklearn", "scipy", "matplotlib", "rich") if f" {name}\n" in done.stderr
    ]
    assert heavy == []
    done = run("--dry-run", "preset=demo", "wandb=true", "--study", "mine")
    assert done.returncode == 0, done.stderr
    assert "wandb_group=mine" in done.stdout and "wandb_job_type=preset" in done.stdout
    assert "-m engine.train preset=demo" in done.stdout and "name=000 resume=auto seed=0" in done.stdout
    done = run("--bugdet", "8")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: unknown flag --bugdet")
    assert not list(here.iterdir())


def test_a_search_without_any_measurement_says_why(place):
    sweep = place / "sweep.yaml"
    sweep.write_text(SMALL_SWEEP.replace("[15, 18, 20, 25]", "[20, 20.5]"))
    words = ("--objective", "search_objective:sick", "--sweep", str(sweep), "--budget", "1", "--study", "s", "T_max=20")
    done = subprocess.run(command(place, *words), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no trial could be measured" in done.stderr, done.stdout + done.stderr
    assert "ZeroDivisionError: as told" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_says_how_to_go_on_and_leaves_nothing_running(place, number):
    child = subprocess.Popen(new(place, 3), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in child.stdout:
        if "epoch 2" in line:
            break
    child.send_signal(number)
    text, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and f"--resume {place}/s" in text, text
    assert not attempts_of(place)
    (trial,) = ledger.read(place / "s").trials
    if number == signal.SIGTERM:
        return  # what follows is the same
    assert (trial.state, trial.retries) == ("asked", 0) and len(trial.curve) >= 2
    done = subprocess.run(command(place, "--resume", "s"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    study = ledger.read(place / "s")
    assert [trial.state for trial in study.trials] == ["finished"] * 3 and study.trials[0].attempts == 2
    more = subprocess.run(command(place, "--budget", "5", "--resume"), capture_output=True, text=True, check=False)
    assert more.returncode == 0, more.stdout + more.stderr
    longer = ledger.read(place / "s")
    assert longer.budget == 5 and longer.trials[:3] == study.trials and len(longer.trials) == 5


def test_a_second_driver_is_refused(place):
    child = subprocess.Popen(new(place, 2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    next(line for line in child.stdout if "starts" in line)
    other = subprocess.run(command(place, "--resume", "s"), capture_output=True, text=True, check=False)
    assert other.returncode == 2 and f"(process {child.pid} on " in other.stderr and other.stderr.count("\n") == 1
    child.communicate(timeout=60)
    assert child.returncode == 0


@pytest.mark.slow
def test_a_search_over_real_trainings(place):
    """The smallest training, two trials, the driver killed in the first: it goes on from its checkpoint."""
    arguments = [item for item in TINY if not item.startswith("trainer.max_epochs")]
    words = command(place, "--study", "s", "--budget", "2", "--early-stop", "none", *arguments, "trainer.max_epochs=3")
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    next(line for line in child.stdout if "epoch 1/3" in line)
    while not (place / "s" / "trials" / "000" / "checkpoints" / "last").exists():
        time.sleep(0.01)
        assert child.poll() is None
    child.kill()
    child.communicate()
    done = subprocess.run(command(place, "--resume", "s"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    study = ledger.read(place / "s")
    assert all(trial.state in ENDED and trial.epochs == 3 for trial in study.trials) and len(study.trials) == 2
    assert study.trials[0].attempts == 2
    sessions = json.loads((study.folder / "trials" / "000" / "run.json").read_text())["sessions"]
    assert len(sessions) == 2 and sessions[1]["first_step"] > 0
    assert (study.folder / "report.md").exists()
