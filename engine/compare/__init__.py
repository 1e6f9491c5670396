"""Schedules compared: every (schedule, warm-up, seed) trained, and what the results allow to be said.

`plan` makes a study of given trials, which the search's driver runs; `verdict` is the statistics; `report` and
`figures` write what was found. No torch is imported here.
"""
