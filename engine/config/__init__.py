"""The settings of every entry point. What comes in: a command line, YAML presets. What goes out: one frozen `Config`.

`settings` are the dataclasses, `load` reads and merges, `cautions` are settings that run but look wrong. No torch.
"""

from engine.config.settings import (
    AugmentConfig,
    Config,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EvalConfig,
    HeadConfig,
    LossConfig,
    ModelsConfig,
    OptimizerConfig,
    PostConfig,
    SchedulerConfig,
    SpeedConfig,
    TrainerConfig,
    changed,
)

__all__ = [
    "AugmentConfig", "Config", "DataConfig", "DecoderConfig", "EncoderConfig", "EvalConfig", "HeadConfig",
    "LossConfig", "ModelsConfig", "OptimizerConfig", "PostConfig", "SchedulerConfig", "SpeedConfig", "TrainerConfig",
    "changed",
]  # fmt: skip
