"""The executor that a command line names."""

import re
import sys

import pytest

from engine.jobs.open import open_executor
from pipelines.errors import UserError


@pytest.mark.parametrize(
    ("text", "agents", "gpus", "words"),
    [
        ("local", 4, ["0", "1"], "--agents 4: there are 2 GPUs; use --agents 2 or fewer"),
        ("local", 0, [], "--agents 0"),
        ("local:gpus=2", 1, [], "local takes no options"),
        ("dask", 1, [], "--executor dask: expected one of local, ray, slurm"),
        ("ray:gpu=2", 1, [], "--executor ray: unknown option gpu; expected gpus, cpus, address"),
    ],
)
def test_an_executor_that_cannot_be_is_one_line(text, agents, gpus, words):
    with pytest.raises(UserError, match=re.escape(words)):
        open_executor(text, agents, gpus)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=re.escape(f"pip install -e '.[{name}]'")):
        open_executor(name, 1)
