"""The settings of the postprocessing that score best for a trained detector, and whether they hold on unseen pages.

    python -m engine.tune checkpoint=runs/NAME data.val=PATH [--trials N] [--folds K] [--no-write] [--json]
                          [section.key=value ...]

`checkpoint` is a run folder, a checkpoint, or the ensemble.yaml that engine.ensemble wrote; --checkpoint PATH and PATH
alone name it too. The network runs once; its probability maps are kept with 8 bits a pixel. Settings are ranked by
CLEval's H-mean, as eval.protocol and eval.select of the checkpoint say. `post.*` settings given here are where the
search starts, and what the gain is against.

The gain is cross-validated over the pages. If it is more than noise, the settings are written into the checkpoint's
config.yaml (or the ensemble's file), with a record, tune.json: evaluation and prediction use them from then on.
RUN/tune.png shows the H-mean around the best settings.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine import cli
from engine.config import Config, PostConfig
from engine.console import reason, text_table, warn
from engine.data import open_pages, refuse_unjudgeable
from engine.detection.maps import Forward, MapStore, prob_batches, store_maps
from engine.detection.open import Opened, checkpoint_of, open_detector
from engine.detection.postprocess import detect
from engine.distributed import Ranks
from engine.evaluation.cleval import PageResult
from engine.evaluation.judge import judged
from engine.evaluation.significance import SURE, counts_of, groups_of, hmeans
from engine.tune import figure, record
from engine.tune.candidates import Judge
from engine.tune.search import Found, Gain, deal, gain_of, least_filters, search, slices
from pipelines.bars import progress
from pipelines.errors import UserError, printable
from pipelines.index.build import ConcatIndex

SHOWN = 5  # settings in the table
OF_MAPS = ("data.image_size", "eval.image_size", "eval.ema")  # settings that decide the maps
COLUMNS = tuple(field.name for field in dataclasses.fields(PostConfig) if field.name != "polygon_epsilon")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The outcome over N pages."""

    start: PostConfig
    ranked: list[Found]  # by all pages' H-mean on 8-bit maps, best first
    chosen: list[PostConfig]  # of each fold, found without it
    gain: Gain  # cross-validated
    tried: int  # settings counted on all pages, over all searches
    curves: list[tuple[str, list, list[float]]]
    groups: int
    stored: tuple[float, float]  # H-means of start and best, 8-bit maps

    @property
    def best(self) -> PostConfig:
        """The settings found with all pages."""
        return self.ranked[0].post


