import json
import os
import subprocess
import sys

import pytest

from bench import verdict
from tests.conftest import ROOT

CHEAP = ("bench/bench_db_targets.py", "-k", "54")  # one row, 2 s


def bench(*arguments: str, baselines, expected: int, cache=None) -> str:
    """The output of `pytest ARGUMENTS` as a process that must end with exit code `expected`."""
    command = [sys.executable, "-m", "pytest", *arguments, f"--bench-baselines={baselines}"]
    with_cache = {"XDG_CACHE_HOME": str(cache or "/proc/none")}  # nothing can be kept there
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | with_cache
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == expected, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def verdicts(path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {f"{one['bench']}: {one['case']}": one["verdict"] for one in rows}


@pytest.mark.slow
def test_a_planted_slowdown_turns_a_run_red_and_an_unchanged_tree_is_green(tmp_path):
    first = bench(*CHEAP, "--bench-update", baselines=tmp_path / "base", expected=0)
    assert "no baseline  db_targets" in first and "1 without a baseline" in first
    report = tmp_path / "run.jsonl"
    green = bench(*CHEAP, f"--bench-json={report}", baselines=tmp_path / "base", expected=0)
    assert "1 ok, 0 improved, 0 regressed" in green and list(verdicts(report).values()) == [verdict.OK]
    red = bench(*CHEAP, "--bench-plant=db_targets", baselines=tmp_path / "base", expected=1)
    assert "has regressed: " in red and "0 ok, 0 improved, 1 regressed" in red


@pytest.mark.slow
def test_a_machine_without_a_baseline_is_its_own(tmp_path):
    """Every user's first machine: the first run keeps its rows outside the repository, the second has verdicts."""
    place, none = tmp_path / "cache", tmp_path / "none"
    first = bench(*CHEAP, baselines=none, expected=0, cache=place)
    (kept,) = (place / "dbnet-engine" / "bench").glob("*.jsonl")
    assert "1 without a baseline" in first and f"1 rows kept as this machine's own baseline, {kept}" in first
    before = kept.read_text()
    report = tmp_path / "run.jsonl"
    second = bench(*CHEAP, f"--bench-json={report}", baselines=none, expected=0, cache=place)
    assert "0 without a baseline" in second and f"judged by this machine's own baseline, {kept}" in second
    assert next(iter(verdicts(report).values())) in (verdict.OK, verdict.IMPROVED) and kept.read_text() == before
    red = bench(*CHEAP, "--bench-plant=db_targets", baselines=none, expected=1, cache=place)
    assert "1 regressed" in red and kept.read_text() == before and not none.exists()
    bench(*CHEAP, "--bench-update", baselines=none, expected=0, cache=place)
    assert [path.name for path in none.iterdir()] == [kept.name] and kept.read_text() == before
    third = bench(*CHEAP, baselines=none, expected=0, cache=place)
    assert "own baseline" not in third and "1 ok" in third


def test_a_cache_that_cannot_be_written_fails_nothing(tmp_path):
    said = bench(*CHEAP, baselines=tmp_path, expected=0)
    assert "1 rows not kept as this machine's own baseline" in said


def test_a_plant_that_hits_nothing_is_no_green_run(tmp_path):
    said = bench(*CHEAP, "--bench-plant=db_loss", baselines=tmp_path, expected=4)
    assert "--bench-plant=db_loss: no row that ran is of a function of that name" in said


def test_a_planted_slowdown_cannot_become_the_baseline(tmp_path):
    said = bench(*CHEAP, "--bench-plant=all", "--bench-update", baselines=tmp_path, expected=4)
    assert "would keep a planted slowdown" in said
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def quick_baselines(tmp_path_factory):
    """This machine's baseline of the quick subset."""
    folder = tmp_path_factory.mktemp("baselines")
    bench("bench/", "-m", "quick", "--bench-update", baselines=folder, expected=0)
    return folder


@pytest.mark.slow
def test_a_slowdown_planted_in_any_function_is_seen(quick_baselines, tmp_path):
    report = tmp_path / "run.jsonl"
    bench("bench/", "-m", "quick", "--bench-plant=all", f"--bench-json={report}", baselines=quick_baselines, expected=1)
    found = verdicts(report)
    assert found and {name: seen for name, seen in found.items() if seen != verdict.REGRESSED} == {}


@pytest.mark.slow
def test_five_runs_of_an_unchanged_tree_are_green(quick_baselines):
    for _ in range(5):
        bench("bench/", "-m", "quick", baselines=quick_baselines, expected=0)
