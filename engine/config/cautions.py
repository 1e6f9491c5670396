"""Settings that run but have no effect or look wrong, in words."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from engine.config.load import load_config
from engine.config.settings import Config
from pipelines.augment import AugmentConfig
from pipelines.errors import UserError

CONTEST_MAX_REGIONS = 500  # the contest refuses a page with more


def _given(config: Config) -> bool:
    return bool(config.data.train)


# (key, words, whether the key has no effect); only keys that differ from the preset are reported.
UNUSED: tuple[tuple[str, str, Callable[[Config], bool]], ...] = (
    ("models.optimizer.momentum", "only sgd has it", lambda c: c.models.optimizer.name != "sgd"),
    ("models.optimizer.beta1", "sgd has none", lambda c: c.models.optimizer.name == "sgd"),
    ("models.optimizer.beta2", "sgd has none", lambda c: c.models.optimizer.name == "sgd"),
    ("models.optimizer.eps", "sgd has none", lambda c: c.models.optimizer.name == "sgd"),
    ("models.scheduler.T_max", "only cosine has it", lambda c: c.models.scheduler.name != "cosine"),
    ("models.scheduler.after_T_max", "only cosine has it", lambda c: c.models.scheduler.name != "cosine"),
    ("models.scheduler.eta_min", "the rate is constant", lambda c: c.models.scheduler.name == "constant"),
    ("models.scheduler.poly_power", "only poly has it", lambda c: c.models.scheduler.name != "poly"),
    ("models.scheduler.pct_start", "only onecycle has it", lambda c: c.models.scheduler.name != "onecycle"),
    ("models.scheduler.warmup_start", "there is no warm-up", lambda c: c.models.scheduler.warmup_epochs == 0),
    ("models.encoder.hrnet_incre_head", "not an HRNet", lambda c: not c.models.encoder.name.startswith("hrnet")),
    ("models.encoder.weights", "init_from replaces them", lambda c: bool(c.init_from and c.models.encoder.weights)),
    ("models.encoder.lr_scale", "the encoder is frozen", lambda c: c.models.encoder.freeze == "all"),
    ("models.encoder.decay_scale", "the encoder is frozen", lambda c: c.models.encoder.freeze == "all"),
    ("models.decoder.lr_scale", "the decoder is frozen", lambda c: c.models.decoder.freeze),
    ("models.decoder.decay_scale", "the decoder is frozen", lambda c: c.models.decoder.freeze),
    ("models.head.lr_scale", "the head is frozen", lambda c: c.models.head.freeze),
    ("models.head.decay_scale", "the head is frozen", lambda c: c.models.head.freeze),
    ("data.train_weights", "there is one source", lambda c: len(c.data.train) < 2),
    ("data.hw_decoder_load", "there is no GPU", lambda c: c.trainer.device == "cpu"),
    ("data.synthetic_train", "data.train is given", _given),
    ("data.synthetic_val", "data.train is given", _given),
    ("data.synthetic_size", "data.train is given", _given),
    ("data.synthetic_seed", "data.train is given", _given),
    ("loss.min_text_size_px", "the baseline ignores no text", lambda c: c.loss.mode == "baseline"),
    ("trainer.ema_decay", "trainer.ema is off", lambda c: not c.trainer.ema),
    ("trainer.rollback_lr", "on_nonfinite is stop", lambda c: c.trainer.on_nonfinite == "stop"),
    ("trainer.max_rollbacks", "on_nonfinite is stop", lambda c: c.trainer.on_nonfinite == "stop"),
    ("post.polygon_epsilon", "regions are quads", lambda c: c.post.shape == "quad"),
    ("wandb_project", "wandb is off", lambda c: not c.wandb),
    ("wandb_group", "wandb is off", lambda c: not c.wandb),
    ("wandb_job_type", "wandb is off", lambda c: not c.wandb),
) + tuple(
    (f"augment.{field.name}", "augment.enabled is false", lambda c: not c.augment.enabled)
    for field in dataclasses.fields(AugmentConfig)
    if field.name != "enabled"
)


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _preset(config: Config) -> Config:
    """The preset's settings: what differs from them was typed. The defaults where the preset's file is gone."""
    try:
        return load_config([f"preset={config.preset}"])[0]
    except UserError:
        return Config()


def warnings(config: Config, world_size: int = 0, device: str = "") -> list[str]:
    """Settings that have no effect or look wrong, one line each; the run goes on with them.

    Ranks and device ("cpu", "cuda") of a run that has started; 0 and "" where there is none yet.
    """
    plain = _preset(config)
    found = [
        f"{key}={_value(config, key)} has no effect: {words}"
        for key, words, unused in UNUSED
        if _value(config, key) != _value(plain, key) and unused(config)
    ]
    if config.trainer.sync_bn and world_size == 1:
        found.append("trainer.sync_bn=True has no effect: there is one rank")
    by_reference = {"auto": (device or config.trainer.device) == "cpu", "reference": True, "triton": False}
    if config.speed.fused_norms and by_reference[config.trainer.kernels]:
        found.append(
            "speed.fused_norms=True without the Triton kernels: the norms run in plain PyTorch, slower than when off"
        )
    return found + list(_doubtful(config))


def _doubtful(config: Config) -> Iterator[str]:
    yield from _doubtful_rate(config)
    trainer, evaluation = config.trainer, config.eval
    if evaluation.every_epochs > trainer.max_epochs:
        yield (
            f"eval.every_epochs={evaluation.every_epochs} is above trainer.max_epochs={trainer.max_epochs}: "
            "only the last epoch is evaluated"
        )
    if trainer.patience and trainer.patience * evaluation.every_epochs >= trainer.max_epochs:
        yield f"trainer.patience={trainer.patience} has no effect: the run ends before, at epoch {trainer.max_epochs}"
    limits = [f"trainer.{key}" for key in ("max_steps", "max_minutes", "patience") if getattr(trainer, key)]
    if config.data.progressive and limits:
        yield f"data.progressive with {' and '.join(limits)}: the run may end before it has seen data.image_size"
    if config.data.progressive and config.speed.cuda_graphs == "true":
        yield (
            f"speed.cuda_graphs=true with data.progressive={config.data.progressive}: every canvas keeps the GPU "
            "memory of its graphs to the end of the run"
        )
    if trainer.ema and not evaluation.ema:
        yield "trainer.ema=true with eval.ema=false: the average is kept but neither judged nor selected by"
    if evaluation.protocol == "contest" and config.post.max_candidates > CONTEST_MAX_REGIONS:
        yield (
            f"post.max_candidates={config.post.max_candidates}: the contest takes {CONTEST_MAX_REGIONS} regions a page "
            "at most"
        )
    if config.resume not in ("none", "auto") and config.init_from:
        yield f"init_from={config.init_from} has no effect: resume={config.resume} brings its own weights"


def _doubtful_rate(config: Config) -> Iterator[str]:
    lr, schedule, epochs = config.models.optimizer.lr, config.models.scheduler, config.trainer.max_epochs
    if lr == 0:
        yield "models.optimizer.lr=0: nothing will be learnt"
    elif schedule.name != "constant" and schedule.eta_min > lr:
        yield (
            f"models.scheduler.eta_min={schedule.eta_min:g} is above models.optimizer.lr={lr:g}: the rate climbs "
            "instead of falling"
        )
    if schedule.name == "cosine" and schedule.T_max > epochs:
        yield (
            f"models.scheduler.T_max={schedule.T_max} is above trainer.max_epochs={epochs}: the rate never reaches "
            "eta_min"
        )
    if schedule.warmup_epochs >= epochs:
        yield (
            f"models.scheduler.warmup_epochs={schedule.warmup_epochs:g} lasts the whole run "
            f"(trainer.max_epochs={epochs}): the rate never gets up to lr"
        )
    elif schedule.name == "onecycle" and schedule.warmup_epochs > 0:
        yield "models.scheduler.warmup_epochs comes on top of onecycle's own climb"


def global_batch_notice(config: Config, world_size: int) -> str:
    """One line when the global batch is not the one the learning rate was found at, else "".

    The rate is never scaled with the batch: what is written is what runs.
    """
    data, accumulate = config.data, config.trainer.accumulate
    actual = data.batch_size * world_size * accumulate
    if data.global_batch in (0, actual):
        return ""
    return (
        f"global batch {actual} ({data.batch_size} a rank x {world_size} ranks x {accumulate} accumulated) is not the "
        f"{data.global_batch} of preset {config.preset}; models.optimizer.lr={config.models.optimizer.lr:g} is used as "
        "given, not scaled"
    )
