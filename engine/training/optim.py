"""Optimizers and learning-rate schedules. A schedule is a pure function of the step, so a resume needs no state.

Cosine gives the values of PyTorch's CosineAnnealingLR stepped once an epoch, T_max in epochs:

    lr(e) = eta_min + (lr - eta_min) (1 + cos(pi e / T_max)) / 2,    e = finished epochs

Beyond T_max PyTorch's formula climbs back (`after_T_max: mirror`, what the published study ran with T_max 15 of 20
epochs); `hold` stays at eta_min. Worked example: lr 1e-4, eta_min 1e-5, T_max 15: epoch 0 1.000e-4, epoch 5 7.750e-5,
epoch 15 1.000e-5, epoch 19 mirror 2.488e-5, hold 1.000e-5.

Sources: SGDR, Loshchilov and Hutter 2017, arXiv 1608.03983; 1cycle, Smith and Topin 2018, arXiv 1708.07120;
AdamW, Loshchilov and Hutter 2019, arXiv 1711.05101.
"""

import math

import torch

from engine.config import Config, OptimizerConfig, SchedulerConfig

ONECYCLE_START = 1 / 25  # PyTorch's OneCycleLR: initial lr = max / 25; the last one here is eta_min


def build_optimizer(groups: list[dict], settings: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over parameter groups; one multi-tensor kernel a step instead of one launch a tensor.

    Adam's weight_decay is L2 (added to the gradient), AdamW's is decoupled, as in PyTorch.
    """
    on_gpu = groups[0]["params"][0].is_cuda
    fast = {"fused": True} if on_gpu else {"foreach": True}
    if settings.name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, **fast)
        if settings.momentum:  # torch's fused kernel leaves them unset when the very first step is skipped
            for group in groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.name]
    return kind(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, **fast)


def lr_at(step: int, steps_per_epoch: int, max_epochs: int, lr: float, schedule: SchedulerConfig) -> float:
    """Learning rate of the optimizer update number `step` (0-based).

    Args:
        step: updates done so far.
        steps_per_epoch: updates an epoch.
        max_epochs: length of the run in epochs (onecycle, poly).
        lr: base learning rate (peak for onecycle).
        schedule: name, T_max, eta_min, after_T_max, warmup_epochs, warmup_start, poly_power, pct_start.

    Warm-up multiplies the first `warmup_epochs` linearly from `warmup_start` to 1; it does not shift the schedule.
    """
    progress = step / max(1, steps_per_epoch * max_epochs)
    if schedule.name == "cosine":
        value = _cosine(step // steps_per_epoch, lr, schedule)
    elif schedule.name == "onecycle":
        value = _onecycle(progress, lr, schedule)
    elif schedule.name == "poly":
        value = schedule.eta_min + (lr - schedule.eta_min) * (1 - min(1.0, progress)) ** schedule.poly_power
    else:
        value = lr
    warmup_steps = schedule.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        value *= schedule.warmup_start + (1 - schedule.warmup_start) * step / warmup_steps
    return value


def _cosine(epoch: int, lr: float, schedule: SchedulerConfig) -> float:
    if schedule.after_T_max == "hold":
        epoch = min(epoch, schedule.T_max)
    return schedule.eta_min + (lr - schedule.eta_min) * (1 + math.cos(math.pi * epoch / schedule.T_max)) / 2


def _onecycle(progress: float, lr: float, schedule: SchedulerConfig) -> float:
    def between(start: float, end: float, share: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2

    climb = schedule.pct_start
    if progress < climb:
        return between(lr * ONECYCLE_START, lr, progress / climb)
    return between(lr, schedule.eta_min, min(1.0, (progress - climb) / max(1 - climb, 1e-9)))


def set_lr(
    optimizer: torch.optim.Optimizer, config: Config, step: int, steps_per_epoch: int, scale: float = 1.0
) -> float:
    """Sets every group's lr (times its `lr_scale`) for this step, and returns it without `lr_scale`.

    `scale` is below 1 after a rollback.
    """
    models = config.models
    lr = scale * lr_at(step, steps_per_epoch, config.trainer.max_epochs, models.optimizer.lr, models.scheduler)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr
