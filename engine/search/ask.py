"""The next configuration of a search: the preset's own first, then what the study's method says.

    values, kind = configuration(study, len(study.trials))

It depends on the study only: asked again, it answers the same.
"""

from typing import Any

import numpy as np

from engine.search.model import surrogate
from engine.search.space import first_untried, fresh
from engine.search.study import Study


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