def tune(
    store: MapStore, pages: ConcatIndex, groups: np.ndarray, config: Config, trials: int, folds: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Tuned:  # fmt: skip
    """Searches on stored maps, with all pages and without each fold; no file is touched.

    Args:
        store: maps of the pages. groups: (N,), copies of a page together.
        config: eval and post settings, the latter where it starts.
        trials, folds: see the command. tell: called after every growth that was looked at.

    Raises:
        UserError: too few pages for the folds.
    """
    start, select = config.post, config.eval.select
    fold, every = deal(groups, folds), np.arange(len(store))
    judge = Judge(store, pages, config.eval.protocol, least_filters(start))
    all_pages, without_fold = np.ones(len(store), bool), [fold != k for k in range(folds)]
    whole, *parts = search(judge, start, select, [all_pages, *without_fold], trials, tell)
    best, *chosen = (searched.ranked[0].post for searched in (whole, *parts))
    before, after = judge.exact(start, every), judge.exact(best, every)
    unseen = np.zeros_like(before)  # every page with the settings that were found without it
    for k, post in enumerate(chosen):
        unseen[fold == k] = judge.exact(post, every[fold == k])
    return Tuned(
        start=start,
        ranked=whole.ranked,
        chosen=chosen,
        gain=gain_of(before, unseen, groups, select),
        tried=sum(searched.tried for searched in (whole, *parts)),
        curves=list(slices(judge, best, start, select)),
        groups=int(groups.max()) + 1,
        stored=(float(hmeans(before, select)), float(hmeans(after, select))),
    )


def unrounded(
    forward: Forward, pages: ConcatIndex, config: Config, ranks: Ranks, posts: list[PostConfig],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:  # fmt: skip
    """H-mean of settings on the network's own float maps, in one pass: what engine.evaluate gives for each."""
    results: list[list[PageResult]] = [[] for _ in posts]
    with contextlib.closing(prob_batches(forward, pages, config, ranks)) as batches:
        for batch, maps in batches:
            for post, kept in zip(posts, results, strict=True):
                found = detect(maps, batch.matrix, pages.size_wh[batch.index], post, config.trainer.kernels)
                rows = zip(batch.index.tolist(), found, strict=True)
                kept += [result for _, _, result in judged(rows, pages, config.eval.protocol)]
            tell(len(results[0]), len(pages))
    return [float(hmeans(counts_of(kept), config.eval.select)) for kept in results]


def verdict(tuned: Tuned, real: tuple[float, float]) -> tuple[bool, str]:
    """Whether the best settings are to be written, and why (not).

    Args:
        real: H-means of start and best on the network's own maps.
    """
    gain = tuned.gain
    words = f"{gain.gain:+.4f} +- {gain.standard_error:.4f} on pages that were not searched on"
    if tuned.best == tuned.start:
        return False, "nothing scores better than the start's settings"
    if not gain.real:
        return False, f"noise: {words} is less than {SURE:g} standard errors; not applied"
    if real[1] <= real[0]:
        return False, f"noise: {words}, but on the network's own maps of all pages it does not rise; not applied"
    return True, f"a gain: {words}"


def as_json(tuned: Tuned, real: tuple[float, float], config: Config, path: Path, words: str) -> dict[str, Any]:
    """The result as plain values."""
    return {
        "checkpoint": str(path),
        "data": config.data.val,
        "protocol": config.eval.protocol,
        "select": config.eval.select,
        "different_pages": tuned.groups,
        "settings_tried": tuned.tried,
        "start": dataclasses.asdict(tuned.start),
        "best": dataclasses.asdict(tuned.best),
        "hmean": {"start": real[0], "best": real[1]},
        "hmean_8bit": {"start": tuned.stored[0], "best": tuned.stored[1]},
        "cross_validation": dataclasses.asdict(tuned.gain) | {"folds": [dataclasses.asdict(p) for p in tuned.chosen]},
        "verdict": words,
        "ranked": [{"hmean_8bit": one.score, **dataclasses.asdict(one.post)} for one in tuned.ranked[:SHOWN]],
    }


def table(tuned: Tuned, real: tuple[float, float], words: str) -> str:
    """The result for people."""
    rows = [["", "H-mean", *COLUMNS]]
    for place, one in enumerate([Found(tuned.start, tuned.stored[0]), *tuned.ranked[:SHOWN]]):
        values = [getattr(one.post, name) for name in COLUMNS]
        shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        rows.append([str(place or "start"), f"{one.score:.4f}", *shown])
    gain = tuned.gain
    off = max(abs(a - b) for a, b in zip(real, tuned.stored, strict=True))
    lines = [
        text_table(rows, left=()),
        "",
        f"on the network's own maps: {real[0]:.4f} -> {real[1]:.4f} (8 bits a pixel change it by at most {off:.5f})",
        f"cross-validated: {gain.start:.4f} -> {gain.chosen:.4f} over {len(tuned.chosen)} folds of "
        f"{tuned.groups} different pages; {tuned.tried} settings counted",
        words,
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = cli.parser("engine.tune", __doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="checkpoint=RUN (or RUN), data.val=PATH, other settings"
    )
    parser.add_argument("--trials", type=int, default=16, help="growths asked of the model in each search (16)")
    parser.add_argument("--folds", type=int, default=5, help="of the pages, for the cross-validation (5)")
    parser.add_argument("--no-write", action="store_true", help="show the result only; no file is written")
    args = parser.parse_intermixed_args(cli.checkpoints(argv))
    named, settings, _ = checkpoint_of(args.settings)
    opened = open_detector(named, settings)
    config, path = opened.config, opened.path
    if args.trials < 1 or args.folds < 2:
        raise UserError(f"--trials {args.trials} --folds {args.folds}: at least 1 trial and 2 folds are needed")
    if not config.data.val:
        raise UserError("data.val=PATH is missing: name the pages to tune on")
    if not args.no_write:
        with record.alone(path):  # before the work, not after it
            pass
    tuned, real, seconds = _work(opened, args.trials, args.folds)
    better, words = verdict(tuned, real)
    result = as_json(tuned, real, config, path, words) | {"seconds": seconds, "applied": False}
    try:
        if better and not args.no_write:
            record.apply(path, tuned.best, result | {"applied": True})
            result["applied"] = True
    finally:  # the result is not lost by what cannot be written
        print(json.dumps(result) if args.json else table(tuned, real, words), flush=True)
    if result["applied"]:
        _say_written(args.settings, path, quiet=args.json)
    if not args.no_write:
        _draw(tuned, path, quiet=args.json)
    return 0


def _work(opened: Opened, trials: int, folds: int) -> tuple[Tuned, tuple[float, float], dict[str, float]]:
    config, ranks = opened.config, opened.ranks
    pages = open_pages(config, config.data.val, ranks)
    refuse_unjudgeable(pages, f"data.val={','.join(config.data.val)}")
    groups = groups_of(pages, config)
    deal(groups, folds)  # too few pages are said before the work
    model = opened.load()
    seconds: dict[str, float] = {}
    with _timed(seconds, "maps"), progress("maps") as tell:
        store = store_maps(model, pages, config, ranks, tell)
    with store, _timed(seconds, "search"), progress("settings") as tell:
        tuned = tune(store, pages, groups, config, trials, folds, tell)
    with _timed(seconds, "check"), progress("check") as tell:
        real = unrounded(model, pages, config, ranks, [tuned.start, tuned.best], tell)
    return tuned, (real[0], real[1]), seconds


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begin, 2)


def _say_written(settings: list[str], path: Path, quiet: bool) -> None:
    """Where the settings are now, and what they were found with that is not written there."""
    if other := [item for item in settings if item.partition("=")[0] in OF_MAPS]:
        warn(
            f"WARNING: these settings were found with {' '.join(other)}, which is not written: give evaluation and "
            "prediction the same"
        )
    if not quiet:
        print(printable(f"written: {path if path.is_file() else path / 'config.yaml'} and {record.NAME}"))


def _draw(tuned: Tuned, path: Path, quiet: bool) -> None:
    picture = (record.run_folder(path) or record.folder_of(path)) / "tune.png"
    try:
        figure.draw(picture, tuned.curves, tuned.best, tuned.start, tuned.stored[0])
    except OSError as error:
        warn(f"WARNING: {picture} not written ({reason(error)})")
    else:
        if not quiet:
            print(printable(f"picture: {picture}"))


if __name__ == "__main__":
    cli.run(main)
