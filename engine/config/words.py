"""What a setting is called elsewhere (Lightning, Hydra, timm, MMOCR), and what it is here.

elsewhere("trainer.gradient_clip_val", {})     "trainer.clip_norm"
undashed("--models.optimizer.lr=1e-3")         "models.optimizer.lr=1e-3"
hydra("+trainer.ema=true")                     "Hydra's + is not needed: write trainer.ema=true"
"""

from collections.abc import Collection

# The last part of a key elsewhere -> what stands for it here, as "did you mean ...?" has it.
ELSEWHERE = {
    "learning_rate": "models.optimizer.lr",
    "base_lr": "models.optimizer.lr",
    "wd": "models.optimizer.weight_decay",
    "backbone": "models.encoder.name",
    "pretrained": "models.encoder.weights=timm",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "gradient_clip_val": "trainer.clip_norm",
    "clip_grad": "trainer.clip_norm",
    "max_grad_norm": "trainer.clip_norm",
    "accumulate_grad_batches": "trainer.accumulate",
    "gradient_accumulation_steps": "trainer.accumulate",
    "accum_iter": "trainer.accumulate",
    "log_every_n_steps": "trainer.log_every",
    "check_val_every_n_epoch": "eval.every_epochs",
    "val_check_interval": "eval.every_epochs",
    "max_time": "trainer.max_minutes",
    "fast_dev_run": "--dry-run",
    "accelerator": "trainer.device",
    "devices": "torchrun --nproc_per_node",
    "gpus": "torchrun --nproc_per_node",
    "num_nodes": "torchrun --nnodes",
    "num_workers": "data.threads",
    "img_size": "data.image_size",
    "input_size": "data.image_size",
    "seed_everything": "seed",
    "default_root_dir": "run_root",
    "output_dir": "run_root",
    "resume_from_checkpoint": "resume",
}


def elsewhere(key: str, extra: Collection[str]) -> str:
    """What a key of another project is here, "" where none is known; `extra` are the command's own keys."""
    leaf = key.rsplit(".", 1)[-1]
    if leaf in ("ckpt_path", "load_from"):
        return "checkpoint" if "checkpoint" in extra else "resume (to go on with a run) or init_from (its weights only)"
    return ELSEWHERE.get(leaf, "")


def undashed(item: str) -> str:
    """`--key=value`, as `wandb agent` writes settings, as `key=value`; anything else stays."""
    return item[2:] if item.startswith("--") and "=" in item else item


def hydra(item: str) -> str:
    """What to write for `+key=value`, `++key=value` and `~key`; "" for what is none of them."""
    plain = item.lstrip("+~")
    sign = item[: len(item) - len(plain)]
    if sign in ("+", "++"):
        return f"Hydra's {sign} is not needed: write {plain}"
    if sign == "~":
        return f"Hydra's ~ is not known: a key cannot be left out; set {plain.partition('=')[0]} to another value"
    return ""
