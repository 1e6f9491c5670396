"""The figures of the fault suite as a Markdown table:  python -m tests.faults.report [--quick] [words of a row ...]

A row is measured by a function that returns Outcomes, or counted: so many tests of these node ids have passed. A new
row is a line of SCENARIOS.
"""

import dataclasses
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from . import harness, test_determinism, test_hang, test_kill, test_memory, test_restarts, test_signals
from .harness import Outcome

HEAD = (
    "fault",
    "tried",
    "survived",
    "work lost, steps (max, mean)",
    "time to resume, s (median, max)",
    "memory growth",
)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A row: `measure(folder)` gives its outcome, `quick(folder)` a shorter one; None = left out with --quick."""

    name: str
    measure: Callable[[Path], Outcome]
    quick: Callable[[Path], Outcome] | None = None


def passed(folder: Path, nodes: tuple[str, ...], slow: bool = True) -> Outcome:
    """Runs pytest on node ids: tried = tests that ran, survived = those that passed; skipped ones are in the note."""
    markers = "slow or not slow" if slow else "not slow"
    # setup.cfg says -q already; twice, and pytest prints no sums.
    command = [sys.executable, "-m", "pytest", "--tb=line", "-m", markers, *nodes]
    done = subprocess.run(
        command, cwd=harness.ROOT, env=harness.environment(), capture_output=True, text=True, check=False
    )
    found = re.findall(r"(\d+) (passed|failed|error|skipped|deselected)", done.stdout.rstrip().rsplit("\n", 1)[-1])
    counts = {word: int(number) for number, word in found}
    good, bad = counts.get("passed", 0), counts.get("failed", 0) + counts.get("error", 0)
    # 5: all of them are slow and left out. Any other code, or no sums, is a node id that is not there.
    if done.returncode not in (0, 1, 5) or not counts:
        bad += 1
    if bad:
        print(done.stdout[-3000:] + done.stderr[-2000:], file=sys.stderr, flush=True)
    left = [f"{counts[word]} tests {word}" for word in ("skipped", "deselected") if counts.get(word)]
    return Outcome("", good + bad, good, note=", ".join(left))


def counted(name: str, *nodes: str) -> Scenario:
    """A row of tests that are counted; with --quick without the slow ones."""
    return Scenario(name, lambda folder: passed(folder, nodes), lambda folder: passed(folder, nodes, slow=False))


DRIVER = "tests/engine/search/test_driver.py::test_"
SCENARIOS = [
    Scenario(
        "kill", lambda folder: test_kill.kills(folder, 50, 20261125), lambda f: test_kill.kills(f, 2, 1, epochs=5)
    ),
    Scenario(
        "restarts", lambda folder: test_restarts.restarts(folder, 3, 1), lambda f: test_restarts.restarts(f, 1, 1)
    ),
    Scenario("elastic", test_restarts.elastic),
    Scenario("determinism 1", lambda folder: test_determinism.twice(folder, 0)),
    Scenario("determinism 2", lambda folder: test_determinism.twice(folder, 2)),
    counted(
        "checkpoint writes killed, files damaged (tests)",
        "tests/faults/test_checkpoint.py",
        "tests/engine/checkpoint/test_store.py",
    ),
    Scenario("signals", lambda f: test_signals.signals(f, 15), lambda f: test_signals.signals(f, 2)),
    counted("signals to all processes, twice, early, in an evaluation (tests)", "tests/faults/test_signals.py"),
    Scenario("hang", lambda folder: test_hang.scenario(folder, test_hang.LIMIT_S)),
    counted("NaN and infinity, rollback, no memory left (tests)", "tests/faults/test_nonfinite.py"),
    counted("disk full, read-only, folder deleted (tests)", "tests/faults/test_disk.py"),
    counted("two processes on one folder, clock jumps (tests)", "tests/faults/test_lock.py"),
    counted("damaged, vanished, replaced images under a run (tests)", "tests/faults/test_data.py"),
    counted("bombs: 30,000 px, 500 scans, 2 GB of annotations, 20,000 polygons (tests)", "tests/faults/test_limits.py"),
    counted("what fuzzing has found (tests)", "tests/faults/test_fuzz.py"),
    counted("malicious files and names (tests)", "tests/faults/test_security.py"),
    counted("W&B unreachable, slow, killed (tests)", "tests/faults/test_wandb.py"),
    Scenario("memory", test_memory.growth),
    counted(
        "search: driver and agents killed at random moments (tests)",
        f"{DRIVER}killed_at_random_moments_no_trial_is_lost_or_repeated",
        f"{DRIVER}killed_with_several_agents",
        f"{DRIVER}killed_twice_from_outside_is_given_up",
        f"{DRIVER}a_driver_that_dies_between_any_two_events",
    ),
    counted(
        "search: a trial hangs or prints garbage (tests)",
        f"{DRIVER}a_trial_that_hangs_is_given_up",
        f"{DRIVER}ill_trials_are_infeasible_and_the_search_goes_on",
    ),
]


def row(outcome: Outcome) -> str:
    """One line of the table."""
    lost = f"{max(outcome.lost_steps)}, {fmean(outcome.lost_steps):.1f}" if outcome.lost_steps else ""
    took = outcome.resume_seconds
    seconds = f"{median(took):.1f}, {max(took):.1f}" if took else ""
    growth = "" if outcome.growth is None else f"{100 * outcome.growth:.2f} %"
    name = f"{outcome.fault} ({outcome.note})" if outcome.note else outcome.fault
    return "| " + " | ".join([name, str(outcome.tried), str(outcome.survived), lost, seconds, growth]) + " |"


def measured(scenario: Scenario, quick: bool) -> Outcome:
    """A scenario's outcome; a broken promise (AssertionError) is a row that was not survived, its reason on stderr."""
    measure = scenario.quick if quick else scenario.measure
    assert measure is not None
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = measure(Path(folder))
        except AssertionError as error:
            print(f"{scenario.name}: {error}", file=sys.stderr, flush=True)
            outcome = Outcome(scenario.name, 1, 0, note="failed, see stderr")
    print(f"{scenario.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return dataclasses.replace(outcome, fault=outcome.fault or scenario.name)


def main(arguments: list[str]) -> int:
    """Prints the table; the exit code is 1 when anything was not survived."""
    quick, words = "--quick" in arguments, [item for item in arguments if not item.startswith("--")]
    exact = {scenario.name for scenario in SCENARIOS}
    chosen = [s for s in SCENARIOS if not words or any(s.name == w if w in exact else w in s.name for w in words)]
    chosen = [s for s in chosen if not quick or s.quick is not None]
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    outcomes = []
    for scenario in chosen:
        outcomes.append(measured(scenario, quick))
        print(row(outcomes[-1]), flush=True)
    return int(any(o.survived < o.tried for o in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
