"""Options, the `measure` fixture and the table of verdicts of `pytest bench/`.

    def test_targets(measure):
        measure("db_targets", "1 page", ours, peer, peer_name="pyclipper + OpenCV", images=1)

measures a row (arguments: `bench.harness.measure`), compares it with this device's baseline and fails the test if it
has regressed; it returns the row for further assertions. One call a test. The names are fixed: bench is the function,
case its input; changing one, or the peer's name, starts a new baseline. For an `ours` of seconds give rounds=5.
"""

import functools
from pathlib import Path

import pytest

from bench import harness, verdict

JUDGED = pytest.StashKey[list]()
PLANT_ALL = "all"


def pytest_addoption(parser):
    group = parser.getgroup("bench", "rows and baselines of bench/")
    group.addoption("--bench-update", action="store_true", help="write this run's rows into the device's baseline")
    group.addoption("--bench-json", type=Path, metavar="FILE", help="write rows and verdicts to FILE, one a line")
    group.addoption("--bench-baselines", type=Path, default=verdict.FOLDER, metavar="DIR", help="default: %(default)s")
    group.addoption(
        "--bench-plant",
        metavar="NAME",
        help=f"plant a slowdown of 2 into the rows of one benched function, or into {PLANT_ALL}: the run must fail",
    )


def pytest_configure(config):
    config.stash[JUDGED] = []
    config.option.benchmark_quiet = True  # pytest-benchmark's own table of wall times: --benchmark-verbose
    if config.getoption("bench_update") and config.getoption("bench_plant"):
        raise pytest.UsageError("--bench-update with --bench-plant would keep a planted slowdown: give one of them")


@pytest.fixture
def measure(benchmark, request):
    """Measures one row, judges it, and returns it. Fails the test with one line if the row has regressed."""
    config = request.config

    def measured(bench, case, *args, **options):
        planted = config.getoption("bench_plant") in (bench, PLANT_ALL)
        row = harness.measure(benchmark, bench, case, *args, planted=planted, **options)
        assert row.key not in [other.key for other, _, _ in config.stash[JUDGED]], f"two rows are called {row.name}"
        baseline = baselines(config.getoption("bench_baselines"), row.device).get(row.key)
        result = verdict.judge(row, baseline)
        config.stash[JUDGED].append((row, baseline, result))
        if result == verdict.REGRESSED and not config.getoption("bench_update"):
            pytest.fail(verdict.explain(row, baseline), pytrace=False)
        return row

    return measured


@functools.cache
def baselines(folder, device):
    return verdict.load(folder, device)


def missed_plant(config):
    """The name a slowdown was to be planted under, if no row had it."""
    planted = config.getoption("bench_plant")
    return None if planted in (PLANT_ALL, *(row.bench for row, _, _ in config.stash[JUDGED])) else planted


def pytest_sessionfinish(session):
    judged, option = session.config.stash[JUDGED], session.config.getoption
    if option("bench_json"):
        option("bench_json").write_text("".join(verdict.line(r, verdict=v) + "\n" for r, _, v in judged))
    if option("bench_update"):
        verdict.update(option("bench_baselines"), [row for row, _, _ in judged])
    if missed_plant(session.config):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR


def pytest_terminal_summary(terminalreporter, config):
    judged, option = config.stash[JUDGED], config.getoption
    if planted := missed_plant(config):
        terminalreporter.write_line(f"--bench-plant={planted}: no row that ran is of a function of that name", red=True)
    if not judged:
        return
    terminalreporter.section("bench")
    for line in verdict.table(judged):
        words = {verdict.REGRESSED: {"red": True}, verdict.IMPROVED: {"green": True}}
        terminalreporter.write_line(line, **words.get(line.split("  ")[0], {}))
    for device in sorted({row.device for row, _, _ in judged}):
        ran = [(row.key, result) for row, _, result in judged if row.device == device]
        counts = [f"{[v for _, v in ran].count(v)} {v}" for v in (verdict.OK, verdict.IMPROVED, verdict.REGRESSED)]
        counts.append(f"{[v for _, v in ran].count(verdict.NO_BASELINE)} without a baseline")
        missing = set(baselines(option("bench_baselines"), device)) - {key for key, _ in ran}
        tail = f"; {len(missing)} rows of the baseline did not run" if missing else ""
        terminalreporter.write_line(f"{device}: {', '.join(counts)}{tail}")
    if option("bench_update"):
        terminalreporter.write_line(f"rows written to {option('bench_baselines')}")
