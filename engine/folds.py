"""k-fold training: every page is judged by a model that has not seen it, and the k models are one ensemble.

    python -m engine.folds data.train=SOURCE [--folds 5] [--out FOLDER] [data.val=PATH] [section.key=value ...]

The pages are split (`pipelines.dataset split`: copies of a page on one side). Each fold is trained by `engine.train` in
a process of its own. Then every model is judged on the pages that it has not seen, and ensemble.yaml joins all models.
With data.test, or data.val, the models and their mean are judged on those pages too, which no fold trains on.

Killed at any moment, the same command goes on: finished folds stay, the one under way resumes from its checkpoint.

    FOLDER/split/fold_0/train, val   FOLDER/runs/fold_0   FOLDER/logs/fold_0.log   FOLDER/ensemble.yaml, report.json
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import contextlib
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import cli
from engine.config import Config, EvalConfig
from engine.config.load import load_config
from engine.console import text_table
from engine.evaluation.cleval import scores_of, selected
from engine.evaluation.significance import counts_of, groups_of, standard_error, without_each
from engine.files import json_object, owner_record, replace_text
from engine.jobs.executor import Attempt, train_command
from engine.jobs.fence import side_file
from engine.jobs.local import LocalExecutor, visible_gpus
from engine.jobs.tail import Tail
from engine.search.ledger import LOCK, take_lock
from pipelines.bars import progress
from pipelines.errors import UserError, printable
from pipelines.index.build import ConcatIndex, open_index
from pipelines.split import fold_folders, split

if TYPE_CHECKING:  # it imports torch
    from engine.evaluation.compare import Judged

OWN = ("data.train", "data.val", "data.test", "name", "run_root", "resume")  # settings that each fold gets from here
POLL_S = 0.2
OPTIMISTIC = (
    "each fold's best epoch was chosen on the pages it is judged on, which flatters: --checkpoint last does not"
)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(flags, settings) of a command line."""
    parser = cli.parser("engine.folds", __doc__)
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="as for engine.train")
    parser.add_argument("--folds", type=int, default=5, help="number of folds (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (default 0)")
    parser.add_argument("--out", type=Path, help="folder of everything; default: RUN_ROOT/NAME or RUN_ROOT/folds")
    parser.add_argument("--agents", type=int, default=1, help="folds trained at a time; the GPUs are shared evenly")
    parser.add_argument(
        "--checkpoint", default="best", choices=("best", "last"), help="which one of each fold (default best)"
    )
    args = parser.parse_intermixed_args(argv)
    return args, args.settings


@contextlib.contextmanager
def claimed(args: argparse.Namespace, settings: Sequence[str], config: Config) -> Iterator[Path]:
    """The folder of the folds, made on the first call, split, and held by this process inside the context.

    Raises:
        UserError: no training pages, several sources, the folder is of another command, or another process has it.
    """
    if len(config.data.train) != 1:
        raise UserError("data.train=SOURCE: engine.folds splits one source of pages")
    out = args.out or Path(config.run_root) / (config.name or "folds")
    other = ("data.val", "data.test", "run_root", "name")  # these decide neither the folds nor their trainings
    kept = [item for item in settings if item.partition("=")[0] not in other]
    told, command = out / "folds.json", {"folds": args.folds, "seed": args.seed, "settings": kept}
    _refuse_other(out, told, command)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, take_lock(out))
        _refuse_other(out, told, command)  # again under the lock: another may have been quicker
        if not told.exists() or len(fold_folders(out / "split")) != args.folds:
            with contextlib.ExitStack() as forget:
                forget.callback(told.unlink)  # a command that cannot be is not kept
                replace_text(told, json.dumps(command) + "\n")
                limits = config.data.limits
                index = open_index(
                    config.data.train[0], config.data.format, Path(config.run_root) / ".index", limits,
                    config.data.root or None,
                )  # fmt: skip
                with progress("looking for copies") as count:
                    split(index, out / "split", args.folds, args.seed, limits=limits, progress=count)
                forget.pop_all()
        yield out


