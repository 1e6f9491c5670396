"""Connected components of text masks and the quadrilaterals around them."""

from kernels.components.op import find_quads, label
from kernels.components.reference import MAX_COMPONENTS, QuadRules, Quads, find_quads_reference, label_reference
from kernels.components.table import to_host

__all__ = [
    "MAX_COMPONENTS",
    "QuadRules",
    "Quads",
    "find_quads",
    "find_quads_reference",
    "label",
    "label_reference",
    "to_host",
]
