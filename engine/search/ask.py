"""The next trials of a search: configurations that its method asks for, then repeats with other seeds.

    values, kind = configuration(study, len(study.trials))
    events = recommending(study) or confirming(book)          # the budget is spent

Configurations: the preset's own first, then what the method says. They depend on the study only, so that a resumed
search asks for the same.
Repeats: the model's recommendation is measured first, where no trial has it. Then the two best configurations and the
preset's own are chosen, once for a budget, and each is repeated with the same new seeds.
"""

import dataclasses
from typing import Any

import numpy as np

from engine.search.ledger import Ledger, extend_event, trial_event
from engine.search.model import surrogate
from engine.search.space import first_untried, fresh
from engine.search.study import Study, Trial
from engine.search.trials import new_trial


def configuration(study: Study, number: int) -> tuple[dict[str, Any], str]:
    """The values of trial `number` and where they come from (one of `study.KINDS`).

    Before the first result the model is asked all the same, with what it believes of the trials under way (kind
    `prior`: points around the preset that tell most apart). Nothing is repeated.

    Raises:
        UserError: every configuration of a finite space has been asked for.
    """
    space, rng = study.space, np.random.default_rng([study.seed, number])
    asked = [trial for trial in study.trials if trial.kind != "confirm"]
    tried = {tuple(trial.values[name] for name in space.names) for trial in asked}
    if study.method == "grid":
        return first_untried(space, tried), "grid"
    if not study.searched and tuple(study.first[name] for name in space.names) not in tried:
        return dict(study.first), "preset"
    if study.method == "random":
        return fresh(space, rng.uniform(size=(1000, len(space.parameters))), tried), "random"
    told = surrogate.told_of(study)
    if study.method == "prior":  # it does not listen to results
        told = surrogate.Told(told.units[:0], told.heights[:0], told.sds[:0], told.in_h)
        pending = asked
    else:
        pending = [trial for trial in asked if trial.state in ("asked", "running")]
    units = np.array([space.coordinates(trial.values) for trial in pending])
    return surrogate.ask(space, study.first, told, rng, tried, units), "model" if len(told.heights) else "prior"


def recommending(study: Study) -> list[dict[str, Any]]:
    """The trial event of the model's recommendation: it is measured before it is chosen for repeats."""
    last = _last_searched(study)
    known = any(trial.kind == "recommended" and trial.number > last for trial in study.trials)
    if known or study.confirmation.after == last:
        return []
    values = unmeasured(study)
    return [trial_event(new_trial(study, values, "recommended", study.seed))] if values else []


def confirming(book: Ledger) -> list[dict[str, Any]]:
    """The trial events of `--confirm N` that are not there yet: each chosen configuration with the same N new seeds.

    The choice is made once the budget is spent and kept in the ledger; trials that confirm it do not change it.
    """
    study = book.study
    if study.confirmation.after != _last_searched(study):
        numbers = tuple(trial.number for trial in chosen(study, surrogate.fitted(study)))
        confirmation = dataclasses.replace(study.confirmation, chosen=numbers, after=_last_searched(study))
        book.append(**extend_event(study, confirmation=confirmation))
    there = {(trial.repeats, trial.seed) for trial in study.trials if trial.kind == "confirm"}
    events: list[dict[str, Any]] = []
    for seed in range(study.seed + 1, study.seed + 1 + study.confirmation.seeds):
        for number in study.confirmation.chosen:
            if (number, seed) not in there:
                place = len(study.trials) + len(events)
                values = study.trials[number].values
                events.append(trial_event(new_trial(study, values, "confirm", seed, number, place)))
    return events


def _last_searched(study: Study) -> int:
    return max((trial.number for trial in study.searched), default=-1)


def unmeasured(study: Study) -> dict[str, Any] | None:
    """The configuration that the model recommends, if no trial has it; None with too few trials for a model."""
    posterior = surrogate.fitted(study)
    if posterior is None:
        return None
    values = posterior.best()
    return None if any(trial.values == values for trial in study.trials) else values


def chosen(study: Study, posterior: surrogate.Posterior | None) -> list[Trial]:
    """Configurations to repeat: the two best by posterior mean among the tried ones, and the baseline."""
    best = ranked(study, posterior)[:2]
    base = study.baseline()
    if base is None or base.state == "infeasible" or any(base.values == trial.values for trial in best):
        return best
    return [*best, base]


def ranked(study: Study, posterior: surrogate.Posterior | None) -> list[Trial]:
    """Measured trials, the best by posterior mean first (by value without a model); equal configurations once."""
    trials = study.measured
    if not trials:
        return []
    heights = np.array([trial.result for trial in trials])
    if posterior is not None:
        heights, _ = posterior.predict(np.array([study.space.coordinates(trial.values) for trial in trials]))
    unique: dict[tuple, Trial] = {}
    for i in np.argsort(-study.sign * heights, kind="stable"):
        unique.setdefault(tuple(trials[i].values.items()), trials[i])
    return list(unique.values())
