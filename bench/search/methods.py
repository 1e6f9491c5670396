"""Search methods as functions of a problem of `bench.search.problems`: ours, and the peers' of whatever is installed.

Every method is `method(problem, budget, agents, seed) -> values`: it runs `budget` trainings, `agents` of them at
once, and returns the configuration it recommends. Peers recommend the highest observed one, as their users do.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.search.problems import FIRST, SPACE, T_VALUES, Problem
from engine.search.ask import configuration
from engine.search.model import surrogate
from engine.search.study import Study, Trial

Method = Callable[[Problem, int, int, int], dict]


class Clock:
    """Trainings of equal length on `agents` workers: when trial n is asked, the first n - agents + 1 have ended."""

    def __init__(self, problem: Problem, agents: int) -> None:
        self.problem, self.agents = problem, agents
        self.values: list[dict] = []
        self.heights: list[float] = []  # decided at the start, not to be looked at before the end

    def start(self, values: dict) -> float:
        """Starts a training and returns the H it will be seen to have."""
        height = float(self.problem.curve(SPACE.unit(values), len(self.values)).max())
        self.values.append(values)
        self.heights.append(height)
        return height

    @property
    def ended(self) -> int:
        """How many have ended when the next is asked."""
        return max(0, len(self.values) - self.agents + 1)

    def highest(self) -> dict:
        """The configuration observed highest."""
        return self.values[int(np.argmax(self.heights))]


def ours(problem: Problem, budget: int, agents: int, seed: int) -> dict:
    """engine.search.model.surrogate as the driver uses it; without any feedback before the last ask, `method=prior`."""
    method = "bayes" if agents < budget else "prior"
    study = Study(Path(), "", SPACE, budget=budget, agents=agents, seed=seed, first=FIRST, method=method)
    clock = Clock(problem, agents)
    for number in range(budget):
        _end(study, clock, clock.ended)
        values, kind = configuration(study, number)
        clock.start(values)
        study.trials.append(Trial(number, values, kind, seed, state="running"))
    _end(study, clock, budget)
    return surrogate.fit(study).best()


def _end(study: Study, clock: Clock, count: int) -> None:
    for trial, height in zip(study.trials[:count], clock.heights, strict=False):
        trial.state, trial.value = "finished", height


def random(problem: Problem, budget: int, agents: int, seed: int) -> dict:
    """Uniform draws."""
    clock, rng = Clock(problem, agents), np.random.default_rng([seed, 1])
    for unit in SPACE.snap(rng.uniform(size=(budget, len(SPACE.parameters)))):
        clock.start(SPACE.values(unit))
    return clock.highest()


def preset(problem: Problem, budget: int, agents: int, seed: int) -> dict:
    """No search: the published optimum."""
    return FIRST


def _optuna(sampler: str, first: bool, ordinal: bool, **options) -> Method:
    def method(problem: Problem, budget: int, agents: int, seed: int) -> dict:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction="maximize", sampler=getattr(optuna.samplers, sampler)(seed=seed, **options)
        )
        names = SPACE.names
        if first:
            study.enqueue_trial({**FIRST, names[2]: T_VALUES.index(FIRST[names[2]]) if ordinal else FIRST[names[2]]})
        clock, told = Clock(problem, agents), 0
        trials: list = []
        for _ in range(budget):
            while told < clock.ended:
                study.tell(trials[told], clock.heights[told])
                told += 1
            trial = study.ask()
            values = {}
            for p in SPACE.parameters:
                if p.kind == "float":
                    values[p.name] = trial.suggest_float(p.name, p.low, p.high, log=True)
                elif ordinal:
                    values[p.name] = T_VALUES[trial.suggest_int(p.name, 0, len(T_VALUES) - 1)]
                else:
                    values[p.name] = trial.suggest_categorical(p.name, list(T_VALUES))
            trials.append(trial)
            clock.start(values)
        return clock.highest()

    return method


def _skopt_dimensions() -> list:
    import skopt

    return [
        skopt.space.Real(p.low, p.high, prior="log-uniform") if p.kind == "float" else skopt.space.Categorical(T_VALUES)
        for p in SPACE.parameters
    ]


def skopt_default(problem: Problem, budget: int, agents: int, seed: int) -> dict:
    """scikit-optimize as it comes: Optimizer(dimensions), `ask` and `tell`."""
    import skopt

    clock, told = Clock(problem, agents), 0
    optimizer = skopt.Optimizer(_skopt_dimensions(), random_state=seed)
    points: list[list] = []
    for _ in range(budget):
        while told < clock.ended:
            optimizer.tell(points[told], -clock.heights[told])
            told += 1
        points.append(optimizer.ask())
        clock.start({n: (int(v) if n == SPACE.names[2] else float(v)) for n, v in zip(SPACE.names, points[-1])})
    return clock.highest()


def plain_skopt(trials: list[dict], heights: list[float]) -> Callable[[], object]:
    """One tell and one ask of scikit-optimize's Optimizer that knows `trials` already; its GP, EI, 4 restarts."""
    import skopt

    points = [list(values.values()) for values in trials]
    optimizer = skopt.Optimizer(_skopt_dimensions(), "GP", acq_func="EI", random_state=0)
    optimizer.tell(points[:-1], [-height for height in heights[:-1]])

    def once() -> object:
        again = optimizer.copy(random_state=0)
        again.tell(points[-1], -heights[-1])
        return again.ask()

    return once


def wandb_bayes(problem: Problem, budget: int, agents: int, seed: int) -> dict:
    """W&B's `bayes`, by its open package `sweeps`; the original study's method."""
    import sweeps

    parameters = {
        p.name: {"distribution": "log_uniform_values", "min": p.low, "max": p.high}
        if p.kind == "float"
        else {"values": list(p.values)}
        for p in SPACE.parameters
    }
    config = {"method": "bayes", "metric": {"name": "h", "goal": "maximize"}, "parameters": parameters}
    clock = Clock(problem, agents)
    runs: list = []
    np.random.seed(seed)
    for _ in range(budget):
        for run, height in zip(runs[: clock.ended], clock.heights, strict=False):
            run.state, run.summary_metrics, run.history = sweeps.RunState.finished, {"h": height}, [{"h": height}]
        run = sweeps.next_run(config, runs, validate=False)
        run.state = sweeps.RunState.running
        runs.append(run)
        clock.start({name: run.config[name]["value"] for name in SPACE.names})
    return clock.highest()


RIVAL = "Optuna GP, ordinal, first trial"
OURS = "ours"
RANDOM = "random"
# name -> (method, package it needs)
METHODS: dict[str, tuple[Method, str]] = {
    OURS: (ours, ""),
    RIVAL: (_optuna("GPSampler", True, True, n_startup_trials=4), "optuna"),
    "Optuna GP, defaults": (_optuna("GPSampler", False, False), "optuna"),
    "Optuna TPE, defaults": (_optuna("TPESampler", False, False), "optuna"),
    "W&B bayes": (wandb_bayes, "sweeps"),
    "scikit-optimize, defaults": (skopt_default, ""),
    RANDOM: (random, ""),
    "the preset, no search": (preset, ""),
}
