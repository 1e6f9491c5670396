"""Training engine for DBNet text detection: training loop, search, evaluation, prediction."""

import os

# What threads do while they wait for work; OpenMP reads it as torch is loaded, child processes inherit it. By default
# they spin for milliseconds, which takes the core from the thread they wait for where other processes are at work.
# Asleep at once they wake late: a step of lcnet_050 at 512x320 on a quiet machine took 174 ms, spinning 117. A short
# spin and then sleep takes 117 there, and beside a busy loop a core 0.3 s where spinning takes 0.7 to 1.4
# (bench/bench_threads.py).
SHORT_SPIN = "10000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # of GNU's OpenMP, which torch brings; it goes before the policy
    os.environ.setdefault("GOMP_SPINCOUNT", SHORT_SPIN)
