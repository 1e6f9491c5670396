"""Training of a DBNet text detector: the whole loop, top to bottom.

    torchrun --nproc_per_node 8 -m engine.train [preset=NAME] [section.key=value ...]
    python -m engine.train preset=demo

Without `data.train` it trains on built-in synthetic receipts. `--help` lists every key, `--print-config` shows the
merged settings, `--dry-run` opens the data, runs two steps and a checkpoint round trip and prints the memory.

`main` takes the run's folder, `train` builds what is trained, `train_epochs` trains, judges and saves until the end.
The step itself is `engine.training.step.train_step`: nothing in it waits for the device. Every place where the host
does wait is marked "sync".

Exit codes: 0 done; 2 something to mend, said in one line; 75 stopped by SIGTERM, SIGINT or SIGUSR1 with a checkpoint
written, the same command with resume=auto goes on; 71 a rank hung; 130 Ctrl-C before the first step.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import contextlib
import gc
import time
from pathlib import Path

import torch

from engine import cli, distributed
from engine.checkpoint import store
from engine.checkpoint.writer import PATIENCE_S
from engine.config import Config, changed
from engine.config.load import to_yaml
from engine.console import warn
from engine.data import build_train_loader, canvas_at, global_batch_size, open_data
from engine.distributed import Agreement, Ranks
from engine.evaluation.judge import evaluate
from engine.evaluation.workers import worker_pool
from engine.model import frozen_norms_to_eval
from engine.profiling.recorder import Recorder
from engine.run.folder import claim
from engine.run.log import open_run
from engine.training import bad_pages, faults, precise_bn, summary
from engine.training.dry_run import dry_run
from engine.training.metrics import Scalars, Stopwatch
from engine.training.optim import set_lr
from engine.training.resume import Position, resume_or_start, state_of
from engine.training.run import Run, open_writer
from engine.training.skip import Place
from engine.training.step import METRICS, train_step
from engine.training.watchdog import EXIT_ASKED, Watchdog
from pipelines.loader import TrainLoader


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
    factor, rollbacks = 1.0, 0
    while True:
        try:
            return 0 if train(config, ranks, folder, watchdog, factor) else EXIT_ASKED
        except faults.Diverged as error:
            limits = config.trainer
            if limits.on_nonfinite == "stop" or rollbacks == limits.max_rollbacks:
                raise
            factor, rollbacks = error.rollback_factor * limits.rollback_lr, rollbacks + 1
            if ranks.main:
                warn(f"WARNING: {error}; rollback {rollbacks}, learning rate times {factor:g}")
        watchdog.defer(False)
        watchdog.pause()
        gc.unfreeze()
        gc.collect()  # the model and optimizer of before
        if distributed.from_main(ranks, lambda: store.newest(folder / "checkpoints")) is not None:
            config = changed(config, {"resume": "auto"})


def train(config: Config, ranks: Ranks, folder: Path, watchdog: Watchdog, rollback_factor: float = 1.0) -> bool:
    """Runs or resumes the training in `folder`; False when it was asked to stop before its end.

    `rollback_factor` is the largest factor on the learning rate, below 1 after a rollback.
    """
    distributed.seed_everything(config.seed, config.trainer.deterministic)
    data = open_data(config, ranks)
    start = resume_or_start(config, ranks, folder, data, rollback_factor)
    config, position = start.config, start.position
    steps = position.samples_in_epoch // global_batch_size(config, ranks)
    loader = build_train_loader(config, data.train, ranks, position.epoch, steps)
    log = open_run(folder, config, ranks, position.step, loader.steps_per_epoch)
    with contextlib.closing(log), worker_pool(config.eval.workers) as pool:
        run = Run(
            config=config,
            ranks=ranks,
            folder=folder,
            data=data,
            train_state=start.train_state,
            log=log,
            writer=open_writer(config, ranks, folder),
            pool=pool,
            started_at=time.monotonic() - 60 * position.minutes,
            recorder=Recorder(config, ranks, folder, log.say),
            watchdog=watchdog,
            agreement=Agreement(),
        )
        summary.announce(run, start, loader.steps_per_epoch)
        if rollback_factor < 1:
            log.incident(position.step, f"rolled back to here; learning rate times {position.rollback_factor:g}")
        gc.collect()
        gc.freeze()  # models and data live to the end; collections need not walk them
        try:
            at_end = train_epochs(run, loader, position)
        finally:
            watchdog.pause()
            if run.writer is not None:  # asked to stop: one more try of a disk that fails, torchrun kills after 30 s
                run.writer.wait(0 if watchdog.asked else PATIENCE_S)
        at_end = end(run, position, at_end)
    # The first rank to leave with 75 has torchrun end the others, and a rank that has left shows no sign of life.
    distributed.from_main(ranks, lambda: None)
    return at_end


def train_epochs(run: Run, loader: TrainLoader, position: Position) -> bool:
    """Trains, judges and saves to the end of the run; False when it was asked to stop before. Closes the loader."""
    config = run.config
    with contextlib.ExitStack() as loaders:
        loaders.callback(loader.close)
        goes_on = judge_and_save(run, loader, position) if position.unjudged else True
        while goes_on and not over(run, position):
            if canvas_at(config, position.epoch) != loader.canvas_hw:  # data.progressive: a new size begins
                loader.close()
                loader = build_train_loader(config, run.data.train, run.ranks, position.epoch, 0)
                loaders.callback(loader.close)
            goes_on = train_epoch(run, loader, position)
            due = position.samples_in_epoch == 0 and position.epoch % config.eval.every_epochs == 0
            position.unjudged = due or over(run, position)
            if goes_on and position.unjudged:
                goes_on = judge_and_save(run, loader, position)
            else:
                save_and_pass_over(run, loader, position, None)
        if goes_on and config.trainer.precise_bn and position.precise_step != position.step:
            goes_on = renew_norms(run, position)
    return goes_on


def train_epoch(run: Run, loader: TrainLoader, position: Position) -> bool:
    """Trains to the end of the epoch, or to the step or minute at which the run must end; moves `position`.

    False when the run was asked to stop.
    """
    config, state = run.config, run.train_state
    size = global_batch_size(config, run.ranks)
    epoch_samples = loader.steps_per_epoch * size
    state.model.train()
    frozen_norms_to_eval(state.model)
    watch = Stopwatch()
    scalars = Scalars(len(METRICS), run.ranks.device)
    asked, first = False, position.step - position.samples_in_epoch // size
    while position.samples_in_epoch < epoch_samples:
        lr = set_lr(state.optimizer, config, position.step, loader.steps_per_epoch, position.rollback_factor)
        scalars.add(train_step(state, loader, config, run.ranks, watch, position.step))
        position.step += 1
        state.skipper.record(Place(position.step, position.epoch, position.samples_in_epoch // size))
        position.samples_in_epoch += size
        watch.stepped(size)
        run.recorder.stepped()
        run.watchdog.tick()
        run.watchdog.defer(True)  # from here on there is something to save
        if position.step % config.trainer.log_every == 0:
            close_window(scalars, watch, position, lr)
            report(run, scalars.finished())
            watch.reset()
            gc.collect(1)  # by hand, at the same step on every rank: a collection inside a step stalls all ranks
        asked = must_stop(run, position)
        if asked or position.samples_in_epoch == epoch_samples or over(run, position):
            break
        if config.trainer.checkpoint_every_steps and position.step % config.trainer.checkpoint_every_steps == 0:
            report(run, scalars.finished(wait=True))  # sync: the records up to a checkpoint come before it
            run.watchdog.pause()
            save(run, position, None)
    run.watchdog.pause()
    every = config.trainer.log_every
    if watch.steps and not asked and position.step // every == first // every:  # too short for a window
        close_window(scalars, watch, position, lr)
    if position.samples_in_epoch == epoch_samples:
        position.epoch, position.samples_in_epoch = position.epoch + 1, 0
    run.recorder.finish()
    report(run, scalars.finished(wait=True))  # sync, once an epoch
    return not (must_stop(run, position, wait=True) or asked)  # sync, once an epoch


def close_window(scalars: Scalars, watch: Stopwatch, position: Position, lr: float) -> None:
    """Ends a window of steps: its record comes with `scalars.finished`."""
    scalars.close_window({"step": position.step, "epoch": position.epoch, "lr": lr, **watch.read()})


def report(run: Run, windows: list[tuple[dict, list[float]]]) -> None:
    """Logs finished windows."""
    for tag, values in windows:
        run.log.train({**tag, **dict(zip(METRICS, values, strict=True))})


def must_stop(run: Run, position: Position, wait: bool = False) -> bool:
    """Whether the run was asked to stop. All ranks agree: on the host, 0.1 ms a step for two ranks.

    Raises:
        Diverged: too many steps in a row were skipped. With `wait` (a sync) all steps so far count, else those of
            which it is known by now.
    """
    in_a_row = faults.report_skipped_steps(run, wait)
    asked, in_a_row = run.agreement.max_over_ranks(bool(run.watchdog.asked), in_a_row)
    if in_a_row >= run.config.trainer.nonfinite_limit:
        words = f"{in_a_row} steps in a row were skipped, loss or gradient is not finite"
        raise faults.Diverged(words, position, run)
    return bool(asked)


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
    return distributed.broadcast_object(run.minutes() >= limits.max_minutes)


def judge_and_save(run: Run, loader: TrainLoader, position: Position) -> bool:
    """Evaluates and saves; False when a stop has cut the evaluation off: then a resumed run begins with it."""
    run.watchdog.defer(True)
    scores = validate(run, position)
    position.unjudged = scores is None
    save_and_pass_over(run, loader, position, scores)
    return scores is not None


def validate(run: Run, position: Position) -> dict[str, float] | None:
    """Evaluates, updates the best, logs, and draws the worst pages of a new best; None when a stop cut it off.

    With pages that cannot be read the score is another one than before: it is logged, and compared with nothing.
    """
    for model in (run.train_state.model, run.train_state.averaged):
        if model is not None:
            distributed.broadcast_buffers(model)
            model.eval()
    evaluated, worst = run.train_state.evaluated, run.config.trainer.overlays
    result = evaluate(evaluated, run.data.val, run.config, run.ranks, worst, run.pool, on_page=run.watchdog.page_judged)
    if result is None:
        return None
    score, bad = result.scores["score"], round(result.scores["bad_images"])
    position.stale += not bad
    if bad:
        run.log.say(bad_pages.not_compared(bad))
    elif score > position.best:
        position.best, position.stale = score, 0
        summary.draw_worst(run, result.worst)
    run.log.validation({"step": position.step, "epoch": position.epoch, **result.scores, "best": position.best})
    gc.collect()  # what an evaluation leaves in cycles (a DALI pipeline among it) is freed here, outside the steps
    return result.scores


def save_and_pass_over(run: Run, loader: TrainLoader, position: Position, scores: dict[str, float] | None) -> None:
    """Saves. Then the loader passes over pages that cannot be read; too many of them end the run (UserError)."""
    save(run, position, scores)
    bad_pages.write_and_judge_share(run.folder, run.data.train, run.config, run.ranks)
    loader.pass_over(run.data.train.unread)


def save(run: Run, position: Position, scores: dict[str, float] | None) -> None:
    """Hands a checkpoint of rank 0 to the writer thread. Copying the tensors to the host is a sync.

    Raises:
        UserError: on all ranks: too many in a row could not be written. Diverged: weights that are not finite.
    """
    run.refuse_unwritten()
    bad = bad_pages.gathered(run.data.train, epoch_over=position.samples_in_epoch == 0)
    parts, lost = {}, ""
    if run.writer is not None:
        parts = store.snapshot(run.train_state.model, run.train_state.averaged, run.train_state.optimizer)
        names = store.not_finite(parts["model"])
        lost = f"{len(names)} weights are not finite (e.g. {names[0]}) and are not saved" if names else ""
    lost = distributed.broadcast_object(lost)
    if lost:
        raise faults.Diverged(lost, position, run)
    if run.writer is None:
        return
    position.minutes = run.minutes()
    state = state_of(position, run.config, run.ranks, run.data, bad, scores)
    run.writer.save(parts, state, to_yaml(run.config), best=state["score"] is not None and position.stale == 0)


def renew_norms(run: Run, position: Position) -> bool:
    """`trainer.precise_bn`, one more evaluation and checkpoint; False when a stop has cut the evaluation off.

    Nothing is saved then: a resumed run estimates the statistics anew, from the same batches.
    """
    run.log.say(precise_bn.renew(run.train_state, run.data.train, run.config, run.ranks, position.epoch))
    position.precise_step = position.step
    scores = validate(run, position)
    if scores is not None:
        save(run, position, scores)
    return scores is not None


def end(run: Run, position: Position, at_end: bool) -> bool:
    """Leaves the run: with a summary, or with a line when it was asked to stop, also since its last step (False)."""
    # All ranks wait here for rank 0's last write: under torchrun the first to leave ends the others.
    run.refuse_unwritten(limit=1)
    run.watchdog.written = True
    (asked,) = run.agreement.max_over_ranks(not at_end or bool(run.watchdog.asked))
    if asked:
        why = next(filter(None, distributed.gather_objects(run.watchdog.asked)))
        run.log.say(f"stopped ({why}) at step {position.step}; the same command with resume=auto goes on")
        return False
    run.watchdog.defer(False)
    summary.finish(run)
    return True


if __name__ == "__main__":
    cli.run(main)
