"""The DB loss: OHEM cross-entropy, threshold L1 and Dice from logits, with its own gradient."""

from kernels.db_loss.op import DBLoss, binary_map, db_loss
from kernels.db_loss.reference import Maps, Stats, Weights, db_loss_gradient, db_loss_reference

__all__ = ["DBLoss", "Maps", "Stats", "Weights", "binary_map", "db_loss", "db_loss_gradient", "db_loss_reference"]
