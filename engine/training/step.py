"""One step of training. Imports torch and timm only, so that `bench.gpu` times this very step on a bare machine.

One step = one optimizer update = `trainer.accumulate` forward passes on every rank. Nothing here waits for the device;
with `trainer.kernels=reference` on a GPU one callee does: the PyTorch reference that renders the targets.
"""

import contextlib
import math
import time
from collections.abc import Iterator

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from engine.config import Config
from engine.distributed import Ranks
from engine.model.forward import run_network
from engine.training.metrics import Stopwatch
from engine.training.skip import update
from engine.training.state import TrainState
from kernels.db_loss import DBLoss, db_loss
from kernels.db_targets import DBTargets, db_targets
from pipelines.batch import Batch

METRICS = ("loss", "prob_loss", "thresh_loss", "binary_loss", "grad_norm", "skipped")


def train_step(
    train_state: TrainState, loader: Iterator[Batch], config: Config, ranks: Ranks, watch: Stopwatch, step: int
) -> torch.Tensor:
    """One optimizer update. Returns METRICS as a float32 vector (6,) on the device; no sync.

    A step with a loss or gradient that is no number changes nothing (`training.skip`): its `skipped` is 1, the rest 0.

    The ranges are `engine.profiling.trace_table.PARTS`; without a profiler one costs about 10 us of host time.
    """
    # Dropout and the like draw from here: keyed by step and rank, so a resume has no generator state to restore.
    torch.manual_seed((config.seed * 1_000_003 + step) * 4096 + ranks.rank)
    accumulate = config.trainer.accumulate
    parts = torch.zeros(len(METRICS), device=ranks.device)
    train_state.skipper.save_buffers()
    for micro in range(accumulate):
        before = time.perf_counter()
        with record_function("data wait"):
            batch = next(loader)
        watch.waited(time.perf_counter() - before)
        with record_function("host to device"):
            batch = batch.to(ranks.device)
        with record_function("targets"):
            targets = make_targets(batch, config)
        forward = train_state.forward
        quiet: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(forward, DistributedDataParallel) and micro < accumulate - 1:
            quiet = forward.no_sync()  # gradients are averaged over the ranks in the last pass
        with quiet:
            with record_function("forward"):
                logits = run_network(forward, batch.image, config)
                assert isinstance(logits, tuple)  # as the head gives them in training
            with record_function("loss"):
                loss = compute_loss(logits, targets, config)  # in float32 from logits, outside autocast
            with record_function("backward"):
                (loss.total / accumulate).backward()
        parts[:4] += torch.stack([x.detach().float() for x in loss]) / accumulate
    with record_function("optimizer"):
        trained = [p for p in train_state.model.parameters() if p.requires_grad]
        limit = config.trainer.clip_norm or math.inf
        parts[4] = torch.nn.utils.clip_grad_norm_(trained, limit, foreach=True)
        bad = train_state.skipper.undo_if_bad(parts[:4], parts[4])
        update(train_state.optimizer, bad)
        train_state.optimizer.zero_grad(set_to_none=True)
    if train_state.ema is not None:
        with record_function("EMA"):
            train_state.ema.update(step)
    parts = torch.where(bad > 0, 0, parts)
    parts[5] = bad
    return parts


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


def compute_loss(logits: tuple[torch.Tensor, ...], targets: DBTargets, config: Config) -> DBLoss:
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
