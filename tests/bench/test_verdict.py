"""Verdicts of `pytest bench/`: the rule by hand, baselines as files, whole runs with and without a planted slowdown."""

import dataclasses
import gc
import json
import os
import subprocess
import sys

import pytest
import torch

from bench import bench_kernels, harness, verdict
from bench.gpu import cases as gpu_cases
from pipelines.errors import UserError
from tests.conftest import DEVICE, ROOT

CHEAP = ("bench/bench_db_targets.py", "-k", "54")  # one row, 2 s

BASELINE = verdict.Row(
    bench="find_quads",
    case="1 page",
    impl="reference",
    dtype="float32",
    metric="cpu_ratio",
    unit="of a peer",
    p20=0.9,
    p50=1.0,
    p80=1.1,
    n=9,
    ms=(1.0, 2.0, 3.0),
    peer_ms=2.0,
    peak_mib=None,
    rate=500.0,
    rate_unit="images/s",
    device="desk",
    versions={"torch": "2.14.1"},
    commit="0" * 40,
    dirty=False,
    date="2026-11-25",
)


def row(**changes) -> verdict.Row:
    return dataclasses.replace(BASELINE, **changes)


@pytest.mark.parametrize(
    "p20, p50, p80, metric, expected",
    [
        (0.9, 1.0, 1.1, "cpu_ratio", verdict.OK),
        (1.8, 2.0, 2.2, "cpu_ratio", verdict.REGRESSED),
        (1.05, 2.0, 2.2, "cpu_ratio", verdict.OK),  # the best fifth reaches the baseline's worst: noise
        (1.11, 2.0, 2.2, "cpu_ratio", verdict.REGRESSED),
        (1.2, 1.39, 1.5, "cpu_ratio", verdict.OK),  # within the tolerance, outside the quantiles
        (1.2, 1.41, 1.5, "cpu_ratio", verdict.REGRESSED),
        (1.2, 1.41, 1.5, "wall_ratio", verdict.REGRESSED),
        (1.12, 1.15, 1.2, "cuda_us", verdict.REGRESSED),
        (1.02, 1.05, 1.2, "cuda_us", verdict.OK),
        (0.4, 0.5, 0.6, "cpu_ratio", verdict.IMPROVED),
        (0.4, 0.5, 0.95, "cpu_ratio", verdict.OK),
        (0.7, 0.75, 0.8, "cpu_ratio", verdict.OK),
    ],
)
def test_rule(p20, p50, p80, metric, expected):
    assert verdict.judge(row(p20=p20, p50=p50, p80=p80, metric=metric), row(metric=metric)) == expected


def test_no_baseline_is_said_and_is_no_failure():
    assert verdict.judge(BASELINE, None) == verdict.NO_BASELINE
    assert verdict.table([(BASELINE, None, verdict.NO_BASELINE)])[1].startswith("no baseline  find_quads: 1 page")


def test_key_holds_the_peer_and_the_device_but_no_versions():
    same = row(versions={"torch": "3"}, commit="1", dirty=True, p50=9.0, n=1, date="2027-01-01")
    assert same.key == BASELINE.key
    for change in ("bench", "case", "impl", "dtype", "metric", "unit", "device"):
        assert row(**{change: "other"}).key != BASELINE.key


def test_versions_that_differ_are_shown():
    now = row(versions={"torch": "2.15.0", "numpy": "2.4"})
    assert verdict.differing_versions(now, BASELINE) == {"torch": "2.14.1 -> 2.15.0", "numpy": "none -> 2.4"}
    lines = verdict.table([(now, BASELINE, verdict.OK)])
    assert "versions differ from the baseline's: torch 2.14.1 -> 2.15.0" in lines


def test_update_keeps_rows_that_did_not_run_and_files_each_device_by_itself(tmp_path):
    verdict.update(tmp_path, [row(case="a"), row(case="b")])
    verdict.update(tmp_path, [row(case="b", p50=7.0), row(case="b", device="gpu")])
    kept = verdict.load(tmp_path, "desk")
    assert {key[1]: one.p50 for key, one in kept.items()} == {"a": 1.0, "b": 7.0}
    assert [one.case for one in verdict.load(tmp_path, "gpu").values()] == ["b"]
    assert verdict.load(tmp_path, "none") == {}
    assert next(iter(kept.values())) == row(case="a"), "what is read is what was written"


def test_a_broken_baseline_is_told_with_its_line(tmp_path):
    path = tmp_path / "desk.jsonl"
    path.write_text(verdict.line(BASELINE) + "\n{}\n")
    with pytest.raises(UserError, match=r"desk\.jsonl:2 is no row"):
        verdict.load(tmp_path, "desk")


def test_committed_baselines_can_be_read():
    for path in verdict.FOLDER.glob("*.jsonl"):
        rows = verdict.load(verdict.FOLDER, path.stem)
        assert rows and all(one.device == path.stem for one in rows.values())


def test_device_slug_is_a_file_name_with_the_cores():
    slug = harness.device_slug()
    assert slug == harness.re.sub(r"[^a-z0-9-]", "", slug) and f"-{len(os.sched_getaffinity(0))}-cores" in slug


@pytest.mark.parametrize("planted", [False, True])
def test_a_measured_row(benchmark, planted):
    """16 Mi floats are 64 MiB; the plant doubles the time of ours; threads and the collector are as before."""
    threads = torch.get_num_threads()
    calls = []

    def ours():
        calls.append(1)
        return torch.ones(16 << 20)

    got = harness.measure(
        benchmark,
        "ones",
        "64 MiB",
        ours,
        lambda: torch.ones(16 << 20),
        peer_name="the same",
        moved_bytes=64 << 20,
        rounds=5,
        planted=planted,
    )
    assert got.n == 5 and got.metric == "cpu_ratio" and got.unit == "of the same"
    assert got.p20 <= got.p50 <= got.p80 and got.ms[0] <= got.ms[1] <= got.ms[2]
    assert 63 < got.peak_mib < 67
    assert got.rate_unit == "GB/s" and got.rate == pytest.approx((64 << 20) / got.ms[1] / 1e6)
    assert (1.4 < got.p50 < 2.8) if planted else (0.7 < got.p50 < 1.4)
    assert torch.get_num_threads() == threads and gc.isenabled()
    assert json.loads(verdict.line(got))["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_row_on_a_cpu_needs_a_peer():
    with pytest.raises(AssertionError, match="needs a peer"):
        harness.measure(None, "ones", "64 MiB", lambda: None)


def test_the_rows_of_a_gpu_are_cases_that_there_are():
    cases = {(case.op, case.what) for case in gpu_cases.time_cases(torch.device(DEVICE), 2, 64)}
    assert {row[:2] for row in bench_kernels.ROWS} <= cases


def bench(*arguments: str, baselines, expected: int) -> str:
    """The output of `pytest ARGUMENTS` as a process that must end with exit code `expected`."""
    command = [sys.executable, "-m", "pytest", *arguments, f"--bench-baselines={baselines}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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
