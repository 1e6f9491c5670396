"""Options, the `measure` fixture and the table of verdicts of `pytest bench/`.

    def test_targets(measure):
        measure("db_targets", "1 page", ours, peer, peer_name="pyclipper + OpenCV", images=1)

measures a row (arguments: `bench.harness.measure`), compares it with this device's baseline (the repository's, or the
machine's own, which its first run makes) and fails the test if it has regressed; it returns the row for further
assertions. One call a test. The names are fixed: bench is the function, case its input; changing one, or the peer's
name, starts a new baseline. For an `ours` of seconds give rounds=5.
"""

import functools
from pathlib import Path

import pytest

from bench import harness, verdict

JUDGED = pytest.StashKey[list]()
KEPT = pytest.StashKey[list[str]]()  # what is said of the machine's own baseline
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
    config.stash[JUDGED], config.stash[KEPT] = [], []
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
    return verdict.load(verdict.folder_for(folder, device), device)


def keep_own(folder, judged):
    """Keeps rows without a baseline as the machine's own, where the repository has none of it; what is to be said."""
    said = []
    for device in sorted({row.device for row, _, _ in judged}):
        own = verdict.folder_for(folder, device)
        if own == folder:
            continue
        file, new = own / f"{device}.jsonl", [row for row, before, _ in judged if row.device == device and not before]
        if len(new) < len([row for row, _, _ in judged if row.device == device]):
            said.append(f"{device}: judged by this machine's own baseline, {file} (delete it to start anew)")
        try:
            verdict.update(own, new)
        except OSError as error:
            said.append(f"{device}: {len(new)} rows not kept as this machine's own baseline ({file}: {error.strerror})")
            continue
        if new:
            said.append(
                f"{device}: {len(new)} rows kept as this machine's own baseline, {file}: the next run is judged"
            )
    return said


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
    elif not option("bench_plant"):
        session.config.stash[KEPT] = keep_own(option("bench_baselines"), judged)
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
    for line in config.stash[KEPT]:
        terminalreporter.write_line(line)
    if option("bench_update"):
        terminalreporter.write_line(f"rows written to {option('bench_baselines')}")
