"""What early stopping saves and costs: regret at equal trials and at equal epochs, on problems with a known optimum.

One agent, the surrogate of engine.search, trainings of `EPOCHS` epochs watched epoch by epoch by `stopping.decide` as
the driver does; stopped trials are told with their extrapolated value. `8 trials` ends after 8 trials, `120 epochs`
goes on with the epochs that were saved. "Best stopped": the trial that would have ended highest was stopped.
"""

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from bench.search.problems import BUDGET, EPOCHS, FIRST, SPACE, Problem, chains, interval, problem
from engine.search.ask import configuration
from engine.search.model import stopping, surrogate
from engine.search.study import Study, Trial

RULES = {
    "none": {"type": "none"},
    "curve (default)": stopping.default_rule(EPOCHS),
    "hyperband, min_iter 5": {"type": "hyperband", "min_iter": 5, "eta": 3, "strict": True},
}
MOST = 16  # trials at equal epochs


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one search: regret in thousandths of H, epochs trained, trials, whether the eventual best was stopped."""

    regret: float
    epochs: int
    trials: int
    best_stopped: bool


def search(one: Problem, rule: dict, budget: int, epochs: int, seed: int) -> Outcome:
    """Runs up to `budget` trials, or until `epochs` are spent."""
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
    return Outcome(regret, sum(t.epochs for t in study.trials), len(study.trials), stopped)


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


def outcomes(rule: str, family: str, budget: int, seeds: range, block: int) -> list[Outcome]:
    """Outcomes of one rule on problems of one family."""
    return [search(problem(family, s, block), RULES[rule], budget, BUDGET * EPOCHS, s) for s in seeds]


def report(count: int, block: int, workers: int) -> None:
    """Prints a Markdown table, a row a rule and budget, over `count` problems of each family."""
    chains(block)  # once, before the workers are forked
    cells = [(f, rule, n) for f in ("fitted", "moved") for rule in RULES for n in (BUDGET, MOST)]
    cells = [cell for cell in cells if cell[1:] != ("none", MOST)]
    print(f"Early stopping, {count} problems, 1 agent: median regret in thousandths of H (90 % interval)\n")
    print("| family | rule | until | regret | epochs of 120 | trials | best stopped |\n|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(outcomes, rule, family, n, range(count), block) for family, rule, n in cells]
        for (family, rule, n), job in zip(cells, jobs, strict=True):
            found = job.result()
            regret = np.array([o.regret for o in found])
            low, high = interval(regret, np.median)
            until = f"{BUDGET} trials" if n == BUDGET else f"{BUDGET * EPOCHS} epochs"
            means = [np.mean([getattr(o, key) for o in found]) for key in ("epochs", "trials", "best_stopped")]
            print(
                f"| {family} | {rule} | {until} | {np.median(regret):.2f} ({low:.2f}-{high:.2f}) | {means[0]:.0f} "
                f"| {means[1]:.1f} | {means[2]:.0%} |",
                flush=True,
            )
