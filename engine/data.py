"""The data of a run: opens what the configuration names, checks that it can be trained on, builds the loaders."""

import dataclasses
from pathlib import Path

import numpy as np

from engine.config import Config
from engine.config.settings import rounded
from engine.console import warn
from engine.distributed import Ranks, on_main_first
from pipelines.errors import UserError
from pipelines.graph import LoaderOptions
from pipelines.index.build import ConcatIndex, open_index
from pipelines.limits import Limits
from pipelines.loader import TrainLoader, train_loader
from pipelines.overlap import overlap
from pipelines.synthetic import receipts


@dataclasses.dataclass(frozen=True)
class Data:
    """Opened indexes of a run; `test` is None without `data.test`. `notice` says where built-in pages are used."""

    train: ConcatIndex
    val: ConcatIndex
    test: ConcatIndex | None
    notice: str


def open_data(config: Config, ranks: Ranks) -> Data:
    """Opens training, validation and test pages; with none given, renders the built-in synthetic receipts once.

    Raises:
        UserError: training without validation pages or the reverse, empty data, nothing to learn from or to judge by,
            texts missing.
    """
    data = config.data
    if bool(data.train) != bool(data.val):
        given, missing = ("train", "val") if data.train else ("val", "train")
        raise UserError(f"data.{missing} is empty but data.{given} is given: give both, or neither for built-in pages")
    notice = ""
    train, val = data.train, data.val
    if not train:
        height, width = data.synthetic_size
        notice = (
            f"no data.train given: training on {data.synthetic_train} built-in synthetic receipts of {height}x{width} "
            f"px (validation: {data.synthetic_val} others)"
        )
        train, val = on_main_first(ranks, lambda: _synthetic(config))
    opened, judged = open_pages(config, train, ranks, "train"), open_pages(config, val, ranks, "val")
    test = open_pages(config, data.test, ranks, "test") if data.test else None
    if opened.num_usable == 0:
        raise UserError(f"data.train={','.join(train)}: every text is ignored or empty, nothing can be learnt from it")
    refuse_unjudgeable(judged, f"data.val={','.join(val)}")
    if data.train and ranks.main:
        warn_of_overlap(config, opened, judged, "val")
        if test is not None:
            warn_of_overlap(config, opened, test, "test")
    return Data(opened, judged, test, notice)


def open_pages(config: Config, specs: list[str], ranks: Ranks, key: str = "val") -> ConcatIndex:
    """One index over several sources, at least one. Rank 0 opens first, so an index is built once.

    Raises:
        UserError: a source cannot be read or is empty; official CLEval is asked for and there are no transcriptions.
    """
    cache, limits = Path(config.run_root) / ".index", config.data.limits
    indexes = on_main_first(
        ranks, lambda: [open_index(s, config.data.format, cache, limits, config.data.root or None) for s in specs]
    )
    for spec, index in zip(specs, indexes, strict=True):
        if ranks.main and index.oddities:
            warn(f"note: data.{key}={spec}: {index.oddities}; `python -m pipelines.dataset check {spec}` names them")
    pages = ConcatIndex(indexes)
    if len(pages) == 0:
        raise UserError(f"data.{key}={','.join(specs)}: no pages in it")
    _require_small(pages, config.data.max_page_mpx)
    _require_simple(pages, limits)
    if key != "train" and config.eval.protocol == "official":
        _require_texts(pages, f"data.{key}={','.join(specs)}")
    return pages


def not_scored(pages: ConcatIndex) -> str:
    """Why a score of these pages would say nothing, "" where it does."""
    if pages.num_usable:
        return ""
    regions = sum(len(part.ignore_flags) for part in pages.parts)
    return f"each of the {regions} regions is ignored" if regions else "no labels"


def refuse_unjudgeable(pages: ConcatIndex, source: str) -> None:
    """Refuses pages on which every detector scores 0.

    Raises:
        UserError: no region, or every one is ignored.
    """
    if why := not_scored(pages):
        raise UserError(f"{source}: {why}, nothing can be judged by it; name pages with labelled texts")


def warn_of_overlap(config: Config, train: ConcatIndex, other: ConcatIndex, key: str) -> None:
    """Says how many pages of `data.KEY` are among the training pages."""
    found = overlap(train, other, config.data.limits)
    if found.unread:
        words = f"{found.unread} files of one size are too many to read now"
        warn(f"note: whether pages of data.{key} are in data.train too was not looked at: {words}")
    if not found.example:
        return
    how = [f"{len(rows)} {words}" for rows, words in ((found.same, "by bytes"), (found.alike, "by picture")) if rows]
    warn(
        f"WARNING: {len(found.same) + len(found.alike)} of {len(other)} pages of data.{key} are in data.train too "
        f"({', '.join(how)}; {found.example}): the score is flattered; `pipelines.dataset split` keeps copies together"
    )


