"""DB training targets (shrink map, threshold map, masks) drawn from polygons."""

from kernels.db_targets.op import db_targets
from kernels.db_targets.reference import DBTargets, Rules, db_targets_reference

__all__ = ["DBTargets", "Rules", "db_targets", "db_targets_reference"]
