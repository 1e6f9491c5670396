"""From a batch of polygons and logits to the loss: binds the settings to the two kernels."""

import torch

from engine.settings import Config
from kernels import runtime
from kernels.db_loss import DBLoss, db_loss
from kernels.db_targets import DBTargets, db_targets
from pipelines.batch import Batch
from pipelines.errors import UserError


def check_kernels(config: Config, device: torch.device) -> None:
    """Raises UserError when `trainer.kernels=triton` cannot run on the device: before the data is opened, not after."""
    if config.trainer.kernels == "triton" and not runtime.can_run(device):
        raise UserError(
            "trainer.kernels=triton needs a GPU; use trainer.kernels=auto (on a CPU the PyTorch reference), or "
            "TRITON_INTERPRET=1 to step through the kernels slowly"
        )


def make_targets(batch: Batch, config: Config) -> DBTargets:
    """Renders the DB targets of a batch whose tensors are on the training device; see `kernels.db_targets`."""
    loss = config.loss
    height, width = batch.image.shape[-2:]
    return db_targets(
        batch.points_xy,
        batch.poly_offsets,
        batch.page_offsets,
        batch.ignore,
        height=height,
        width=width,
        shrink_ratio=loss.shrink_ratio,
        thresh_min=loss.thresh_min,
        thresh_max=loss.thresh_max,
        min_text_size_px=loss.min_text_size_px,
        mode=loss.mode,
        implementation=config.trainer.kernels,
    )


def compute_loss(logits: tuple[torch.Tensor, torch.Tensor], targets: DBTargets, config: Config) -> DBLoss:
    """(prob_logits, thresh_logits), (N, 1, H, W) each -> (total, prob, thresh, binary), 0-d; see `kernels.db_loss`."""
    loss = config.loss
    prob_logits, thresh_logits = logits
    return db_loss(
        prob_logits,
        thresh_logits,
        targets,
        db_k=config.models.head.db_k,
        negative_ratio=loss.negative_ratio,
        prob_weight=loss.prob_weight,
        thresh_weight=loss.thresh_weight,
        binary_weight=loss.binary_weight,
        mode=loss.mode,
        implementation=config.trainer.kernels,
    )
