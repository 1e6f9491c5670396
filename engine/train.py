"""Training of a DBNet text detector: the whole loop, top to bottom.

    torchrun --nproc_per_node 8 -m engine.train [preset=NAME] [section.key=value ...]
    python -m engine.train preset=demo

Without `data.train` it trains on built-in synthetic receipts. `--help` lists every key, `--print-config` shows the
merged settings, `--dry-run` opens the data, runs two steps and a checkpoint round trip and prints the memory.

The step itself is `engine.step.train_step`: nothing in it waits for the device. Every place where the host does wait is
marked "sync".
"""

import contextlib
import dataclasses
import gc
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from engine import checkpoint, cli, distributed, dryrun, finish, precise_bn, runlog
from engine.config import Config, global_batch_notice, to_yaml, warnings
from engine.data import Data, build_train_loader, canvas_at, global_batch_size, open_data
from engine.distributed import Ranks
from engine.evaluate import evaluate
from engine.model import frozen_norms_to_eval
from engine.optim import set_lr
from engine.profile import Recorder
from engine.scoring import worker_pool
from engine.step import METRICS, train_step
from engine.stopwatch import Scalars, Stopwatch
from engine.trainee import Trainee, build
from pipelines.errors import UserError
from pipelines.loader import TrainLoader


@dataclasses.dataclass
class Position:
    """Where a run stands; all of it is saved in a checkpoint's state.json, nothing else is needed to go on."""

    step: int = 0  # optimizer updates done
    epoch: int = 0  # epochs finished
    samples_in_epoch: int = 0  # pages consumed of the epoch that is under way
    best: float = -1.0  # highest score so far
    best_epoch: int = 0
    stale: int = 0  # evaluations since the best
    minutes: float = 0.0  # training time of all sessions of the run
    precise_step: int = -1  # step at which trainer.precise_bn was done


@dataclasses.dataclass(frozen=True)
class Run:
    """What the functions below share; only `position` and the trained things change."""

    config: Config
    ranks: Ranks
    folder: Path
    data: Data
    trainee: Trainee
    log: runlog.RunLog  # silent on ranks above 0
    writer: checkpoint.Writer | None  # rank 0's
    pool: ProcessPoolExecutor | None  # scores pages
    origin: float  # time.monotonic() at which the run's training time was 0
    recorder: Recorder  # of trainer.profile


def train_epoch(run: Run, loader: TrainLoader, position: Position) -> None:
    """Trains to the end of the epoch, or to the step or minute at which the run must stop; moves `position`."""
    config, size = run.config, global_batch_size(run.config, run.ranks)
    run.trainee.model.train()
    frozen_norms_to_eval(run.trainee.model)
    watch, scalars = Stopwatch(), Scalars(len(METRICS), run.ranks.device)
    while position.samples_in_epoch < loader.steps_per_epoch * size:
        lr = set_lr(run.trainee.optimizer, config, position.step, loader.steps_per_epoch)
        scalars.add(train_step(run.trainee, loader, config, run.ranks, watch, position.step))
        position.step += 1
        position.samples_in_epoch += size
        watch.stepped(size)
        run.recorder.stepped()
        if position.step % config.trainer.log_every == 0:
            scalars.close_window({"step": position.step, "epoch": position.epoch, "lr": lr, **watch.read()})
            report(run, scalars.finished())
            watch.reset()
            gc.collect(1)  # by hand, at the same step on every rank: a collection inside a step stalls all ranks
        at_end = position.samples_in_epoch == loader.steps_per_epoch * size
        every = config.trainer.checkpoint_every_steps
        if over(run, position) or at_end:
            break
        if every and position.step % every == 0:
            check(run, scalars, position)
            save(run, position, None)
    if position.samples_in_epoch == loader.steps_per_epoch * size:
        position.epoch, position.samples_in_epoch = position.epoch + 1, 0
    run.recorder.finish()
    check(run, scalars, position)


def check(run: Run, scalars: Scalars, position: Position) -> None:
    """Waits for every loss so far (sync), so that no checkpoint is written after one that is no number."""
    scalars.close_window({"step": position.step})
    report(run, scalars.finished(wait=True))


def report(run: Run, windows: list[tuple[dict, list[float]]]) -> None:
    """Logs finished windows; a loss that is no number ends the run, since every weight is lost with it."""
    for tag, values in windows:
        if not math.isfinite(values[0]):
            raise UserError(
                f"the loss is {values[0]} at step {tag['step']}: lower models.optimizer.lr or set trainer.clip_norm; "
                f"the last checkpoint is in {run.folder / 'checkpoints'}"
            )
        if "lr" in tag:  # not the rest of a window that was only checked
            run.log.train({**tag, **dict(zip(METRICS, values, strict=True))})


