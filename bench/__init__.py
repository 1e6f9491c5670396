"""Benchmarks: `pytest bench/`."""

import engine  # noqa: F401  # before torch, whose threads it has sleep while they wait
