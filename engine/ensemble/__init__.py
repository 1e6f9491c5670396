"""Several detectors as one: the mean of their probability maps, and greedy soups of their weights.

`engine.detection.ensemble` has the ensemble itself, which takes a model's place wherever pages are detected.
"""
