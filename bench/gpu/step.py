"""Section `step` of `bench.gpu`: images/s of the whole training step, data from disk, in its eager and compiled forms.

The step is `engine.training.step.train_step`; pages come from DALI or, where it is missing, from a torch DataLoader
with OpenCV.
"""

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu.kernels import clocks
from bench.gpu.pages import Pages, draw_pages
from engine.config import Config, DataConfig, EncoderConfig, ModelsConfig, SpeedConfig, TrainerConfig, changed
from engine.distributed import Ranks, seed_everything
from engine.profiling.flops import training_flops
from engine.training.metrics import Stopwatch
from engine.training.state import TrainState, build
from engine.training.step import train_step

WARM_UP, STEPS, KEPT = 4, 20, 4
SPEED: dict[str, dict[str, Any]] = {
    "forced layout": {"force_layout": True},
    "blocks": {"scope": "blocks"},
    "fused norms": {"fused_norms": True},
    "combo kernels": {"combo_kernels": True},
    "graphs": {"cuda_graphs": "true"},
    "half the activations": {"memory_budget": 0.5},
    "max-autotune": {"max_autotune": True},
}


def settings(size: Any, what: str) -> Config:
    """The configuration of an entry such as "compiled, 48 channels, blocks"."""
    words = what.split(", ")
    channels = next((word.split()[0] for word in words if word.endswith("channels")), "none")
    speed = {key: value for word in words for key, value in SPEED.get(word, {}).items()}
    encoder = EncoderConfig(name=size.encoder, pad_widths=channels)
    pages = next((int(word.split()[0]) for word in words if word.endswith("pages")), size.pages)
    data = DataConfig(image_size=[size.side, size.side], batch_size=pages)
    trainer = TrainerConfig(compile=words[0] == "compiled", device=size.device, ema=True)
    speed = {"cuda_graphs": "false"} | speed
    return Config(data=data, models=ModelsConfig(encoder=encoder), trainer=trainer, speed=SpeedConfig(**speed))


def rows(what: str, size: Any) -> Iterator[tuple[str, dict]]:
    """One entry of the section; see `bench.gpu`. `size`: pages, side, encoder, device."""
    device = torch.device(size.device)
    ranks = Ranks(0, 0, 1, device)
    seed_everything(0, deterministic=False)
    with tempfile.TemporaryDirectory() as folder:
        pages = draw_pages(Path(folder), max(2 * size.pages, 8))
        if what == "plain loop":
            config = settings(size, "eager")
            figures = plain(config, pages, device)
        else:
            config = settings(size, what)
            figures = ours(config, pages, ranks, profiled=what == "compiled")
    if "images_per_second" in figures:
        figures["model_tflop_s"] = training_flops(config) * figures["images_per_second"] / 1e12
    yield what, figures | {"end": True}


def open_loader(config: Config, pages: Pages, device: torch.device) -> tuple[Any, str]:
    """The training stream and what makes it."""
    height, width = config.data.image_size
    options: dict[str, Any] = {"image_size": (height, width), "batch_size": config.data.batch_size, "seed": 0}
    options["augment"] = config.augment
    cores = len(os.sched_getaffinity(0))
    try:
        from pipelines.graph import LoaderOptions
        from pipelines.loader import train_loader
    except ImportError:
        from bench.peers.opencv_loader import opencv_loader

        workers = loader_workers(cores, config.data.batch_size * 3 * height * width * 4)
        return opencv_loader(pages, **options, workers=workers), f"no DALI: OpenCV, {workers} workers"
    device_id = None if device.type == "cpu" else torch.cuda.current_device()
    return train_loader(pages, **options, options=LoaderOptions(device_id, threads=min(8, cores))), "DALI"


