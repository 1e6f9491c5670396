"""The memory-mapped index of pages: polygons in CSR form, oriented pixels.

from pipelines.index import open_index
"""

from pipelines.index.build import ConcatIndex, open_index

__all__ = ["ConcatIndex", "open_index"]
