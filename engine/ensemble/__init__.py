"""Several detectors as one: the mean of their probability maps, and greedy soups of their weights.

    from engine.ensemble import load

    ensemble, config = load("OUT/ensemble.yaml", ranks)
    detect_pages(ensemble, pages, config, ranks)

Everything that detects on pages takes an `Ensemble` in a model's place.
"""

from engine.detection.ensemble import Ensemble, Member
from engine.detection.open import open_ensemble as load

__all__ = ["Ensemble", "Member", "load"]
