"""Tuning of the postprocessing of a trained detector; see `__main__`."""
