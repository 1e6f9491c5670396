"""Precise BatchNorm: statistics estimated anew at the end of a training (`trainer.precise_bn`), instead of SyncBN.

Running averages are those of the last 10 batches or so (momentum 0.1) of rank 0 alone, and of weights that moved
meanwhile. Here the final weights stay fixed, and

    running_mean = mean over batches of the batch's mean,   running_var = mean over batches of its variance,

over `trainer.precise_bn` training batches of every rank, variances with Bessel's correction as torch has them. It costs
forward passes once, where SyncBN costs two small collectives a layer in every step; 1,000 to 10,000 pages are enough.

Source: Wu & Johnson 2021, arXiv 2105.07576, section 3; the mean of variances: Ioffe & Szegedy 2015, arXiv 1502.03167,
algorithm 2.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.config import Config, changed
from engine.data import build_train_loader
from engine.distributed import Ranks
from engine.model.forward import run_network
from engine.training.state import TrainState
from pipelines.index.build import ConcatIndex


def renew(train_state: TrainState, pages: ConcatIndex, config: Config, ranks: Ranks, epoch: int) -> str:
    """Replaces the BatchNorm statistics of the model and of its average. Both are left in evaluation mode.

    The batches are the first `trainer.precise_bn` of `epoch`, augmented as in training, from a loader of its own: so
    they depend on (seed, epoch) alone, and the training's loader stays where it is. Training never reads these
    statistics, so weights do not depend on when, or how often, this was called.

    engine.train calls it once the run is over (epochs, steps, patience or minutes), evaluates once more and saves. The
    checkpoint holds the step it was done at (`precise_step`), so a resumed run that has it does nothing; one that was
    killed before, or ran without it, does it now; one that goes on training does it again at its new end.

    Args:
        train_state: weights as trained.
        ranks: rank r takes its own batches, as in training; sums go over all of them.
        epoch: epochs finished.

    Returns:
        a line that says what was done.
    """
    names = trained_norms(train_state.model)
    batches = config.trainer.precise_bn
    models = [model for model in (train_state.model, train_state.averaged) if model is not None]
    # at the size that is evaluated, also where the run ended at a smaller one
    full = changed(config, {"data.progressive": []})
    with contextlib.closing(build_train_loader(full, pages, ranks, epoch, 0)) as loader:
        images = (next(loader).to(ranks.device).image for _ in range(batches))
        estimate(models, names, images, config)
    return f"BatchNorm statistics of {len(names)} layers estimated anew from {batches} batches a rank"


def trained_norms(model: nn.Module) -> list[str]:
    """Names of the layers with running statistics, without those of frozen parts, which stay as they are."""
    return [
        name
        for name, module in model.named_modules()
        if getattr(module, "running_mean", None) is not None and (module.weight is None or module.weight.requires_grad)
    ]


@torch.no_grad()
def estimate(models: list[nn.Module], names: list[str], images: Iterable[torch.Tensor], config: Config) -> None:
    """Sets running_mean and running_var of layers to the mean over batches and ranks of the batches' own.

    Args:
        models: detectors of one shape (the model, its average), each run on every batch, uncompiled.
        names: of the layers, in every model.
        images: batches (N, 3, H, W) on the device, as many on every rank and at least one.
        config: decides the arithmetic (`trainer.precision`).
    """
    layers = [_norm(model, name) for model in models for name in names]
    if not layers:
        return
    buffers = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
    total, batches = torch.zeros_like(torch.cat(buffers), dtype=torch.float64), 0
    # Eager: these modes are no others' (a training layer in a resting model), and would be compiled for a few batches.
    with _batch_statistics(models, layers), torch.compiler.set_stance("force_eager"):
        for image in images:
            for model in models:
                run_network(model, image, config)
            total += torch.cat(buffers)
            batches += 1
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    for buffer, mean in zip(buffers, (total / batches).split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean)


def _norm(model: nn.Module, name: str) -> _BatchNorm:
    layer = model.get_submodule(name)
    assert isinstance(layer, _BatchNorm)
    return layer


@contextlib.contextmanager
def _batch_statistics(models: list[nn.Module], layers: list[_BatchNorm]) -> Iterator[None]:
    """Inside, these layers alone are in training mode, and after a forward pass hold that batch's statistics."""
    counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    kept = [(layer.momentum, counter.clone()) for layer, counter in zip(layers, counters, strict=True)]
    for model in models:
        model.eval()
        # The module alone, not its layers: it runs its second branch in training only.
        model.get_submodule("head").training = True
    for layer in layers:
        layer.training, layer.momentum = True, 1.0  # the module alone: timm's have a dropout inside
    try:
        yield
    finally:
        for layer, counter, (momentum, count) in zip(layers, counters, kept, strict=True):
            layer.momentum = momentum
            counter.copy_(count)
        for model in models:
            model.eval()
