"""How good eight trials are: regret of the search and of its peers on problems with a known optimum.

    python -m bench.bench_search_regret                      # the whole study: 200 problems a cell, about an hour
    python -m bench.bench_search_regret --seeds 40 --block 0 # while tuning a method: its own problems
    python -m bench.bench_search_regret --stopping           # instead: what early stopping saves and costs
    pytest bench/bench_search_regret.py                      # 8 problems, and the time of an ask and a tell

Regret = noise-free H lost by the recommended configuration, in thousandths. Problems: `bench.search.problems`. All
methods meet the same problems with the same noise a trial number. Intervals: 90 %, bootstrap over problems. Optuna and
W&B's `sweeps` take part where they are installed (`pip install optuna sweeps`).

Early stopping: our method with one agent and trainings watched epoch by epoch as the driver does, at equal trials and,
going on with the epochs that were saved, at equal epochs. "Best stopped": the trial that would have ended highest was.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import importlib.util
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bench.search.methods import METHODS, OURS, RANDOM, RIVAL, plain_skopt
from bench.search.problems import BUDGET, EPOCHS, FIRST, SPACE, Problem, chains, problem
from engine.search.ask import configuration
from engine.search.model import stopping, surrogate
from engine.search.study import Study, Trial

RULES = {
    "none": {"type": "none"},
    "curve (default)": stopping.default_rule(EPOCHS),
    "hyperband, min_iter 5": {"type": "hyperband", "min_iter": 5, "eta": 3, "strict": True},
}
MOST = 16  # trials at equal epochs
RESAMPLES = 4000
CELLS = (("fitted", 1), ("fitted", 4), ("fitted", 8), ("moved", 1), ("moved", 4))


def regrets(name: str, family: str, agents: int, seeds: range, block: int) -> list[float]:
    """Regrets of a method, in thousandths of H, one a problem."""
    method = METHODS[name][0]
    found = []
    for seed in seeds:
        one = problem(family, seed, block)
        found.append(one.regret(method(one, BUDGET, agents, seed)))
    return found


def interval(values: np.ndarray, statistic) -> tuple[float, float]:
    """90 % bootstrap interval of a statistic of rows (N, ...), resampled over N."""
    rng = np.random.default_rng(0)
    drawn = [statistic(values[rng.integers(0, len(values), len(values))]) for _ in range(RESAMPLES)]
    return tuple(np.percentile(drawn, [5, 95]))


def measured(names: list[str], seeds: range, block: int, workers: int) -> dict[str, list[float]]:
    """{"method|family|agents": regrets}; methods that take no notice of agents are run once."""
    jobs = {}
    chains(block)  # once, before the workers are forked
    with ProcessPoolExecutor(workers) as pool:
        for family, agents in CELLS:
            for name in names:
                key = f"{name}|{family}|{agents}"
                parts = [seeds[i::4] for i in range(4)]
                jobs[key] = [(part, pool.submit(regrets, name, family, agents, part, block)) for part in parts]
        results = {}
        for key, futures in jobs.items():
            found = {s: r for part, future in futures for s, r in zip(part, future.result(), strict=True)}
            results[key] = [found[s] for s in seeds]
            print(f"{key}: median {np.median(results[key]):.2f}", file=sys.stderr, flush=True)
    return results


def table(results: dict[str, list[float]], names: list[str]) -> str:
    """Markdown: medians with intervals, a row a method, a column a cell."""
    heads = [f"{family}, {agents} agent{'s' * (agents > 1)}" for family, agents in CELLS]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        words = []
        for family, agents in CELLS:
            values = np.array(results[f"{name}|{family}|{agents}"])
            low, high = interval(values, np.median)
            words.append(f"{np.median(values):.2f} ({low:.2f}-{high:.2f})")
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def comparisons(results: dict[str, list[float]], rival: str) -> str:
    """Markdown: ours against one method, paired: ratio of medians, share of pairs won, mean gain."""
    lines = [f"| against {rival} | ratio of medians | pairs won | mean gain |", "|---|---|---|---|"]
    for family, agents in CELLS:
        pair = np.array([results[f"{OURS}|{family}|{agents}"], results[f"{rival}|{family}|{agents}"]]).T
        ratio = np.median(pair[:, 0]) / np.median(pair[:, 1])
        low, high = interval(pair, lambda p: np.median(p[:, 0]) / np.median(p[:, 1]))
        gain = interval(pair, lambda p: (p[:, 1] - p[:, 0]).mean())
        lines.append(
            f"| {family}, {agents} agent{'s' * (agents > 1)} | {ratio:.2f} ({low:.2f}-{high:.2f}) "
            f"| {(pair[:, 0] < pair[:, 1]).mean():.0%} "
            f"| {(pair[:, 1] - pair[:, 0]).mean():+.2f} ({gain[0]:+.2f} to {gain[1]:+.2f}) |"
        )
    return "\n".join(lines)


def stopped_search(one: Problem, rule: dict, budget: int, epochs: int, seed: int) -> tuple[float, int, int, bool]:
    """Runs up to `budget` trials, or until `epochs` are spent: regret, epochs, trials, whether the best was stopped."""
    study = Study(Path(), "", SPACE, budget=budget, seed=seed, first=FIRST, max_epochs=EPOCHS, early_stop=rule)
    heights = []
    while len(study.trials) < budget and sum(t.epochs for t in study.trials) + EPOCHS / 2 < epochs:
        number = len(study.trials)
        values, kind = configuration(study, number)
        curve = one.curve(SPACE.unit(values), number)
        heights.append(float(curve.max()))
        study.trials.append(Trial(number, values, kind, seed, state="running"))
        _train(study, study.trials[-1], curve)
    regret = one.regret(surrogate.fit(study).best())
    stopped = study.trials[int(np.argmax(heights))].state == "stopped"
    return regret, sum(t.epochs for t in study.trials), len(study.trials), stopped


def _train(study: Study, trial: Trial, curve: np.ndarray) -> None:
    """One training, epoch by epoch, until its end or until it is stopped."""
    for epoch, height in enumerate(curve, 1):
        trial.curve.append((epoch, float(height)))
        trial.value, trial.epochs = max(h for _, h in trial.curve), epoch
        decision = stopping.decide(trial, study)
        if decision.stop:
            trial.state, trial.estimate = "stopped", decision.estimate
            return
    trial.state = "finished"


def outcomes(rule: str, family: str, budget: int, seeds: range, block: int) -> list[tuple]:
    """`stopped_search` of one rule on problems of one family."""
    return [stopped_search(problem(family, s, block), RULES[rule], budget, BUDGET * EPOCHS, s) for s in seeds]


def report_stopping(count: int, block: int, workers: int) -> None:
    """Prints a Markdown table, a row a rule and budget, over `count` problems of each family."""
    chains(block)  # once, before the workers are forked
    cells = [(f, rule, n) for f in ("fitted", "moved") for rule in RULES for n in (BUDGET, MOST)]
    cells = [cell for cell in cells if cell[1:] != ("none", MOST)]
    print(f"Early stopping, {count} problems, 1 agent: median regret in thousandths of H (90 % interval)\n")
    print("| family | rule | until | regret | epochs of 120 | trials | best stopped |\n|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(outcomes, rule, family, n, range(count), block) for family, rule, n in cells]
        for (family, rule, n), job in zip(cells, jobs, strict=True):
            regret, *others = np.array(job.result(), float).T
            low, high = interval(regret, np.median)
            until = f"{BUDGET} trials" if n == BUDGET else f"{BUDGET * EPOCHS} epochs"
            means = [other.mean() for other in others]
            print(
                f"| {family} | {rule} | {until} | {np.median(regret):.2f} ({low:.2f}-{high:.2f}) | {means[0]:.0f} "
                f"| {means[1]:.1f} | {means[2]:.0%} |",
                flush=True,
            )


def test_eight_problems():
    """Ours loses less than random on 8 fitted problems."""
    mean = {name: np.mean(regrets(name, "fitted", 1, range(8), 1)) for name in (OURS, RANDOM)}
    assert mean[OURS] < 0.8 * mean[RANDOM], mean


@pytest.mark.quick
def test_ask_and_tell(measure):
    """One tell and one ask at 64 trials; below a second is the promise, scikit-optimize's own Optimizer the peer."""
    one = problem("fitted", 0, 0)
    rng = np.random.default_rng(0)
    trials = [SPACE.values(unit) for unit in rng.uniform(size=(64, 4))]
    heights = [float(one.curve(SPACE.unit(values), i).max()) for i, values in enumerate(trials)]
    told = [Trial(i, v, "model", 0, state="finished", value=h) for i, (v, h) in enumerate(zip(trials, heights))]
    study = Study(Path(), "", SPACE, budget=100, first=FIRST, trials=told)
    measure(
        "search.ask", "64 trials", lambda: configuration(study, 64), plain_skopt(trials, heights),
        peer_name="scikit-optimize", rounds=5,
    )  # fmt: skip
    start = time.perf_counter()
    configuration(study, 64)
    assert time.perf_counter() - start < 1.0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--block", type=int, default=1, help="0 = problems for tuning, 1 = for reporting")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--json", type=Path, help="write every regret to this file")
    parser.add_argument("--stopping", action="store_true", help="early stopping instead, of our method alone")
    options = parser.parse_args(argv)
    if options.stopping:
        report_stopping(options.seeds, options.block, options.workers)
        return 0
    missing = [n for n in options.only if METHODS[n][1] and importlib.util.find_spec(METHODS[n][1]) is None]
    for name in missing:
        print(f"note: {name} is left out: the package {METHODS[name][1]} is not installed", file=sys.stderr)
    names = [n for n in options.only if n not in missing]
    results = measured(names, range(options.seeds), options.block, options.workers)
    if options.json:
        options.json.write_text(json.dumps(results) + "\n")
    print(f"Regret after {BUDGET} trials, thousandths of H, median of {options.seeds} problems (90 % interval)\n")
    print(table(results, names))
    for rival in (RIVAL, RANDOM):
        if rival in names and OURS in names:
            print("\n" + comparisons(results, rival))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
