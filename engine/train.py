"""Training of a DBNet text detector: the whole loop, top to bottom.

    torchrun --nproc_per_node 8 -m engine.train [preset=NAME] [section.key=value ...]
    python -m engine.train preset=demo

Without `data.train` it trains on built-in synthetic receipts. `--help` lists every key, `--print-config` shows the
merged settings, `--dry-run` opens the data, runs two steps and a checkpoint round trip and prints the memory.

The step itself is `engine.training.step.train_step`: nothing in it waits for the device. Every place where the host
does wait is marked "sync".

Exit codes: 0 done; 2 something to mend, said in one line; 75 stopped by SIGTERM, SIGINT or SIGUSR1 with a checkpoint
written, the same command with resume=auto goes on; 71 a rank hung; 130 Ctrl-C before the first step.
"""

import contextlib
import dataclasses
import gc
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from engine import cli, distributed
from engine.checkpoint import store
from engine.checkpoint.writer import PATIENCE_S, Writer
from engine.config import Config
from engine.config.cautions import global_batch_notice, warnings
from engine.config.load import to_yaml
from engine.console import warn
from engine.data import Data, build_train_loader, canvas_at, global_batch_size, open_data
from engine.distributed import Agreement, Ranks, caution
from engine.evaluation.judge import evaluate
from engine.evaluation.workers import worker_pool
from engine.model import frozen_norms_to_eval
from engine.profiling.recorder import Recorder
from engine.run.folder import claim
from engine.run.log import RunLog, open_run
from engine.training import bad_pages, faults, precise_bn, summary
from engine.training.dry_run import dry_run
from engine.training.metrics import Scalars, Stopwatch
from engine.training.optim import set_lr
from engine.training.resume import Position, find_resume, keep_global_batch, restore, state_of
from engine.training.state import TrainState, build
from engine.training.step import METRICS, train_step
from engine.training.watchdog import EXIT_ASKED, Watchdog
from pipelines.loader import TrainLoader


@dataclasses.dataclass(frozen=True)
class Run:
    """What the functions below share; only `position` and the trained things change."""

    config: Config
    ranks: Ranks
    folder: Path
    data: Data
    train_state: TrainState
    log: RunLog  # silent on ranks above 0
    writer: Writer | None  # rank 0's
    pool: ProcessPoolExecutor | None  # scores pages
    started_at: float  # time.monotonic() at which the run's training time was 0
    recorder: Recorder  # of trainer.profile
    watchdog: Watchdog
    agreement: Agreement


