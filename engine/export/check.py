"""Whether what was written is the network: its maps and quads beside PyTorch's, at several sizes and batches.

    with pages_of(config) as (pages, name), draft(target, (".onnx",)) as path:
        ...                                              # written to `path`
        compare(run, cases(exported, pages), config, target)

`draft` gives the file its name only if the comparison ends well.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from engine.config import Config, changed
from engine.config.load import canvas_hw
from engine.config.settings import rounded
from engine.data import open_pages
from engine.detection.postprocess import Detections, detect
from engine.export.network import HERE, Exported
from pipelines.errors import UserError
from pipelines.graph import LoaderOptions
from pipelines.index.build import ConcatIndex
from pipelines.loader import eval_loader
from pipelines.synthetic import receipts

# float32 sums in another order: HRNet-W44 at 1280 x 1280 has 1e-5; a wrong padding or mean has 0.01 and more.
MOST_DIFFERENCE = 1e-4
SAME_PX, SAME_SCORE = 0.01, 1e-3
PAGES = 3  # that are compared; the largest batch
SYNTHETIC_SEED = 17  # pages no training has seen: those of a training have even and odd seeds from data.synthetic_seed

Run = Callable[[np.ndarray], np.ndarray]  # (N, 3, H, W) float32 -> (N, 1, H, W) float32


@dataclasses.dataclass(frozen=True)
class Case:
    """One batch: its pages on their canvas, and PyTorch's maps of them."""

    image: np.ndarray  # (N, 3, H, W) float32
    matrix: np.ndarray  # (N, 2, 3) source to canvas pixels
    sizes_wh: np.ndarray  # (N, 2)
    maps: np.ndarray  # (N, H, W) float32


@contextmanager
def pages_of(config: Config) -> Iterator[tuple[ConcatIndex, str]]:
    """The annotated pages of data.val and their name; without any, built-in ones that are gone afterwards.

    Raises:
        UserError: data.val cannot be read.
    """
    if config.data.val:
        yield open_pages(config, config.data.val, HERE), ",".join(config.data.val)
        return
    with TemporaryDirectory(prefix="dbnet-export-") as folder:
        height, width = config.data.synthetic_size
        made = receipts.ensure(folder, PAGES, SYNTHETIC_SEED, height, width, workers=1)
        own = changed(config, {"run_root": folder, "data.format": "auto"})
        yield open_pages(own, [str(made)], HERE), f"{PAGES} built-in pages"


def sizes(config: Config) -> list[tuple[tuple[int, int], int]]:
    """((H, W), batch) to compare at: the detector's canvas, half of it lying on its side, a third of it."""
    height, width = canvas_hw(config)

    def side(length: float) -> int:
        return max(64, rounded(length))

    return [((height, width), 1), ((side(width / 2), side(height / 2)), 2), ((side(height / 3), side(width / 3)), 3)]


def cases(exported: Exported, pages: ConcatIndex, only: tuple[int, int] | None = None) -> list[Case]:
    """PyTorch's maps of the first pages, once for all files compared with them; `only`: of one page, at (H, W)."""
    found = []
    for size, batch in [(only, 1)] if only else sizes(exported.config):
        options = LoaderOptions(threads=1, prefetch=1)
        loader = eval_loader(pages, image_size=size, batch_size=min(batch, len(pages)), options=options)
        try:
            first = next(iter(loader))
            image = first.image.float().contiguous()
            with torch.inference_mode():
                maps = exported.module(image)[:, 0].numpy()
            found.append(Case(image.numpy().copy(), first.matrix, pages.size_wh[first.index], maps))
        finally:
            loader.close()
    return found


def compare(run: Run, every: list[Case], config: Config, name: Path) -> dict:
    """Runs a written network on all cases.

    A pixel that lies nearer to post.bin_thresh than the maps differ is text in one and not in the other by rounding
    alone, and may move a corner by a pixel: such pixels take PyTorch's value before quads are read, and are counted.

    Returns:
        `sizes` ([N, H, W] of each case), `max_abs_diff`, `quads` (all found, the same by both), `undecided_pixels`.

    Raises:
        UserError: another shape or type, maps that differ by more than MOST_DIFFERENCE, other quads.
    """
    worst, quads, undecided = 0.0, 0, 0
    for case in every:
        maps = run(case.image)
        if maps.shape != (len(case.maps), 1, *case.maps.shape[1:]) or maps.dtype != np.float32:
            raise UserError(f"{name}: not kept, it gives {maps.dtype} {maps.shape} for an image {case.image.shape}")
        maps = maps[:, 0]
        difference = float(np.abs(maps - case.maps).max())
        if not difference <= MOST_DIFFERENCE:  # NaN too
            raise UserError(f"{name}: not kept, its maps differ from PyTorch's by {difference:.2g} ({case.maps.shape})")
        worst = max(worst, difference)
        close = np.abs(case.maps - config.post.bin_thresh) <= difference
        close &= (maps > config.post.bin_thresh) != (case.maps > config.post.bin_thresh)
        undecided += int(close.sum())
        both = [
            detect(torch.from_numpy(m), case.matrix, case.sizes_wh, config.post)
            for m in (case.maps, np.where(close, case.maps, maps))
        ]
        for ours, theirs in zip(*both, strict=True):
            if not same(ours, theirs):
                raise UserError(f"{name}: not kept, other quads than PyTorch's ({case.maps.shape})")
            quads += len(ours.polygons)
    shapes = [[len(case.maps), *case.maps.shape[1:]] for case in every]
    return {"sizes": shapes, "max_abs_diff": worst, "quads": quads, "undecided_pixels": undecided}


def same(a: Detections, b: Detections) -> bool:
    """Whether two pages of regions are the same but for rounding; equal scores may have changed places."""
    if len(a.polygons) != len(b.polygons):
        return False
    left = list(zip(b.polygons, b.scores, strict=True))
    for polygon, score in zip(a.polygons, a.scores, strict=True):
        for i, (other, its) in enumerate(left):
            near = other.shape == polygon.shape and np.abs(other - polygon).max() <= SAME_PX
            if near and abs(its - score) <= SAME_SCORE:
                del left[i]
                break
        else:
            return False
    return True


@contextmanager
def draft(path: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, that becomes it when the block ends well, and is gone otherwise.

    Raises:
        UserError: `path` exists, or has another suffix.
    """
    refuse(path, suffixes)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuses a file to write that exists or is misnamed, before the work.

    Raises:
        UserError: either.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if path.exists():
        raise UserError(f"{path}: exists already; name another file, or delete it")