def _refuse_other(out: Path, told: Path, command: dict) -> None:
    if told.exists():
        try:
            before = json_object(told)
        except UserError as error:
            raise UserError(f"{told}: {error}; name another --out") from None
        if before != command:
            was = " ".join(map(str, before.get("settings", []))) if isinstance(before.get("settings"), list) else "?"
            raise UserError(
                f"{out}: holds folds of another command (--folds {before.get('folds')} --seed {before.get('seed')} "
                f"{was}); repeat it to go on, or name another --out"
            )
    elif out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise UserError(f"{out}: exists and holds no folds; name another --out")


def fold_settings(settings: Sequence[str], out: Path, fold: int) -> list[str]:
    """`key=value` of a fold's training; absolute paths, since it may start elsewhere."""
    pages, out = (out / "split" / f"fold_{fold}").resolve(), out.resolve()
    kept = [item for item in settings if item.partition("=")[0] not in OWN]
    own = [f"data.train={pages / 'train'}", f"data.val={pages / 'val'}", "data.test=[]"]
    return [*kept, *own, f"run_root={out / 'runs'}", f"name=fold_{fold}", "resume=auto"]


def attempt_of(settings: Sequence[str], out: Path, fold: int, gpus: int) -> Attempt:
    """The training of a fold, as an executor of the search takes it."""
    command = [*train_command(gpus), *fold_settings(settings, out, fold)]
    log, folder = out.resolve() / "logs" / f"fold_{fold}.log", run_folder(out, fold).resolve()
    return Attempt(fold, 1, secrets.token_hex(8), command, {}, log, folder, gpus)


def run_folder(out: Path, fold: int) -> Path:
    """FOLDER/runs/fold_0."""
    return out / "runs" / f"fold_{fold}"


def finished(out: Path, fold: int) -> bool:
    """Whether a fold's training has ended by itself, without an error."""
    return owner_record(side_file(run_folder(out, fold), "exit")).get("code") == 0


def train_all(settings: Sequence[str], out: Path, folds: int, agents: int, config: Config) -> None:
    """Trains the folds that are not finished, `agents` at a time.

    Raises:
        UserError: a training ended with an error; what is finished stays.
    """
    waiting = [fold for fold in range(folds) if not finished(out, fold)]
    if not waiting:
        return
    executor = LocalExecutor(min(agents, len(waiting)), [] if config.trainer.device == "cpu" else visible_gpus())
    if executor.notice:
        print(executor.notice, file=sys.stderr)
    epochs = dict.fromkeys(range(folds), 0) | {k: config.trainer.max_epochs for k in range(folds) if k not in waiting}
    tails = {fold: Tail(run_folder(out, fold) / "metrics.jsonl") for fold in waiting}
    running: dict[int, Any] = {}  # fold -> the executor's handle
    with contextlib.closing(executor), progress("epochs") as bar:
        while waiting or running:
            while waiting and len(running) < executor.slots:
                attempt = attempt_of(settings, out, waiting.pop(0), executor.gpus)
                running[attempt.trial] = executor.start(attempt)
            for fold, handle in list(running.items()):
                epochs[fold] = max([epochs[fold], *(record["epoch"] for record in tails[fold].read())])
                ended = executor.poll(handle)
                if ended is not None:
                    running.pop(fold)
                    if ended.code:
                        log = out / "logs" / f"fold_{fold}.log"
                        raise UserError(
                            f"fold {fold}: {ended.reason} (log: {log}); the same command goes on from there"
                        )
            bar(sum(epochs.values()), folds * config.trainer.max_epochs)
            time.sleep(POLL_S)


