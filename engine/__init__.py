"""Training engine for DBNet text detection: training loop, search, evaluation, prediction."""

import os

# Threads that wait for work sleep. By default they spin: beside other processes two of them made 0.1 to 0.2 images/s
# where sleeping ones made 0.9 (bench/bench_threads.py). OpenMP reads it as torch is loaded; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
