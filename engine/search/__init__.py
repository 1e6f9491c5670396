"""Hyperparameter search: a space, a surrogate that asks, a runner that trains, a ledger that forgets nothing, a report.

No module here imports torch: a search is planned, resumed and reported on a machine that has none, and the driver holds
no CUDA context. Trainings are child processes; files are all that passes between them and the search.
"""
