"""Several detectors as one: the mean of their probability maps, and a soup of their weights, beside each alone.

    python -m engine.ensemble A B C data.val=PATH [--flips h] [--scales 0.8,1,1.25] [--soup] [--out FOLDER]

A, B, C are run folders, checkpoints, studies of a search (its best three finished trials) or one ensemble.yaml. Their
encoders, decoders and canvases may differ. Before the mean, maps are mirrored back and brought onto the largest canvas;
the first member's post settings find the regions in the mean. Settings (section.key=value) override every member's own.

--out writes ensemble.yaml, report.json, ensemble.png and, with --soup, a run folder `soup` with the mean weights.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import argparse
import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from engine import cli, distributed
from engine.checkpoint import store
from engine.config import Config, changed
from engine.config.load import split_extra
from engine.console import optional, warn
from engine.data import build_train_loader, open_pages, refuse_unjudgeable
from engine.detection import ensemble_file
from engine.detection.ensemble import FLIPS, Ensemble
from engine.detection.ensemble_file import Place
from engine.detection.maps import Forward
from engine.detection.open import load_detector, open_member
from engine.distributed import Ranks
from engine.ensemble import figure, soup
from engine.evaluation import compare
from engine.evaluation.compare import Judged
from engine.evaluation.significance import groups_of
from engine.evaluation.workers import worker_pool
from engine.files import replace_text
from engine.model import build_model
from engine.search import ledger
from engine.training.precise_bn import estimate, trained_norms
from pipelines.bars import Progress, progress
from pipelines.errors import UserError, printable
from pipelines.index.build import ConcatIndex

OPTIMISTIC = (
    "the soup was chosen on the pages it is reported on, which flatters it: name others to choose on with --select PATH"
)
TOP = 3  # trials of a study


@dataclasses.dataclass(frozen=True)
class Work:
    """What the steps below share."""

    ensemble: Ensemble
    config: Config  # of the mean map
    places: list[Place]
    pages: ConcatIndex
    ranks: Ranks
    pool: ProcessPoolExecutor | None  # that scores pages
    bar: Progress  # of pages

    def judge(self, name: str, kind: str, forward: Forward, pages: ConcatIndex, config: Config) -> Judged:
        """One row of the table."""
        return compare.judge(name, kind, forward, pages, config, self.ranks, self.pool, self.bar.advance)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """(flags, paths, settings) of a command line.

    Raises:
        UserError: a flag is wrong, no path, or a setting that does not exist.
    """
    parser = cli.parser("engine.ensemble", __doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="members, or settings section.key=value")
    parser.add_argument("--flips", default=None, choices=tuple(FLIPS), help="mirrored views beside the plain one")
    parser.add_argument("--scales", default=None, help="factors on each member's canvas, e.g. 0.8,1,1.25")
    parser.add_argument("--weights", default="", help="a weight for each member, e.g. 2,1,1; default: all the same")
    parser.add_argument("--soup", action="store_true", help="also average the weights of checkpoints of one network")
    parser.add_argument("--select", metavar="PATH", help="pages to choose the soup on; default: data.val, optimistic")
    parser.add_argument(
        "--bn-batches", type=int, default=0, help="training batches for the soup's BatchNorm statistics; 0 = their mean"
    )
    parser.add_argument("--out", type=Path, help="folder for ensemble.yaml, report.json and the soup")
    args = parser.parse_intermixed_args(cli.checkpoints(argv))
    settings, paths = cli.split_settings(args.paths)
    split_extra(settings, {})  # refused before a file is read
    if not paths:
        raise UserError("PATH is missing: name checkpoints, run folders or a study")
    if args.bn_batches < 0:
        raise UserError(f"--bn-batches {args.bn_batches}: must be at least 0")
    if not args.soup and (args.select or args.bn_batches):
        raise UserError("--select and --bn-batches are for --soup; a mean of maps chooses nothing")
    return args, paths, settings


def find(paths: Sequence[str], weights: Sequence[float] = ()) -> list[Place]:
    """The checkpoints that paths mean: a run folder's best, a checkpoint, the best three finished trials of a study.

    Raises:
        UserError: there is none, it is damaged, one is named twice, or weights do not fit.
    """
    places = []
    for path in paths:
        places += best_trials(Path(path)) if (Path(path) / ledger.FILE).is_file() else [_place(path)]
    seen: dict[Path, str] = {}
    for place in places:
        if twin := seen.get(place.path.resolve()):
            raise UserError(f"{place.name}: is the same checkpoint as {twin}; name each once (--weights weighs them)")
        seen[place.path.resolve()] = place.name
    if not weights:
        return places
    if len(weights) != len(places):
        raise UserError(f"--weights: {len(weights)} numbers for {len(places)} members")
    if not all(0 < weight < math.inf for weight in weights):
        raise UserError("--weights: must be above 0; leave a member out instead")
    return [dataclasses.replace(place, weight=weight) for place, weight in zip(places, weights, strict=True)]


def _place(path: str) -> Place:
    return Place(path.rstrip("/"), store.locate(path, key="member"))


def best_trials(study: Path) -> list[Place]:
    """The TOP finished trials of a study with the best values by its ledger, repeats of a configuration included.

    Raises:
        UserError: none has finished with a checkpoint of the engine's.
    """
    book = ledger.read(study)
    ended = [t for t in book.trials if t.state == "finished" and t.kind != "imported"]
    ranked = sorted(((book.sign * t.value, t) for t in ended if t.value is not None), key=lambda pair: -pair[0])
    if not ranked:
        raise UserError(f"{study}: no trial of this study has finished")
    return [_place(str(study / trial.folder)) for _, trial in ranked[:TOP]]


def numbers(flag: str, text: str) -> list[float]:
    """The numbers of a comma-separated list; UserError where one is none."""
    try:
        return [float(item) for item in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"{flag} {text}: expected numbers with commas between them, e.g. 0.8,1,1.25") from None


def open_all(
    args: argparse.Namespace, paths: list[str], settings: list[str], ranks: Ranks
) -> tuple[Ensemble, Config, list[Place]]:
    """The members, with their weights on the device, and the settings of the mean map."""
    weights = numbers("--weights", args.weights)
    flips: str = "none"
    scales: Sequence[float] = (1.0,)
    post: dict[str, Any] = {}
    if len(paths) == 1 and ensemble_file.is_ensemble(paths[0]):
        if weights:
            raise UserError(f"--weights: {paths[0]} has the weights of its members already")
        places, flips, scales, post = ensemble_file.read(paths[0])
    else:
        places = find(paths, weights)
    flips = flips if args.flips is None else args.flips
    views = ensemble_file.check_views(flips, scales if args.scales is None else numbers("--scales", args.scales))
    ensemble = Ensemble([open_member(place, settings, ranks) for place in places], *views)
    own = {item.partition("=")[0].removeprefix("post.") for item in settings if item.startswith("post.")}
    config = ensemble_file.joint_config(ensemble, {k: v for k, v in post.items() if k not in own})
    # One protocol for all, whatever they were trained with: rows of one table are comparable.
    rules = {"eval.protocol": config.eval.protocol, "eval.select": config.eval.select}
    members = [dataclasses.replace(member, config=changed(member.config, rules)) for member in ensemble.members]
    return dataclasses.replace(ensemble, members=members), config, places


def compare_all(work: Work) -> list[Judged]:
    """Every member, then their mean: plain, and with flips and scales where there are any."""
    ensemble, judged = work.ensemble, []
    for member in ensemble.members:
        judged.append(work.judge(member.name, "member", member.forward, work.pages, member.config))
    plain = dataclasses.replace(ensemble, flips="none", scales=(1.0,))
    if len(ensemble.members) > 1:
        name = f"mean of {len(ensemble.members)} maps"
        judged.append(work.judge(name, "ensemble", plain, work.pages, work.config))
    if ensemble != plain:
        name = f"mean of maps, flips {ensemble.flips}, scales {','.join(f'{scale:g}' for scale in ensemble.scales)}"
        judged.append(work.judge(name, "ensemble", ensemble, work.pages, work.config))
    return judged


def cook(
    work: Work, tensors: list[dict[str, torch.Tensor]], judged: list[Judged], select: ConcatIndex | None, batches: int
) -> tuple[soup.Soup, Judged]:
    """The soup, chosen on `select` (None: on the pages of the report), and how it does on those.

    It has the settings of its best ingredient, which are also written with it: members may be tuned differently.
    """
    every, chosen_on = work.ensemble.members, select or work.pages
    known = [item for item in judged if item.kind == "member"]
    if select is not None:
        known = [work.judge(member.name, "member", member.forward, select, member.config) for member in every]
    best = soup.ranking(known)[0]
    source, config = work.places[best].path, every[best].config

    def built(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
        model = load_detector(source, config, work.ranks)
        store.load_model(model, weights, source)
        return model

    def renewed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As they are used: with BatchNorm statistics of their own where `batches` asks for them."""
        if not batches:
            return weights
        model, pages = built(weights), open_pages(config, config.data.train, work.ranks, "train")
        trained = trained_norms(build_model(changed(config, {"models.encoder.weights": ""})))  # reads no file
        plain = changed(config, {"data.progressive": []})
        with contextlib.closing(build_train_loader(plain, pages, work.ranks, 0, 0)) as loader:
            images = (next(loader).to(work.ranks.device).image for _ in range(batches))
            estimate([model], trained, images, config)  # as at the end of a training
        return {name: value.cpu() for name, value in model.state_dict().items()}

    def judge(weights: dict[str, torch.Tensor], pages: ConcatIndex) -> Judged:
        return work.judge("soup", "soup", built(weights), pages, config)

    made = soup.greedy(tensors, known, renewed, lambda weights: judge(weights, chosen_on))
    return made, dataclasses.replace(judge(made.tensors, work.pages), name=f"soup of {len(made.ingredients)}")


