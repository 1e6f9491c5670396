"""What a search knows: the study and its trials, as the ledger's events add up to them. Data only.

A trial's value is the best of its curve (what the checkpoint `best` scores); `metric` names a field of metrics.jsonl's
validation records: `val/hmean` is the key `hmean`.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.search.space import Space, all_values, size

# States of a trial. asked: its values are decided; running: an attempt is under way; finished: trained to its end;
# stopped: ended early on purpose; infeasible: failed, diverged, timed out. Cut attempts go back to asked.
ENDED = ("finished", "stopped", "infeasible")
# Where a trial's values come from: the preset's own configuration, near it, the surrogate, a uniform draw, a grid,
# the model's recommendation once the budget is spent, another study or a table, a repeat with another seed; given: by
# engine.compare, all at once.
KINDS = ("preset", "prior", "model", "random", "grid", "recommended", "imported", "confirm", "given")
GIVEN = "given"  # method of a study whose trials are all decided at its start, each configuration with several seeds
# Fields of engine.train's validation records that rank a model (engine.evaluate).
SCORES = ("hmean", "precision", "recall", "hmean_macro", "precision_macro", "recall_macro", "score")


def field_of(metric: str) -> str:
    """The field of a validation record that a metric names: val/hmean -> hmean."""
    return metric.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Runner:
    """How the driver runs a study's trials, and what the report sets them against."""

    executor: str = "local"  # as `engine.jobs.executor` takes it
    timeout: float = 0.0  # minutes after which a trial is given up; 0 = never
    stall: float = 0.0  # minutes without an evaluation after which it is; 0 = never
    baseline: float | None = None  # value to beat, where no trial is the preset's own
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)  # values that an objective gets with every trial
    looked: int = 0  # comparison: trainings whose results had been seen when seeds were added


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Repeats of the best configurations with other seeds."""

    seeds: int = 0  # new ones for each configuration; 0 = nothing is repeated
    chosen: tuple[int, ...] = ()  # numbers of the trials to repeat
    after: int | None = None  # number of the last searched trial when they were chosen; None = not chosen yet


@dataclasses.dataclass
class Trial:
    """One configuration and what came of it."""

    number: int
    values: dict[str, Any]  # {key of the configuration: plain value}, the searched keys only
    kind: str
    seed: int  # of the training
    repeats: int | None = None  # confirm: number of the trial whose values these are
    state: str = "asked"  # or running, or one of ENDED
    attempts: int = 0  # started so far
    retries: int = 0  # attempts lost to an outside cause: killed, out of memory, node lost
    curve: list[tuple[int, float]] = dataclasses.field(default_factory=list)  # (epochs done, metric), epochs ascending
    value: float | None = None  # best of the curve; None before the first evaluation and when infeasible
    scores: dict[str, float] = dataclasses.field(default_factory=dict)  # of the best epoch: hmean, precision, recall
    estimate: tuple[float, float] | None = None  # stopped: (mean, sd) of the value it would have reached
    epochs: int = 0  # trained
    minutes: float = 0.0  # of all attempts
    reason: str = ""  # why stopped or infeasible, one line
    folder: str = ""  # of the run, relative to the study's
    name: str = ""  # imported: its name where it comes from

    @property
    def result(self) -> float:
        """The value, of a trial that has one."""
        assert self.value is not None
        return self.value

    @property
    def reached(self) -> float:
        """What a measured trial would have reached: a stopped one's extrapolated value, else its own."""
        return self.estimate[0] if self.estimate is not None else self.result


@dataclasses.dataclass
class Study:
    """A search as a whole."""

    folder: Path
    name: str
    space: Space
    metric: str = "val/hmean"
    goal: str = "maximize"  # or minimize
    method: str = "bayes"  # or prior (near the preset, no model), random, grid, given
    budget: int = 8  # number of trials, early-stopped ones included; those of --confirm and imported ones not
    agents: int = 1
    seed: int = 0
    max_epochs: int = 20
    # {"type": "curve" | "hyperband" | "none", ...}
    early_stop: dict[str, Any] = dataclasses.field(default_factory=dict)
    arguments: list[str] = dataclasses.field(default_factory=list)  # preset=... key=value ... of every trial
    first: dict[str, Any] = dataclasses.field(default_factory=dict)  # the preset's own values of the searched keys
    objective: str = ""  # module:function instead of engine.train
    runner: Runner = Runner()
    confirmation: Confirmation = Confirmation()
    trials: list[Trial] = dataclasses.field(default_factory=list)

    @property
    def sign(self) -> float:
        """+1 when higher is better, -1 when lower is."""
        return 1.0 if self.goal == "maximize" else -1.0

    @property
    def searched(self) -> list[Trial]:
        """Trials that count towards the budget."""
        return [trial for trial in self.trials if trial.kind not in ("recommended", "imported", "confirm")]

    @property
    def measured(self) -> list[Trial]:
        """Ended trials with a value, repeats left out, in their order."""
        ended = [trial for trial in self.trials if trial.state in ("finished", "stopped") and trial.value is not None]
        return [trial for trial in ended if trial.kind != "confirm"]

    def height(self, trial: Trial) -> float:
        """A measured trial's value, turned so that higher is better."""
        return self.sign * trial.result

    def incumbent(self) -> Trial | None:
        """The measured trial with the best value; None before the first."""
        return max(self.measured, key=self.height, default=None)

    def baseline(self) -> Trial | None:
        """The preset's own configuration: the trial of kind preset, else the first one with the values of `first`."""
        known = [trial for trial in self.trials if trial.kind != "confirm"]
        preset = [trial for trial in known if trial.kind == "preset"]
        same = [trial for trial in known if self.first and trial.values == self.first]
        return next(iter(preset + same), None)

    def whole_epochs(self, trial: Trial) -> int:
        """Epochs of a whole training of a trial: the study's; of imported ones the longest imported one's."""
        if trial.kind != "imported":
            return self.max_epochs
        return max(known.epochs for known in self.trials if known.kind == "imported")


def untried(space: Space, trials: Sequence[Trial]) -> float:
    """Number of configurations of a space that no trial has, repeats left out; infinite with a continuous range."""
    grid = all_values(space)
    if grid is None:
        return math.inf
    options = list(map(set, grid))
    tried = {tuple(trial.values[name] for name in space.names) for trial in trials if trial.kind != "confirm"}
    return size(space) - sum(all(map(set.__contains__, options, values)) for values in tried)
