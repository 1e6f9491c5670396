"""Weights and networks in and out of this engine's own format; `python -m engine.export --help`."""