def over(run: Run, position: Position) -> bool:
    """Whether the run has reached its end: epochs, steps, patience or minutes. All ranks agree."""
    limits = run.config.trainer
    if position.epoch >= limits.max_epochs or (limits.max_steps and position.step >= limits.max_steps):
        return True
    if limits.patience and position.stale >= limits.patience:
        return True
    between_logs = position.samples_in_epoch and position.step % limits.log_every
    if not limits.max_minutes or position.step == 0 or between_logs:  # a run does at least one step
        return False
    # Clocks differ, so rank 0's decides. A sync, once per log_every steps and only with a time limit.
    return distributed.broadcast_object(minutes(run) >= limits.max_minutes)


def minutes(run: Run) -> float:
    """Training time of the run so far, in minutes, over all its sessions."""
    return (time.monotonic() - run.origin) / 60


def validate(run: Run, position: Position) -> dict[str, float]:
    """Evaluates, updates the best, logs, and draws the worst pages of a new best."""
    for model in (run.trainee.model, run.trainee.averaged):
        if model is not None:
            distributed.broadcast_buffers(model)
            model.eval()
    worst = run.config.trainer.overlays
    result = evaluate(run.trainee.evaluated, run.data.val, run.config, run.ranks, worst, run.pool)
    score = result.scores["score"]
    position.stale += 1
    if score > position.best:
        position.best, position.best_epoch, position.stale = score, position.epoch, 0
        finish.draw_worst(run.folder, run.data.val, result.worst, run.config, run.ranks)
    run.log.validation({"step": position.step, "epoch": position.epoch, **result.scores, "best": position.best})
    gc.collect()  # what an evaluation leaves in cycles (a DALI pipeline among it) is freed here, outside the steps
    return result.scores


def save(run: Run, position: Position, scores: dict[str, float] | None) -> None:
    """Hands a checkpoint of rank 0 to the writer thread. Copying the tensors to the host is a sync."""
    if run.writer is None:
        return
    position.minutes = minutes(run)
    state = {
        **dataclasses.asdict(position),
        "global_batch": global_batch_size(run.config, run.ranks),
        "stream": stream(run.config, run.data),
        "score": scores["score"] if scores else None,
        "scores": scores,
    }
    parts = checkpoint.snapshot(run.trainee.model, run.trainee.averaged, run.trainee.optimizer)
    lost = checkpoint.not_finite(parts["model"])
    if lost:  # the last loss was a number, the update after it was not
        raise UserError(
            f"{len(lost)} weights are not finite after step {position.step} (e.g. {lost[0]}) and are not saved: lower "
            f"models.optimizer.lr or set trainer.clip_norm; earlier checkpoints are in {run.folder / 'checkpoints'}"
        )
    run.writer.save(parts, state, to_yaml(run.config), best=scores is not None and position.stale == 0)


def find_resume(config: Config, ranks: Ranks, folder: Path) -> Path | None:
    """The checkpoint to go on from: `resume=auto` the run's newest undamaged one if any, `resume=PATH` that one."""
    if config.resume == "none":
        return None
    if config.resume == "auto":
        return distributed.from_main(ranks, lambda: checkpoint.newest(folder / "checkpoints"))
    source = distributed.from_main(ranks, lambda: checkpoint.locate(config.resume, prefer="last", key="resume"))
    if folder.exists() and any(folder.iterdir()) and source.resolve().parent.parent != folder.resolve():
        raise UserError(f"resume={config.resume}: {folder} holds another run; give another name=NAME")
    return source


def stream(config: Config, data: Data) -> dict:
    """What decides which pages an epoch holds and in which order, to be equal on a resume in its middle."""
    return {"seed": config.seed, "pages": data.train.lengths, "weights": config.data.train_weights}