def _require_small(pages: ConcatIndex, limit_mpx: float) -> None:
    """The largest page decides how much memory decoding holds for the whole run: an outlier is refused here."""
    megapixels = pages.size_wh.astype(np.int64).prod(1) / 1e6
    largest = int(megapixels.argmax())
    if megapixels[largest] > limit_mpx:
        width, height = pages.size_wh[largest]
        raise UserError(
            f"{pages.path(largest)}: {width}x{height} pixels are {megapixels[largest]:.4g} megapixels, above "
            f"data.max_page_mpx={limit_mpx:g} ({np.count_nonzero(megapixels > limit_mpx)} such pages); shrink or leave "
            "them out, or raise the limit"
        )


def _require_simple(pages: ConcatIndex, limits: Limits) -> None:
    """An index may have been built with other limits than this run's."""
    for part in pages.parts:
        counts = np.diff(part.page_offsets)
        most = int(counts.argmax())
        if counts[most] > limits.polygons:
            raise UserError(
                f"{part.path(most)}: {counts[most]} polygons are above data.max_polygons={limits.polygons}; leave the "
                "page out, or raise the limit"
            )
        longest = part.longest_polygon
        if longest > limits.points:
            raise UserError(
                f"{part.folder}: has a polygon of {longest} points, above data.max_points={limits.points}; build "
                "the index again with that --max-points, or raise the limit"
            )


def _require_texts(pages: ConcatIndex, source: str) -> None:
    """Official CLEval counts characters by the transcriptions; a text without one would count as nothing."""
    if not pages.num_usable:
        return  # there is nothing to count, which `not_scored` says
    missing = "" if pages.has_texts else "it has no transcriptions"
    for part in pages.parts if pages.has_texts else ():
        row = part.untold
        if row is not None:
            missing = f"{part.name(row)} has a text without transcription"
            break
    if missing:
        raise UserError(
            f"{source}: {missing}, which official CLEval counts characters by; mark such texts ### or use "
            "eval.protocol=contest"
        )


def _synthetic(config: Config) -> tuple[list[str], list[str]]:
    """Renders (or finds) the built-in pages; validation pages come from another seed than training pages."""
    data, folder = config.data, Path(config.run_root) / ".synthetic"
    height, width = data.synthetic_size
    seed = 2 * data.synthetic_seed
    train = receipts.ensure(folder, data.synthetic_train, seed, height, width)
    val = receipts.ensure(folder, data.synthetic_val, seed + 1, height, width)
    return [str(train)], [str(val)]


def global_batch_size(config: Config, ranks: Ranks) -> int:
    """Pages an optimizer update sees over all ranks and forward passes."""
    return config.data.batch_size * ranks.world_size * config.trainer.accumulate


def canvas_at(config: Config, epoch: int) -> tuple[int, int]:
    """Canvas (H, W) in pixels of an epoch: the sizes of `data.progressive`, then data.image_size, in equal parts.

    A smaller canvas has the shape of the last one, sides rounded to multiples of 32. FLOPs go with the area: 20 epochs
    with [640,960] at 1280 cost 58 % of 20 at 1280.
    """
    height, width = config.data.image_size
    sides = config.data.progressive
    part = epoch * (len(sides) + 1) // config.trainer.max_epochs
    if part >= len(sides):
        return height, width
    scale = sides[part] / max(height, width)
    return rounded(height * scale), rounded(width * scale)


def loader_options(config: Config, ranks: Ranks) -> LoaderOptions:
    """Device, threads and workers of this rank's loaders."""
    data = config.data
    device_id = ranks.device.index if ranks.device.type == "cuda" else None
    return LoaderOptions(device_id, data.threads, data.workers, data.prefetch, data.hw_decoder_load)


def build_train_loader(config: Config, pages: ConcatIndex, ranks: Ranks, epoch: int, step: int) -> TrainLoader:
    """The endless training stream, starting at step `step` (updates) of epoch `epoch`, on that epoch's canvas.

    Raises:
        UserError: fewer pages than one global batch.
    """
    data = config.data
    return train_loader(
        pages,
        image_size=canvas_at(config, epoch),
        batch_size=data.batch_size,
        augment=config.augment,
        seed=config.seed,
        weights=data.train_weights,
        rank=ranks.rank,
        world_size=ranks.world_size,
        accumulate=config.trainer.accumulate,
        start_epoch=epoch,
        start_step=step,
        options=loader_options(config, ranks),
        bad=pages.bad,
        unread=pages.unread,
        max_bad_share=data.max_bad_share,
    )
