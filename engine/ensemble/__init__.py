"""Several detectors as one: the mean of their probability maps, and greedy soups of their weights.

    from engine.ensemble import load

`load("OUT/ensemble.yaml", ranks)` gives an `Ensemble`, which `detection.maps.prob_batches` (and with it everything
that detects on pages) takes in a model's place.
"""

from engine.detection.ensemble import Ensemble, Member
from engine.detection.open import open_ensemble as load

__all__ = ["Ensemble", "Member", "load"]