def report(args: argparse.Namespace, settings: Sequence[str], out: Path, config: Config) -> dict:
    """Judges the folds' models and their mean, and writes ensemble.yaml and report.json.

    Returns:
        folds: scores of each on its own validation pages; out_of_fold: of all pages together (counts summed), `spread`
        the standard deviation over folds and `standard_error` the jackknife's over pages; test: rows of the models and
        their mean on data.test (or data.val), where given. All as eval.select says.
    """
    from engine import distributed  # here: the driver holds no device while the folds train
    from engine.checkpoint import store
    from engine.data import not_scored, open_pages
    from engine.detection import ensemble_file
    from engine.detection.ensemble import Ensemble
    from engine.detection.open import open_member
    from engine.evaluation import compare
    from engine.evaluation.workers import worker_pool

    ranks = distributed.start(config.trainer.device, config.trainer.threads)
    kept = [item for item in settings if item.partition("=")[0].startswith(("eval.", "post.", "trainer."))]
    places = [
        ensemble_file.Place(f"fold {k}", store.locate(run_folder(out, k), args.checkpoint)) for k in range(args.folds)
    ]
    ensemble = Ensemble([open_member(place, kept, ranks) for place in places])
    joint = ensemble_file.joint_config(ensemble)
    result: dict[str, Any] = {}
    with worker_pool(config.eval.workers) as pool, progress("pages") as bar:
        judge = partial(compare.judge, ranks=ranks, pool=pool, on_page=bar.advance)
        parts = [open_pages(config, [str(out / "split" / f"fold_{k}" / "val")], ranks) for k in range(args.folds)]
        judged = [
            judge(member.name, "member", member.forward, pages, member.config)
            for member, pages in zip(ensemble.members, parts, strict=True)
        ]
        result["folds"] = [
            {"pages": len(one.pages), **selected(one.scores, config.eval.select), "score": one.scores["score"]}
            for one in judged
        ]
        every = ConcatIndex([part for pages in parts for part in pages.parts])
        result["out_of_fold"] = _pooled(judged, config.eval, groups_of(every, config))
        held_out = config.data.test or config.data.val
        if held_out:
            pages = open_pages(config, held_out, ranks, "test" if config.data.test else "val")
            result["test"] = None
            if not not_scored(pages):
                rows = [judge(m.name, "member", m.forward, pages, m.config) for m in ensemble.members]
                rows.append(judge(f"mean of {args.folds} maps", "ensemble", ensemble, pages, joint))
                table = compare.rows(rows, config.eval.select, groups_of(pages, config))
                result["test"] = {"pages": len(pages), "rows": table}
    result["checkpoint"] = args.checkpoint
    result["ensemble"] = str(ensemble_file.save(out, ensemble, places, joint))
    replace_text(out / "report.json", json.dumps(result, indent=1) + "\n")
    return result


def _pooled(judged: "Sequence[Judged]", rules: EvalConfig, groups: np.ndarray) -> dict:
    """Scores of all out-of-fold pages, each judged by the model that has not seen it; groups: copies together."""
    pages = [page for item in judged for page in item.pages]
    without = without_each(counts_of(pages), rules.select, groups)
    return {
        "pages": len(pages),
        **selected(scores_of(pages, rules.protocol, rules.select), rules.select),
        "spread": statistics.stdev(item.scores["score"] for item in judged),
        "standard_error": standard_error(without),
    }


def describe(result: dict, out: Path) -> str:
    """The result for a terminal."""
    from engine.evaluation.compare import as_text

    whole = result["out_of_fold"]
    rows = [["", "pages", "H-mean", "precision", "recall"]]
    for name, row in [*((f"fold {k}", fold) for k, fold in enumerate(result["folds"])), ("out of fold", whole)]:
        rows.append([name, str(row["pages"]), *(f"{row[score]:.4f}" for score in ("hmean", "precision", "recall"))])
    error = "" if whole["standard_error"] is None else f"; standard error over pages {whole['standard_error']:.4f}"
    lines = [text_table(rows), f"standard deviation over folds {whole['spread']:.4f}{error}"]
    if result.get("test", ()) is None:
        lines += ["", "pages that no fold trains on: not scored: no labels"]
    elif "test" in result:
        lines += ["", f"{result['test']['pages']} pages that no fold trains on:", as_text(result["test"]["rows"])]
    return "\n".join([*lines, printable(f"ensemble: {result['ensemble']}")])


def main(argv: list[str]) -> int:
    args, settings = parse(argv)
    if args.folds < 2 or args.agents < 1:
        raise UserError("--folds must be at least 2 and --agents at least 1")
    config, _ = load_config(settings)
    with claimed(args, settings, config) as out:
        train_all(settings, out, args.folds, args.agents, config)
        result = report(args, settings, out, config)
    if args.checkpoint == "best":
        print(f"WARNING: {OPTIMISTIC}", file=sys.stderr)
    print(json.dumps(result) if args.json else describe(result, out), flush=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
