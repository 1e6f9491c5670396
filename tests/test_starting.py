"""How people start things: as a file, by srun and mpirun without torchrun, from another folder."""

import re
import sys

import pytest

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


def test_every_bench_that_is_for_pytest_says_so(tmp_path):
    for path in sorted((ROOT / "bench").glob("bench_*.py")):
        assert path in COMMANDS, path
