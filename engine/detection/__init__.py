"""From pages to regions: a detector opened by name, its maps, the postprocessing, files of results.

Comes in: a checkpoint or ensemble and pages. Goes out: polygons and scores in source pixels. Nothing is scored here.
"""
