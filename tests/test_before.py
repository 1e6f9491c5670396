"""Files that an earlier commit wrote are read by today's code, which finds the same numbers in them.

tests/before/run, study, cut, ensemble.yaml, detector.onnx    as commit 249ac36 wrote them (tests/before/make.py)
tests/before/expected.json                                    what its commands gave for them
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from engine.run.provenance import device_name, versions
from tests.before import commands

HERE = Path(__file__).resolve().parent / "before"
ROOT = next(folder for folder in HERE.parents if (folder / "pyproject.toml").exists())
MADE, EXPECTED = json.loads((HERE / "expected.json").read_text()).values()
EXPECTED["resume"]["state"].pop("best_epoch")  # state.json had it, and nothing read it
# Another processor or torch adds in another order, and 50 steps later a page may have another region.
SAME = (MADE["device"], MADE["versions"]["torch"], MADE["cpu"]) == (
    device_name(None), (versions()["torch"] or "").split("+")[0], torch.backends.cpu.get_cpu_capability(),
)  # fmt: skip
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def differences(found, expected, place: str) -> list[str]:
    """Where two plain values differ: whole numbers, keys and words at all, other numbers to the last digit."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return [line for key in expected for line in differences(found[key], expected[key], f"{place}/{key}")]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for k, pair in pairs for line in differences(*pair, f"{place}/{k}")]
    if isinstance(found, float) and isinstance(expected, float):
        same = found == expected
    elif isinstance(found, str) and isinstance(expected, str):
        numbers = [(float(a), float(b)) for a, b in zip(NUMBER.findall(found), NUMBER.findall(expected))]
        same = NUMBER.split(found) == NUMBER.split(expected) and all(a == b for a, b in numbers)
    else:
        same = found == expected and type(found) is type(expected)
    return [] if same else [f"{place}: {found!r}, expected {expected!r}"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What today's commands give for a copy of the files."""
    folder = tmp_path_factory.mktemp("before") / "copy"
    shutil.copytree(HERE, folder, symlinks=True, ignore=shutil.ignore_patterns("expected.json"))
    return commands.everything(folder, ROOT)


@pytest.mark.parametrize("name", EXPECTED)
def test_todays_commands_take_the_files_of_before(found, name):
    assert "failed" not in found[name], found[name]
    if isinstance(found[name], dict):
        assert found[name].keys() == EXPECTED[name].keys()


@pytest.mark.skipif(not SAME, reason=f"numbers of torch {MADE['versions']['torch']} on {MADE['device']} {MADE['cpu']}")
@pytest.mark.parametrize("name", EXPECTED)
def test_the_files_of_before_give_the_numbers_of_before(found, name):
    assert differences(found[name], EXPECTED[name], name) == []
