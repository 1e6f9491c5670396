"""Benchmarks: `pytest bench/`."""