def run(args: argparse.Namespace, paths: list[str], settings: list[str], ranks: Ranks) -> dict:
    """Judges everything, writes what --out asks for, and returns the result as plain values."""
    ensemble, config, places = open_all(args, paths, settings, ranks)
    distributed.limit_threads(config.trainer.threads)
    if not config.data.val:
        raise UserError("data.val=PATH is missing: name the pages to judge on")
    if args.bn_batches and not config.data.train:
        raise UserError("--bn-batches needs training pages: data.train=PATH")
    tensors = []
    if args.soup:
        every, configs = ensemble.members, [member.config for member in ensemble.members]
        tensors = [store.load_judged(place.path, one.eval.ema) for place, one in zip(places, configs, strict=True)]
        soup.check_alike([member.name for member in every], configs, tensors)
    pages = open_pages(config, config.data.val, ranks)
    refuse_unjudgeable(pages, f"data.val={','.join(config.data.val)}")
    select = open_pages(config, [args.select], ranks) if args.select else None
    if select is not None:
        refuse_unjudgeable(select, f"--select {args.select}")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    with worker_pool(config.eval.workers) as pool, progress("pages") as bar:
        work = Work(ensemble, config, places, pages, ranks, pool, bar)
        judged, made = compare_all(work), None
        if args.soup:
            made, shown = cook(work, tensors, judged, select, args.bn_batches)
            judged.append(shown)
    result = as_json(work, judged)
    if made is not None:
        names = [ensemble.members[i].name for i in made.ingredients]
        result["soup"] = {"ingredients": names, "chosen_on": args.select or config.data.val, "bn": args.bn_batches}
    if args.out is not None:
        if other := [item for item in settings if item.startswith("eval.ema=")]:
            warn(f"WARNING: the ensemble's file does not keep {other[-1]}: give it to what reads the file, too")
        _write(args.out, result, work, made)
    return result