def restore(trainee: Trainee, source: Path, config: Config, ranks: Ranks, data: Data) -> Position:
    """Loads weights, average, optimizer and position.

    Raises:
        UserError: another model, another global batch, or another training stream in the middle of an epoch.
    """
    state = checkpoint.load_state(source, Position)
    size = global_batch_size(config, ranks)
    if state["global_batch"] != size:
        raise UserError(
            f"resume: {source} was trained with a global batch of {state['global_batch']}, this run has {size} "
            f"({config.data.batch_size} pages x {ranks.world_size} ranks x accumulate {config.trainer.accumulate}); "
            "keep it with data.batch_size and trainer.accumulate"
        )
    if state["samples_in_epoch"] and state["stream"] != stream(config, data):
        raise UserError(
            f"resume: {source} stands in the middle of an epoch of {state['stream']}, this run has "
            f"{stream(config, data)}; use the same data.train, data.train_weights and seed"
        )
    checkpoint.load_model(trainee.model, checkpoint.load_part(source, "model"), source)
    checkpoint.load_optimizer(trainee.optimizer, checkpoint.load_part(source, "optimizer"), source)
    if trainee.ema is not None:
        average = checkpoint.load_part(source, "ema") or checkpoint.load_part(source, "model")
        checkpoint.load_model(trainee.ema.model, average, source)
    return Position(**{field.name: state[field.name] for field in dataclasses.fields(Position) if field.name in state})


def train(config: Config, ranks: Ranks, folder: Path) -> Position:
    """Runs or resumes the training in `folder` and returns where it ended."""
    distributed.seed_everything(config.seed, config.trainer.deterministic)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    data = open_data(config, ranks)
    source = find_resume(config, ranks, folder)
    trainee = build(config, ranks, resumed=source is not None)
    position = restore(trainee, source, config, ranks, data) if source else Position()
    steps = position.samples_in_epoch // global_batch_size(config, ranks)
    loader = build_train_loader(config, data.train, ranks, position.epoch, steps)
    log = runlog.open_run(folder, config, ranks, position.step, loader.steps_per_epoch)
    with contextlib.closing(log), worker_pool(config.eval.workers) as pool:
        writer = None
        if ranks.main:
            keep = (config.trainer.keep_last, config.trainer.keep_top_k)
            writer = checkpoint.Writer(folder / "checkpoints", *keep)
        origin = time.monotonic() - 60 * position.minutes
        recorder = Recorder(config, ranks, folder, log.say)
        run = Run(config, ranks, folder, data, trainee, log, writer, pool, origin, recorder)
        announce(run, source, loader.steps_per_epoch, position)
        gc.collect()
        gc.freeze()  # models and data live to the end; collections need not walk them
        try:
            while not over(run, position):
                if canvas_at(config, position.epoch) != loader.canvas_hw:  # data.progressive: a new size begins
                    loader.close()
                    loader = build_train_loader(config, data.train, ranks, position.epoch, 0)
                train_epoch(run, loader, position)
                due = position.samples_in_epoch == 0 and position.epoch % config.eval.every_epochs == 0
                save(run, position, validate(run, position) if due or over(run, position) else None)
            if config.trainer.precise_bn and position.precise_step != position.step:
                log.say(precise_bn.renew(trainee, data.train, config, ranks, position.epoch))
                position.precise_step = position.step
                save(run, position, validate(run, position))
        finally:
            loader.close()
            if writer is not None:
                writer.wait()
        if writer is not None and writer.failures:
            say = f"the last {writer.failures} checkpoints could not be written to {folder / 'checkpoints'}"
            raise UserError(f"{say}: free the disk and start again with resume=auto")
        finish.finish(config, ranks, folder, data, log, pool)
    return position


def announce(run: Run, source: Path | None, steps_per_epoch: int, position: Position) -> None:
    """Says what is about to happen, and whatever in the settings deserves a second look."""
    config, ranks, data = run.config, run.ranks, run.data
    say = run.log.say
    millions = sum(p.numel() for p in run.trainee.model.parameters()) / 1e6
    say(f"{config.models.encoder.name}, {millions:.1f} M parameters, on {ranks.world_size} x {ranks.device.type}")
    say(f"train {len(data.train)} pages, {steps_per_epoch} steps an epoch; val {len(data.val)} pages; run {run.folder}")
    cautions = warnings(config, ranks.world_size, ranks.device.type)
    for line in [data.notice, global_batch_notice(config, ranks.world_size), *cautions]:
        if line:
            say(line)
    if source is not None:
        say(f"resumed from {source}: epoch {position.epoch}, step {position.step}, best {position.best:.4f}")


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    config, _, dry_run = cli.parse(argv, {}, __doc__)
    ranks = distributed.start(config.trainer.device)
    gc.disable()  # collected by hand in train_epoch
    try:
        if dry_run:
            return dryrun.dry_run(config, ranks)
        folder = Path(distributed.broadcast_object(str(runlog.run_folder(config))))
        train(config, ranks, folder)
    finally:
        gc.unfreeze()
        gc.enable()
        distributed.stop()
    return 0


if __name__ == "__main__":
    cli.run(main)
