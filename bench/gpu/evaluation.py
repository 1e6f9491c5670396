"""Section `evaluation` of `bench.gpu`: a whole validation pass against its network's own time.

An untrained network finds nothing, and boxes and CLEval would cost nothing: so the network's logits are multiplied by 0
and those of text-like maps with about 100 regions added.
"""

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.gpu.cases import prob_maps
from bench.gpu.pages import draw_pages
from bench.gpu.step import settings
from engine.config import EvalConfig
from engine.distributed import Ranks
from engine.model import build_model
from engine.model.forward import compiled

GOAL = 1.3  # times the network's own time
BATCHES, FILES = 40, 32  # batches of a pass, so that its start counts little; different files among their pages


def rows(what: str, size: Any) -> Iterator[tuple[str, dict]]:
    """The one entry of the section; see `bench.gpu`. `size`: pages, side, encoder, device."""
    from engine.detection.maps import prob_maps as run
    from engine.evaluation.judge import evaluate  # shapely, SciPy, pyclipper, DALI: missing ones are named
    from engine.evaluation.workers import worker_pool

    device = torch.device(size.device)
    ranks = Ranks(0, 0, 1, device)
    config = settings(size, "compiled" if device.type == "cuda" else "eager")
    config = dataclasses.replace(config, eval=EvalConfig(batch_size=size.pages, protocol="contest", workers=4))
    model = compiled(build_model(config).to(device).eval(), config)
    maps = prob_maps(size.pages, size.side, device, torch.float32)[:, None].clamp(1e-4, 1 - 1e-4).logit()

    def forward(image: torch.Tensor) -> torch.Tensor:
        return model(image) * 0 + maps[: len(image)]

    with tempfile.TemporaryDirectory() as folder, worker_pool(config.eval.workers) as pool:
        pages = draw_pages(Path(folder), min(FILES, BATCHES * size.pages)).repeated(BATCHES * size.pages)
        image = torch.randn(size.pages, 3, size.side, size.side, device=device).to(memory_format=torch.channels_last)
        network = _seconds(lambda: [run(forward, image, config) for _ in range(BATCHES)], device)
        whole = _seconds(lambda: evaluate(forward, pages, config, ranks, pool=pool), device)
    figures = {"network_s": network, "whole_s": whole, "times_the_network": whole / network, "goal": GOAL}
    yield what, figures | {"pages_per_second": len(pages) / whole, "end": True}


def _seconds(work: Any, device: torch.device) -> float:
    """Seconds of the second call; the first compiles, grows pools and starts processes."""
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return seconds