def as_json(work: Work, judged: list[Judged]) -> dict[str, Any]:
    """The table as plain values."""
    rules = work.config.eval
    groups = groups_of(work.pages, work.config) if len(judged) > 1 else None
    return {
        "pages": len(work.pages),
        "protocol": rules.protocol,
        "select": rules.select,
        "canvas": list(work.ensemble.canvas),
        "rows": compare.rows(judged, rules.select, groups),
    }


def _write(out: Path, result: dict, work: Work, made: soup.Soup | None) -> None:
    """Writes what --out asks for, and its paths into `result`."""
    every, rules = work.ensemble.members, work.config.eval
    result["ensemble"] = str(ensemble_file.save(out, work.ensemble, work.places, work.config))
    if made is not None:
        first = every[made.ingredients[0]].config
        path = soup.write(out / "soup", made, [place.path for place in work.places], first)
        result["soup"]["checkpoint"] = str(path)
    replace_text(out / "report.json", json.dumps(result, indent=1) + "\n")
    title = f"{len(work.pages)} pages, CLEval {rules.protocol}, H-mean {rules.select}"
    with optional(out / "ensemble.png"):
        figure.draw(out / "ensemble.png", result["rows"], title)


def describe(result: dict) -> str:
    """The result for a terminal."""
    lines = [f"{result['pages']} pages, CLEval {result['protocol']}, H-mean {result['select']}"]
    lines += [compare.as_text(result["rows"])]
    lines += ["± is one standard error over pages, in pairs; noise: a difference within two of them"]
    if "soup" in result:
        lines += [printable(f"the soup's weights: {', '.join(result['soup']['ingredients'])}")]
    if "ensemble" in result:
        lines += [printable(f"ensemble: {result['ensemble']}")]
    if "checkpoint" in result.get("soup", {}):
        lines += [printable(f"soup: {result['soup']['checkpoint']}")]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    args, paths, settings = parse(argv)
    device = split_extra(settings, {"trainer.device": "auto"})[0]["trainer.device"]
    ranks = distributed.start(device)
    try:
        result = run(args, paths, settings, ranks)
    finally:
        distributed.stop()
    if args.soup and not args.select:
        print(f"WARNING: {OPTIMISTIC}", file=sys.stderr)
    print(json.dumps(result) if args.json else describe(result), flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