def train_epoch(run: Run, loader: TrainLoader, position: Position) -> bool:
    """Trains to the end of the epoch, or to the step or minute at which the run must end; moves `position`.

    Returns:
        whether the run was asked to stop.
    """
    config, size = run.config, global_batch_size(run.config, run.ranks)
    run.train_state.model.train()
    frozen_norms_to_eval(run.train_state.model)
    watch, scalars, stop = Stopwatch(), Scalars(len(METRICS), run.ranks.device), False
    while position.samples_in_epoch < loader.steps_per_epoch * size:
        lr = set_lr(run.train_state.optimizer, config, position.step, loader.steps_per_epoch, position.rollback_factor)
        scalars.add(train_step(run.train_state, loader, config, run.ranks, watch, position.step))
        position.step += 1
        run.train_state.skipper.record((position.step, position.epoch, position.samples_in_epoch // size))
        position.samples_in_epoch += size
        watch.stepped(size)
        run.recorder.stepped()
        run.watchdog.tick()
        run.watchdog.defer(True)  # from here on there is something to save
        if position.step % config.trainer.log_every == 0:
            scalars.close_window({"step": position.step, "epoch": position.epoch, "lr": lr, **watch.read()})
            report(run, scalars.finished())
            watch.reset()
            gc.collect(1)  # by hand, at the same step on every rank: a collection inside a step stalls all ranks
        at_end = position.samples_in_epoch == loader.steps_per_epoch * size
        every = config.trainer.checkpoint_every_steps
        stop = must_stop(run, position)
        if stop or at_end or over(run, position):
            break
        if every and position.step % every == 0:
            report(run, scalars.finished(wait=True))  # sync: the records up to a checkpoint come before it
            run.watchdog.pause()
            save(run, position, None)
    run.watchdog.pause()
    if position.samples_in_epoch == loader.steps_per_epoch * size:
        position.epoch, position.samples_in_epoch = position.epoch + 1, 0
    run.recorder.finish()
    report(run, scalars.finished(wait=True))  # sync, once an epoch
    return must_stop(run, position, wait=True) or stop


def must_stop(run: Run, position: Position, wait: bool = False) -> bool:
    """Whether a signal asks the run to stop. All ranks agree: on the host, 0.1 ms a step for two ranks.

    Says which steps were skipped; with `wait` (a sync) all of them, else those that are known by now.

    Raises:
        Diverged: too many skipped in a row.
    """
    most = 0  # steps skipped in a row
    for place, in_a_row, here in run.train_state.skipper.skipped(wait):
        most = max(most, in_a_row)
        faults.skipped(run.log, run.folder, run.config, run.ranks, run.data, place, in_a_row, here)
    asked, most = run.agreement.max_over_ranks(bool(run.watchdog.asked), most)
    if most >= run.config.trainer.nonfinite_limit:
        words = f"{most} steps in a row were skipped, loss or gradient is not finite"
        raise faults.Diverged(words, position, run.config, run.folder)
    return bool(asked)


def report(run: Run, windows: list[tuple[dict, list[float]]]) -> None:
    """Logs finished windows."""
    for tag, values in windows:
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
    return (time.monotonic() - run.started_at) / 60


def validate(run: Run, position: Position) -> dict[str, float] | None:
    """Evaluates, updates the best, logs, and draws the worst pages of a new best; None when a stop cut it off.

    With pages that cannot be read the score is another one than before: it is logged, and compared with nothing.
    """
    for model in (run.train_state.model, run.train_state.averaged):
        if model is not None:
            distributed.broadcast_buffers(model)
            model.eval()
    worst, watch = run.config.trainer.overlays, run.watchdog.page_judged
    result = evaluate(run.train_state.evaluated, run.data.val, run.config, run.ranks, worst, run.pool, watch)
    if result is None:
        return None
    score, bad = result.scores["score"], round(result.scores["bad_images"])
    position.stale += not bad
    if bad:
        run.log.say(bad_pages.not_compared(bad))
    elif score > position.best:
        position.best, position.best_epoch, position.stale = score, position.epoch, 0
        summary.draw_worst(run.folder, run.data.val, result.worst, run.config, run.ranks)
    run.log.validation({"step": position.step, "epoch": position.epoch, **result.scores, "best": position.best})
    gc.collect()  # what an evaluation leaves in cycles (a DALI pipeline among it) is freed here, outside the steps
    return result.scores


def save(run: Run, position: Position, scores: dict[str, float] | None) -> None:
    """Hands a checkpoint of rank 0 to the writer thread. Copying the tensors to the host is a sync.

    Raises:
        UserError: on all ranks: too many in a row could not be written. Diverged: weights that are not finite.
    """
    distributed.from_main(run.ranks, lambda: run.writer.refuse())
    bad = bad_pages.gathered(run.data.train, epoch_over=position.samples_in_epoch == 0)
    parts, lost = {}, ""
    if run.writer is not None:
        parts = store.snapshot(run.train_state.model, run.train_state.averaged, run.train_state.optimizer)
        names = store.not_finite(parts["model"])
        lost = f"{len(names)} weights are not finite (e.g. {names[0]}) and are not saved" if names else ""
    lost = distributed.broadcast_object(lost)
    if lost:
        raise faults.Diverged(lost, position, run.config, run.folder)
    if run.writer is None:
        return
    position.minutes = minutes(run)
    state = state_of(position, run.config, run.ranks, run.data, bad, scores)
    run.writer.save(parts, state, to_yaml(run.config), best=state["score"] is not None and position.stale == 0)


def train(config: Config, ranks: Ranks, folder: Path, watchdog: Watchdog, rollback_factor: float = 1.0) -> bool:
    """Runs or resumes the training in `folder`.

    Args:
        config, ranks, folder, watchdog: as `main` makes them.
        rollback_factor: largest factor on the learning rate, below 1 after a rollback.

    Returns:
        whether it was asked to stop before its end.
    """
    distributed.seed_everything(config.seed, config.trainer.deterministic)
    data = open_data(config, ranks)
    source = find_resume(config, ranks, folder, again=rollback_factor < 1)
    config, change = keep_global_batch(config, ranks, source) if source else (config, "")
    train_state = build(config, ranks, resumed=source is not None)
    position = restore(train_state, source, config, ranks, data) if source else Position()
    position.rollback_factor = min(position.rollback_factor, rollback_factor)
    steps = position.samples_in_epoch // global_batch_size(config, ranks)
    loader = build_train_loader(config, data.train, ranks, position.epoch, steps)
    log = open_run(folder, config, ranks, position.step, loader.steps_per_epoch)
    with contextlib.closing(log), worker_pool(config.eval.workers) as pool:
        writer = None
        if ranks.main:
            keep = (config.trainer.keep_last, config.trainer.keep_top_k)
            writer = Writer(folder / "checkpoints", *keep, config.trainer.max_failed_saves)
        started_at = time.monotonic() - 60 * position.minutes
        recorder = Recorder(config, ranks, folder, log.say)
        run = Run(
            config, ranks, folder, data, train_state, log, writer, pool, started_at, recorder, watchdog, Agreement()
        )
        announce(run, source, loader.steps_per_epoch, position, change)
        if rollback_factor < 1:
            log.incident(position.step, f"rolled back to here; learning rate times {position.rollback_factor:g}")
        gc.collect()
        gc.freeze()  # models and data live to the end; collections need not walk them
        try:
            stopped = train_epochs(run, loader, position)
        finally:
            watchdog.pause()
            if writer is not None:  # asked to stop: one more try of a disk that fails, torchrun kills after 30 s
                writer.wait(0 if watchdog.asked else PATIENCE_S)
        # All ranks wait here for rank 0's last write: under torchrun the first to leave ends the others.
        distributed.from_main(ranks, lambda: writer.refuse(1))
        watchdog.written = True
        stopped = bool(run.agreement.max_over_ranks(stopped or bool(watchdog.asked))[0])  # a stop may have come since
        if stopped:
            why = next(filter(None, distributed.gather_objects(watchdog.asked)))
            log.say(f"stopped ({why}) at step {position.step}; the same command with resume=auto goes on")
        else:
            watchdog.defer(False)
            summary.finish(config, ranks, folder, data, log, pool)
    # The first rank to leave with 75 has torchrun end the others, and a rank that has left shows no sign of life.
    distributed.from_main(ranks, lambda: None)
    return stopped


def train_epochs(run: Run, loader: TrainLoader, position: Position) -> bool:
    """Trains, evaluates and saves to the end of the run; True when it was asked to stop before. Closes the loader."""
    config, stopped = run.config, False
    with contextlib.ExitStack() as last:
        last.callback(loader.close)
        while not stopped and (position.unjudged or not over(run, position)):
            if not position.unjudged:
                if canvas_at(config, position.epoch) != loader.canvas_hw:  # data.progressive: a new size begins
                    loader.close()
                    loader = build_train_loader(config, run.data.train, run.ranks, position.epoch, 0)
                    last.callback(loader.close)
                stopped = train_epoch(run, loader, position)
                due = position.samples_in_epoch == 0 and position.epoch % config.eval.every_epochs == 0
                position.unjudged = due or over(run, position)
            run.watchdog.defer(True)
            scores = validate(run, position) if position.unjudged and not stopped else None
            stopped = stopped or (position.unjudged and scores is None)
            position.unjudged = position.unjudged and scores is None
            save(run, position, scores)
            bad_pages.write_and_judge_share(run.folder, run.data.train, config, run.ranks)
            loader.pass_over(run.data.train.unread)
        if config.trainer.precise_bn and position.precise_step != position.step and not stopped:
            run.log.say(precise_bn.renew(run.train_state, run.data.train, config, run.ranks, position.epoch))
            position.precise_step = position.step
            scores = validate(run, position)
            stopped = scores is None  # the averages are estimated anew on a resume, from the same batches
            if not stopped:
                save(run, position, scores)
    return stopped


def announce(run: Run, source: Path | None, steps_per_epoch: int, position: Position, change: str) -> None:
    """Says what is about to happen, and whatever in the settings deserves a second look."""
    config, ranks, data = run.config, run.ranks, run.data
    say = run.log.say
    millions = sum(p.numel() for p in run.train_state.model.parameters()) / 1e6
    say(f"{config.models.encoder.name}, {millions:.1f} M parameters, on {ranks.world_size} x {ranks.device.type}")
    say(f"train {len(data.train)} pages, {steps_per_epoch} steps an epoch; val {len(data.val)} pages; run {run.folder}")
    cautions = warnings(config, ranks.world_size, ranks.device.type)
    for line in [change, data.notice, global_batch_notice(config, ranks.world_size), caution(), *cautions]:
        if line:
            say(line)
    if source is not None:
        say(f"resumed from {source}: epoch {position.epoch}, step {position.step}, best {position.best:.4f}")
    if position.rollback_factor != 1:
        factor = f"learning rate times {position.rollback_factor:g} since a rollback"
        say(f"{factor}; init_from={run.folder} starts without it")


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    config, _, only_try = cli.parse(argv, {}, __doc__)
    ranks = distributed.start(config.trainer.device, config.trainer.threads)
    gc.disable()  # collected by hand in train_epoch
    try:
        if only_try:
            return dry_run(config, ranks)
        with contextlib.ExitStack() as held:
            folder = distributed.from_main(ranks, lambda: held.enter_context(claim(config)))
            watchdog = held.enter_context(Watchdog(ranks, config.trainer.hang_timeout_s))
            return train_with_rollbacks(config, ranks, folder, watchdog)
    except torch.OutOfMemoryError as error:
        raise faults.out_of_memory(error, config, ranks) from None
    finally:
        gc.unfreeze()
        gc.enable()
        distributed.stop()


def train_with_rollbacks(config: Config, ranks: Ranks, folder: Path, watchdog: Watchdog) -> int:
    """`train`, and again from the last checkpoint with a lower learning rate as often as the settings allow."""
    rollback_factor, rollbacks = 1.0, 0
    while True:
        try:
            return EXIT_ASKED if train(config, ranks, folder, watchdog, rollback_factor) else 0
        except faults.Diverged as error:
            limits = config.trainer
            if limits.on_nonfinite == "stop" or rollbacks == limits.max_rollbacks:
                raise
            rollback_factor, rollbacks = error.rollback_factor * limits.rollback_lr, rollbacks + 1
            if ranks.main:
                warn(f"WARNING: {error}; rollback {rollbacks}, learning rate times {rollback_factor:g}")
        watchdog.defer(False)
        watchdog.pause()
        gc.unfreeze()
        gc.collect()  # the model and optimizer of before
        if distributed.from_main(ranks, lambda: store.newest(folder / "checkpoints")) is not None:
            config = dataclasses.replace(config, resume="auto")


if __name__ == "__main__":
    cli.run(main)