def loader_workers(cores: int, batch_bytes: int) -> int:
    """Worker processes whose batches fit into shared memory, two each: a container's 64 MB end in a bus error."""
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else 0
    return max(0, min(cores - 2, free // (3 * batch_bytes)))


def ours(config: Config, pages: Pages, ranks: Ranks, profiled: bool = False) -> dict:
    """Figures of STEPS steps after WARM_UP; the first one's time is the compilation's, nearly all of it.

    Then the same with KEPT batches that stay on the device: without DALI a loader of the CPU is what the first wait
    for. With `profiled` the table of `trainer.profile` as well, of some steps more: no second compilation for it.
    """
    train_state = build(config, ranks)
    train_state.model.train()
    loader, source = open_loader(config, pages, ranks.device)
    watch = Stopwatch()
    begun = time.perf_counter()
    for step in range(WARM_UP):
        train_step(train_state, loader, config, ranks, watch, step)
        if step == 0:
            wait(ranks.device)
            first = time.perf_counter() - begun
    figures = timed(
        lambda step: train_step(train_state, loader, config, ranks, watch, WARM_UP + step), config, ranks.device, watch
    )
    kept = itertools.cycle([next(loader).to(ranks.device) for _ in range(KEPT)])
    again = timed(
        lambda step: train_step(train_state, kept, config, ranks, watch, WARM_UP + step), config, ranks.device
    )
    figures |= {"kept_images_per_second": again["images_per_second"], "first_step_s": first, "loader": source}
    if profiled:
        figures["text"] = profile(train_state, loader, config, ranks)
    loader.close()
    return figures | {"clocks": clocks(ranks.device)}


def timed(step: Any, config: Config, device: torch.device, watch: Stopwatch | None = None) -> dict:
    """Rate, quantiles of the step's time, share of waiting for data, peak memory."""
    on_gpu = device.type == "cuda"
    wait(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    marks: list[Any] = []
    if watch:
        watch.reset()
    start = time.perf_counter()
    for number in range(STEPS + 1):
        marks.append(torch.cuda.Event(enable_timing=True) if on_gpu else time.perf_counter())
        if on_gpu:
            marks[-1].record()
        if number < STEPS:
            step(number)
    wait(device)
    seconds = time.perf_counter() - start
    spans = [a.elapsed_time(b) if on_gpu else 1e3 * (b - a) for a, b in itertools.pairwise(marks)]
    figures = {
        "images_per_second": STEPS * config.data.batch_size / seconds,
        "step_ms (20/50/80 %)": [float(q) for q in np.quantile(spans, (0.2, 0.5, 0.8))],
    }
    if watch:
        figures["data_wait_share"] = watch.read()["data_wait_share"]
    if on_gpu:
        figures["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return figures


def plain(config: Config, pages: Pages, device: torch.device) -> dict:
    """The loop users come from (bench.plain_loop) on the same pages, 4 a step at most.

    Without pyclipper its workers draw the targets with our CPU reference, which is faster.
    """
    from bench.plain_loop import plain_loader, plain_model, plain_step
    from pipelines.sampler import Share
    from pipelines.source import TrainSource

    # float32 takes twice the memory
    config = changed(config, {"data.batch_size": min(4, config.data.batch_size)})
    height, width = config.data.image_size
    source = TrainSource(pages, (height, width), config.augment, Share(config.data.batch_size), seed=0)
    batch_bytes = config.data.batch_size * height * width * 20
    loader = plain_loader(source, workers=min(8, loader_workers(len(os.sched_getaffinity(0)), batch_bytes)))
    model, optimizer = plain_model(config, device)
    for _ in range(WARM_UP):
        plain_step(model, optimizer, *next(loader))
    figures = timed(lambda _: plain_step(model, optimizer, *next(loader)), config, device)
    return figures | {"loader": f"OpenCV, float32, NCHW, {config.data.batch_size} pages"}


def profile(train_state: TrainState, loader: Any, config: Config, ranks: Ranks) -> str:
    """The table of `trainer.profile` as text."""
    from engine.profiling.recorder import SKIPPED, Recorder
    from engine.profiling.recorder import STEPS as RECORDED

    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(changed(config, {"trainer.profile": True}), ranks, Path(folder), said.append)
        for step in range(SKIPPED + 1 + RECORDED):
            train_step(train_state, loader, config, ranks, Stopwatch(), step)
            recorder.stepped()
    return "\n".join(said)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
