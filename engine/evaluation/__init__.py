"""How good the regions on pages are: CLEval's counts, page by page, and what a difference of two scores is worth.

Comes in: regions and labels. Goes out: scores. `judge` is the loop over pages; no training is known here.
"""
