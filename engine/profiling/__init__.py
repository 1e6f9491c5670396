"""Where the time of a step goes: a recorded trace, its table, and counted FLOPs and bytes."""
