"""How people start things: as a file, by srun and mpirun without torchrun, from another folder."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from engine import cli
from tests.conftest import ROOT, run_file

SOURCES = sorted(
    path for package in ("engine", "kernels", "pipelines", "bench") for path in (ROOT / package).rglob("*.py")
)
COMMANDS = [path for path in SOURCES if re.search(r'^if __name__ == "__main__":', path.read_text(), re.MULTILINE)]
ALONE = ROOT / "engine" / "export" / "example.py"  # needs nothing of ours


def test_no_module_has_the_name_of_one_of_the_standard_library():
    """A file that is run has its own folder in front of the standard library."""
    names = {part for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize("path", [p for p in COMMANDS if p != ALONE], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_command_run_as_a_file_is_the_command(path, tmp_path):
    """`python engine/train.py`, in an environment without the project and from any folder: its help, or one line."""
    done = run_file(path, "--help", cwd=tmp_path)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    if done.returncode:
        assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, said
    else:
        assert "usage" in said.lower() or "settings:" in said or "python -m" in said, said


TASKS = {
    "srun": {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
    "a step of srun": {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"},
    "a step in a batch script": {
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_ID": "0",
        "ENVIRONMENT": "BATCH",
    },
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
    "MPICH": {"PMI_SIZE": "2", "PMI_RANK": "0"},
}
ONE = {
    "torchrun under srun": {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "WORLD_SIZE": "16", "RANK": "8"},
    "a batch script of one task": {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "ENVIRONMENT": "BATCH"},
    "a batch script of several tasks, itself": {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "ENVIRONMENT": "BATCH"},
    "a step of one task": {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"},
    "a shell of salloc": {"SLURM_NTASKS": "4"},
    "one task of MPI": {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
}


def start(monkeypatch, environment):
    """Exit code of a command that only returns, started with these variables."""
    for name in [
        *(k for k in os.environ if k.startswith(("SLURM", "PMI", "OMPI"))),
        "WORLD_SIZE",
        "RANK",
        "ENVIRONMENT",
    ]:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cli, "TORCHRUN_GRACE_S", 0)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda argv: 0)
    return end.value.code


@pytest.mark.parametrize("case", TASKS)
def test_tasks_without_torchrun_are_refused_in_one_line(case, monkeypatch, capsys):
    """Each would train alone, all into folders of their own."""
    assert start(monkeypatch, TASKS[case]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "torchrun --nproc_per_node" in error
    assert ("mpirun" if "MPI" in case else "srun") in error


def test_only_the_first_task_speaks(monkeypatch, capsys):
    assert start(monkeypatch, {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("case", ONE)
def test_what_is_one_task_or_has_ranks_is_let_through(case, monkeypatch):
    assert start(monkeypatch, ONE[case]) == 0


def test_every_bench_that_is_for_pytest_says_so(tmp_path):
    for path in sorted((ROOT / "bench").glob("bench_*.py")):
        assert path in COMMANDS, path


@pytest.mark.parametrize("own", ["", "ACTIVE"])
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(own, tmp_path):
    """OpenMP itself tells what it has read when torch is loaded."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE"} | ({"OMP_WAIT_POLICY": own} if own else {})
    module = "import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module('engine.train', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", module], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"OMP_WAIT_POLICY = '(\w+)'", done.stderr)) == {own or "PASSIVE"}
    assert ("GOMP_SPINCOUNT = '10000'" in done.stderr) == (not own)


@pytest.mark.parametrize("how", ['trap "" INT; exec "$@"', 'exec "$@" <&-', 'exec taskset -c CORE "$@"'])
def test_the_tests_pass_in_the_background_without_stdin_and_on_one_core(how):
    """`nohup pytest &` has SIGINT ignored; a service has no stdin; the smallest machine has one core."""
    if "taskset" in how and shutil.which("taskset") is None:
        pytest.skip("no taskset here")
    tests = [str(ROOT / "tests" / "engine" / "training" / "test_watchdog.py"), "-k", "ctrl_c"]
    how = how.replace("CORE", str(min(os.sched_getaffinity(0))))
    words = ["bash", "-c", how, "bash", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
