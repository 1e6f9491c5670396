"""Trainings as child processes: started, watched, stopped, on this machine, on Ray or on Slurm. No torch.

Comes in: a command and a folder (`executor.Attempt`). Goes out: how it ended (`executor.Exit`).
"""
