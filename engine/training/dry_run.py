"""`--dry-run`: everything a run needs, tried in a minute and left without a trace."""

import resource
import tempfile
import time
from pathlib import Path

import torch

from engine import distributed
from engine.checkpoint import store
from engine.config import Config
from engine.config.load import to_yaml
from engine.data import build_train_loader, open_data
from engine.detection.pages import detect_pages
from engine.distributed import Ranks
from engine.model import frozen_norms_to_eval
from engine.training.metrics import Stopwatch
from engine.training.optim import set_lr
from engine.training.state import TrainState, build
from engine.training.step import train_step

STEPS = 2


def dry_run(config: Config, ranks: Ranks) -> int:
    """Opens the data, runs two training steps, detects on a page, writes a checkpoint and reads it back.

    Returns the exit code: 0, or 1 when the checkpoint came back different.
    """
    distributed.seed_everything(config.seed, config.trainer.deterministic)
    data = open_data(config, ranks)
    train_state = build(config, ranks)
    loader = build_train_loader(config, data.train, ranks, 0, 0)
    train_state.model.train()
    frozen_norms_to_eval(train_state.model)
    times = []
    for step in range(STEPS):
        start = time.perf_counter()
        set_lr(train_state.optimizer, config, step, loader.steps_per_epoch)
        parts = train_step(train_state, loader, config, ranks, Stopwatch(), step).tolist()  # sync: the point is to wait
        times.append(time.perf_counter() - start)
    loader.close()
    train_state.model.eval()
    first = [page for page, _ in zip(detect_pages(train_state.evaluated, data.val, config, ranks), range(1))]
    same = round_trip(train_state, config)
    if ranks.main:
        print(f"data: {len(data.train)} training pages, {len(data.val)} validation pages")
        print(f"steps: {STEPS} done, {times[0]:.2f} s and {times[1]:.2f} s, loss {parts[0]:.4f}")
        print(f"evaluation: {len(first)} page, {len(first[0][1].polygons) if first else 0} regions before training")
        print(f"checkpoint: {'read back bit for bit' if same else 'DIFFERS after reading back'}")
        print(f"memory: {memory(ranks)}")
    return 0 if same else 1


def round_trip(train_state: TrainState, config: Config) -> bool:
    """Whether a checkpoint of the training state is read back bit for bit."""
    parts = store.snapshot(train_state.model, train_state.averaged, train_state.optimizer)
    with tempfile.TemporaryDirectory() as folder:
        path = store.write(Path(folder), parts, {"step": STEPS}, to_yaml(config))
        if store.verify(path):
            return False
        return all(
            torch.equal(tensor, back[name])
            for part, tensors in parts.items()
            for back in [store.load_part(path, part)]
            for name, tensor in tensors.items()
        )


def memory(ranks: Ranks) -> str:
    """Peak memory of this process, and of its GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    if ranks.device.type != "cuda":
        return f"peak {host:.0f} MiB of host memory on rank 0"
    peak = torch.cuda.max_memory_allocated(ranks.device) / 2**20
    return f"peak {peak:.0f} MiB on the GPU, {host:.0f} MiB of host memory on rank 0"
