"""Verdicts of `pytest bench/`: the rule by hand, baselines as files, whole runs with and without a planted slowdown."""

import dataclasses

import pytest
import torch

from bench import bench_kernels, verdict
from bench.gpu import cases as gpu_cases
from pipelines.errors import UserError
from tests.conftest import DEVICE

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


def test_the_rows_of_a_gpu_are_cases_that_there_are():
    cases = {(case.op, case.what) for case in gpu_cases.time_cases(torch.device(DEVICE), 2, 64)}
    assert {row[:2] for row in bench_kernels.ROWS} <= cases
