"""Where the time of a step goes: a recorded trace, its table, and counted FLOPs and bytes.

Comes in: a training's steps, or a network. Goes out: `profile/` of a run, numbers. Nothing here changes a training.
"""
