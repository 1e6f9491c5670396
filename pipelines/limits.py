"""Bounds on what a data set may hold, so that one file cannot take a machine's memory or an hour of its CPU.

The one place of the defaults: `data.max_*` of a run and `--max-*` of `pipelines.dataset` start from them.
"""

import dataclasses

# A 10k x 10k scan, 300 MB decoded; a receipt has 2.
MAX_PIXELS = 100_000_000
# A scan of a progressive JPEG is one more pass over the page; encoders write about 10.
MAX_SCANS = 100
# Of one JSON file, and of all text files of a source together: 130,000 pages of 60 words. More is a question of time,
# not of memory, but for one JSON document of COCO, of which up to 4 times the bytes are held.
MAX_ANNOTATION_MB = 512.0
# The densest newspaper page has some 5,000 words. A circle of 1,000 px drawn within half a pixel has 128 points; on a
# CPU the targets of a polygon as large as the page take 30 s and 2 GB with 1,000.
MAX_POLYGONS = 10_000
MAX_POINTS = 200


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest page (pixels), JPEG scans, annotations (10^6 bytes), polygons a page and points a polygon."""

    pixels: int = MAX_PIXELS
    scans: int = MAX_SCANS
    annotation_mb: float = MAX_ANNOTATION_MB
    polygons: int = MAX_POLYGONS
    points: int = MAX_POINTS


DEFAULT = Limits()
