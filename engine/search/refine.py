"""A narrower search around what a study found: its space, its first trial, and which old trials go along.

The rule, parameter by parameter: the findings' wider range (two to one that less than a noise sd is lost, the others as
recommended), but at least 1/8 of the old width around the recommended value, never beyond the old bounds. Of ordinal
and choice parameters the values in the wider range stay, at least the two best: a parameter with one value is no
parameter.

All measured and all failed trials go along as knowledge (kind imported) at their own coordinates, outside the new space
too, below 0 or above 1. Only a trial whose choice is no longer offered has no coordinate and stays behind.

Worked example: lr 1e-5 to 2e-4, wider range 9.7e-5 to 1.1e-4 around 1e-4. An eighth of the log width is a factor of
20^(1/8) = 1.45, so the new range is 8.3e-5 to 1.2e-4.
"""

import dataclasses
from typing import Any

import numpy as np

from engine.search.model.surrogate import Posterior
from engine.search.report import effects
from engine.search.report.findings import noise_of
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial
from pipelines.errors import UserError

LEAST = 1 / 8  # of the old width: one search cannot be trusted to a smaller part, its optimum has an error too


def refined(study: Study, posterior: Posterior | None) -> tuple[Space, dict[str, Any], list[Trial]]:
    """The new study's space, its first configuration (the recommended one, 2 digits) and its imported trials.

    Args:
        posterior: of `surrogate.fitted(study)`.

    Raises:
        UserError: too few trials for a model.
    """
    if posterior is None:
        raise UserError(
            f"{study.name}: too few trials with a value to refine; --resume it with a larger --budget first"
        )
    space = refined_space(study, posterior)
    best = study.space.values(effects.recommended(study, posterior))
    first = {}
    for parameter in space.parameters:
        value = effects.digits2(parameter, best[parameter.name])
        first[parameter.name] = value if parameter.contains(value) else parameter.value(parameter.unit(value))
    return space, first, kept_trials(study, space)


def refined_space(study: Study, posterior: Posterior) -> Space:
    """The study's space, narrowed around the recommended values by the rule above."""
    optimum = effects.recommended(study, posterior)
    spread = effects.ranges(study, posterior, optimum, noise_of(study, posterior).sd or 0.0)
    narrowed = []
    for column, parameter in enumerate(study.space.parameters):
        wider = spread[column].wider
        if parameter.values:
            points = np.repeat(optimum[None], len(parameter.values), axis=0)
            points[:, column] = parameter.places
            heights = study.sign * posterior.predict(points)[0]  # with the others at the optimum
            best = [parameter.values[i] for i in np.argsort(-heights)[:2]]
            kept = tuple(value for value in parameter.values if value in wider or value in best)
            narrowed.append(dataclasses.replace(parameter, values=kept))
        else:
            narrowed.append(_narrower(parameter, [parameter.unit(value) for value in wider], optimum[column]))
    return Space(tuple(narrowed))


def _narrower(parameter: Parameter, wider: list[float], optimum: float) -> Parameter:
    low, high = min(wider[0], optimum - LEAST / 2), max(wider[1], optimum + LEAST / 2)
    low, high = max(0.0, min(low, 1 - LEAST)), min(1.0, max(high, LEAST))  # an eighth also at the edge
    bounds = [_at(parameter, low), _at(parameter, high)]
    if parameter.kind == "int" or parameter.step:
        size = parameter.step or 1.0
        bounds = [max(parameter.low, bounds[0] - size), min(parameter.high, bounds[1] + size)]  # two values at least
    return dataclasses.replace(parameter, low=bounds[0], high=bounds[1])


def _at(parameter: Parameter, unit: float) -> float:
    """The number at a coordinate, 2 digits, not moved to a step."""
    if unit <= 0 or unit >= 1:
        return parameter.low if unit <= 0 else parameter.high
    free = dataclasses.replace(parameter, kind="float", step=0.0)
    return effects.digits2(free, free.value(unit))


def kept_trials(study: Study, space: Space) -> list[Trial]:
    """Measured and infeasible trials that have a coordinate in the new space, renumbered from 0, kind imported.

    Repeats are left out. Without the infeasible ones the search would go where trainings diverge once more.
    """
    choices = [p for p in space.parameters if p.kind == "choice"]
    failed = [t for t in study.trials if t.state == "infeasible" and t.kind != "confirm"]
    known = sorted([*study.measured, *failed], key=lambda trial: trial.number)
    kept = [t for t in known if all(t.values[p.name] in p.values for p in choices)]
    return [
        dataclasses.replace(t, number=number, kind="imported", folder="", name=t.name or f"{study.name} {t.number}")
        for number, t in enumerate(kept)
    ]
