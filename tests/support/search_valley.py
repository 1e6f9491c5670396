"""Studies of a valley with a known optimum, for the tests of the model and of what is asked for."""

from pathlib import Path

import numpy as np

from engine.search.ask import configuration
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial

SPACE = Space(
    (
        Parameter("lr", "float", 1e-5, 2e-4, "log"),
        Parameter("decay", "float", 1e-6, 1e-4, "log"),
        Parameter("T_max", "ordinal", values=(15, 18, 20, 25)),
    )
)


FIRST = {"lr": 1e-4, "decay": 1e-5, "T_max": 15}


def study(values=(), space=SPACE, first=None, **options):
    trials = [Trial(i, v, "model", 0, state="finished", value=h) for i, (v, h) in enumerate(values)]
    return Study(Path(), "s", space, first=first or FIRST, trials=trials, **options)


def height(values, best):
    """A valley of 0.97, 10 thousandths a squared unit deep."""
    return 0.97 - 0.01 * float(((SPACE.unit(values) - SPACE.unit(best)) ** 2).sum())


def searched(best, budget, noise=0.0, pending=0, **options):
    rng = np.random.default_rng(5)
    one = study(budget=budget, **options)
    for number in range(budget):
        values, kind = configuration(one, number)
        one.trials.append(Trial(number, values, kind, 0, state="running"))
        for trial in one.trials[: max(0, number + 1 - pending)]:
            if trial.state == "running":
                trial.state, trial.value = "finished", height(trial.values, best) + noise * rng.standard_normal()
    for trial in one.trials:
        if trial.state == "running":
            trial.state, trial.value = "finished", height(trial.values, best) + noise * rng.standard_normal()
    return one
