"""An attempt as another machine runs it."""

import os
import subprocess
import sys

import pytest
from search_attempts import attempt_at

from engine.jobs import executor as executors
from engine.jobs import remote


def test_a_node_that_does_not_see_the_study_says_so(tmp_path):
    order = remote.prepare(attempt_at(tmp_path))
    missing = tmp_path / "not-shared.log"
    result = remote.run({**order, "log": str(missing)})
    assert result["code"] == 1 and f"cannot see {missing}: the study and the code must be" in result["fault"]


def test_an_attempt_as_another_machine_runs_it(tmp_path):
    """By value, in a process that cannot import this package: as a worker of Ray or Slurm has it."""
    pickle = pytest.importorskip("cloudpickle")
    pickle.register_pickle_by_value(remote)
    attempt = attempt_at(tmp_path, mode="crash")
    file = tmp_path / "call"
    file.write_bytes(pickle.dumps((remote.run, remote.prepare(attempt))))
    code = "import pickle, sys; run, order = pickle.load(open(sys.argv[1], 'rb')); print(run(order))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, file], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "{'code': 1, 'fault': ''}"
    assert executors.read_exit(attempt, False) == executors.Exit(1, "ValueError: this configuration crashes", False)
