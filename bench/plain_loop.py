"""The loop users come from, as the fixed peer of the whole training: eager, float32, NCHW, every loss read at once.

    python -m bench.plain_loop [steps=12] [turns=3] [preset=receipts_cpu] [section.key=value ...]

runs ours and the plain loop in turns, each in a process of its own, and prints images/s of both and their ratio. Both
train the same network on the same pages with the same augmentation. The plain loop: OpenCV in a torch DataLoader with 2
workers, targets by pyclipper and OpenCV in those workers, the loss with topk and int(), `loss.item()` in every step.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import importlib.util
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.peers.opencv_loader import Batches, one_thread
from engine.config import Config
from engine.distributed import Ranks
from engine.model import DBNet, build_model
from engine.model.encoder import NEED_INPUT
from kernels.db_targets import DBTargets, db_targets
from pipelines.batch import Batch
from pipelines.index import ConcatIndex
from pipelines.sampler import Share
from pipelines.source import TrainSource

WARM_UP = 3  # steps before the clock: oneDNN and cuDNN choose their algorithms, queues fill


def plain_targets(batch: Batch) -> DBTargets:
    """(N, H, W) targets of a batch in host memory by pyclipper and OpenCV, page by page; ignored texts masked out.

    Where pyclipper is not installed, by the reference of `kernels.db_targets`.
    """
    n, _, height, width = batch.image.shape
    if importlib.util.find_spec("pyclipper") is None:
        labels = batch.points_xy, batch.poly_offsets, batch.page_offsets, batch.ignore
        return db_targets(*labels, height=height, width=width, implementation="reference")
    from bench.peers.clipper_targets import clipper_targets

    points, poly, page = batch.points_xy.numpy(), batch.poly_offsets.numpy(), batch.page_offsets.numpy()
    maps = []
    for i in range(n):
        rows = range(page[i], page[i + 1])
        shapes = {row: points[poly[row] : poly[row + 1]] for row in rows}
        shrink, value, band = clipper_targets([shapes[r] for r in rows if not batch.ignore[r]], height, width)
        mask = np.ones((height, width), np.uint8)
        for row in rows:
            if batch.ignore[row]:
                cv2.fillPoly(mask, [shapes[row].astype(np.int32)], 0)
        maps.append((shrink, mask, value, band))
    return DBTargets(*(torch.from_numpy(np.stack(column)) for column in zip(*maps)))


class WithTargets(Dataset):
    """Item i is (image NCHW float32, targets) of batch number i, all of it made in the worker."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, iteration: int) -> tuple[torch.Tensor, DBTargets]:
        batch = self.batches[iteration]
        return batch.image.contiguous(), plain_targets(batch)


def plain_loader(source: TrainSource, workers: int = 2) -> Iterator[tuple[torch.Tensor, DBTargets]]:
    """Endless (image, targets) from worker processes."""
    batches = WithTargets(Batches(source))
    return iter(DataLoader(batches, None, sampler=itertools.count(), num_workers=workers, worker_init_fn=one_thread))


def plain_model(config: Config, device: torch.device) -> tuple[DBNet, torch.optim.Optimizer]:
    """The network in NCHW as timm and torch give it, and its optimizer with torch's defaults."""
    model = build_model(config).to(device).to(memory_format=torch.contiguous_format).train()
    for module in model.encoder.modules():
        if type(module).__name__.lower() in NEED_INPUT and hasattr(module, "inplace"):
            # as timm has it; the engine's encoder takes it out of place. torch's stub knows tensors and modules only
            module.inplace = True  # type: ignore[assignment]
    settings = config.models.optimizer
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[settings.name]
    return model, kind(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)


def plain_step(model: DBNet, optimizer: torch.optim.Optimizer, image: torch.Tensor, targets: DBTargets) -> float:
    """One update as it is commonly written; returns the loss, which on a GPU waits for it."""
    from bench.gpu.cases import loss_with_topk

    device = next(model.parameters()).device
    targets = DBTargets(*(field.to(device) for field in targets))
    prob_logits, thresh_logits = model(image.to(device))
    optimizer.zero_grad()
    loss = loss_with_topk(prob_logits[:, 0], thresh_logits[:, 0], targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def _plain(config: Config, pages: ConcatIndex, ranks: Ranks, steps: int) -> float:
    height, width = config.data.image_size
    share = Share(config.data.batch_size)
    loader = plain_loader(TrainSource(pages, (height, width), config.augment, share, seed=config.seed))
    model, optimizer = plain_model(config, ranks.device)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = time.perf_counter()
        plain_step(model, optimizer, *next(loader))
    return steps * config.data.batch_size / (time.perf_counter() - start)


def _ours(config: Config, pages: ConcatIndex, ranks: Ranks, steps: int) -> float:
    from engine.data import build_train_loader
    from engine.training.metrics import Stopwatch
    from engine.training.state import build
    from engine.training.step import train_step

    train_state = build(config, ranks)
    train_state.model.train()
    loader = build_train_loader(config, pages, ranks, 0, 0)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = time.perf_counter()
        parts = train_step(train_state, loader, config, ranks, Stopwatch(), step)
    parts.tolist()  # sync: the last step is part of the time
    seconds = time.perf_counter() - start
    loader.close()
    return steps * config.data.batch_size / seconds


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring. `only=ours` and `only=plain` are the child processes."""
    from engine import cli, distributed
    from engine.data import open_data
    from pipelines.errors import UserError

    argv = argv if any(item.startswith("preset=") for item in argv) else ["preset=receipts_cpu", *argv]
    config, own, _ = cli.parse(argv, {"steps": "12", "turns": "3", "only": ""}, __doc__)
    if not (own["steps"].isdigit() and own["turns"].isdigit() and int(own["steps"]) and int(own["turns"])):
        raise UserError(f"steps={own['steps']} turns={own['turns']}: expected whole numbers above 0")
    if own["only"]:
        ranks = distributed.start(config.trainer.device)
        distributed.seed_everything(config.seed, False)
        run = {"ours": _ours, "plain": _plain}[own["only"]]
        print(run(config, open_data(config, ranks).train, ranks, int(own["steps"])))
        return 0
    speeds: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn, which in itertools.product(range(int(own["turns"])), speeds):
        command = [sys.executable, "-m", "bench.plain_loop", *argv, f"only={which}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{which}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}")
        speeds[which].append(float(done.stdout.split()[-1]))
        print(f"turn {turn + 1}, {which}: {speeds[which][-1]:.2f} images/s", flush=True)
    ours, plain = (statistics.median(values) for values in speeds.values())
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    print(f"ours {ours:.2f}, plain {plain:.2f} images/s; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
          f"{max(ratios):.2f} over {len(ratios)} turns)")  # fmt: skip
    return 0


if __name__ == "__main__":
    from engine import cli

    cli.run(main)
