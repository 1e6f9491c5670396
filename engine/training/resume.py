"""Going on with a run: where it stands, which checkpoint it goes on from, and what must be the same."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engine import distributed
from engine.checkpoint import store
from engine.config import Config, changed
from engine.console import warn
from engine.data import Data, global_batch_size
from engine.distributed import Ranks
from engine.run.folder import same_job
from engine.training import bad_pages
from engine.training.state import TrainState, build
from pipelines.errors import UserError

# state.json's key of a field, where it is another than the field's name.
KEYS = {"rollback_factor": "lr_scale"}


@dataclasses.dataclass
class Position:
    """Where a run stands. A checkpoint's state.json holds all of it, and a run needs no more to go on."""

    step: int = 0  # optimizer updates done
    epoch: int = 0  # epochs finished
    samples_in_epoch: int = 0  # pages consumed of the epoch that is under way
    best: float = -1.0  # highest score so far
    stale: int = 0  # evaluations since the best
    minutes: float = 0.0  # training time of all sessions of the run
    precise_step: int = -1  # step at which trainer.precise_bn was done
    unjudged: bool = False  # an evaluation is due that a stop has cut off
    rollback_factor: float = 1.0  # on the learning rate; below 1 after trainer.on_nonfinite=rollback

    def to_state(self) -> dict[str, int | float]:
        """The position as state.json has it."""
        return {KEYS.get(name, name): value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Position":
        """The position in a state.json. What an older file lacks is as at the start of a run."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: state[KEYS.get(name, name)] for name in names if KEYS.get(name, name) in state})

    @classmethod
    def kinds(cls) -> dict[str, type]:
        """The keys of `to_state` and the type of each."""
        return {key: type(value) for key, value in cls().to_state().items()}


class Start(NamedTuple):
    """What a run begins with."""

    config: Config
    train_state: TrainState
    position: Position
    source: Path | None  # the checkpoint that it goes on from
    change: str  # what in the settings had to change for that, in words; "" for nothing


def resume_or_start(config: Config, ranks: Ranks, folder: Path, data: Data, rollback_factor: float = 1.0) -> Start:
    """Builds what is trained: from the run's checkpoint where the settings ask for one and it has one, else anew.

    `rollback_factor` is below 1 for a run that goes back to its last checkpoint, with a lower learning rate.

    Raises:
        UserError: the checkpoint is another run's, or does not fit; see `restore`.
    """
    source = find_resume(config, ranks, folder, again=rollback_factor < 1)
    change, position = "", Position()
    if source is not None:
        config, change = keep_global_batch(config, ranks, source)
    train_state = build(config, ranks, resumed=source is not None)
    if source is not None:
        position = restore(train_state, source, config, ranks, data)
    position.rollback_factor = min(position.rollback_factor, rollback_factor)
    return Start(config, train_state, position, source, change)


def find_resume(config: Config, ranks: Ranks, folder: Path, again: bool = False) -> Path | None:
    """The checkpoint to go on from: `resume=auto` the run's newest undamaged one if any, `resume=PATH` that one.

    Workers that torchrun starts again, and a run that goes back to its last checkpoint (`again`), go on as with
    `resume=auto`, whatever was asked for.
    """
    again = again or config.resume == "auto" or distributed.from_main(ranks, lambda: same_job(folder))
    newest = distributed.from_main(ranks, lambda: _newest(folder / "checkpoints")) if again else None
    if newest or config.resume in ("none", "auto"):
        return newest
    source = distributed.from_main(ranks, lambda: store.locate(config.resume, prefer="last", key="resume"))
    foreign = folder.exists() and any(folder.iterdir()) and source.resolve().parent.parent != folder.resolve()
    if foreign and not again:
        raise UserError(f"resume={config.resume}: {folder} holds another run; give another name=NAME")
    return source


def _newest(checkpoints: Path) -> Path | None:
    tuned = sorted(path.parent.name for path in checkpoints.glob(f"step_*/{store.TUNED}"))
    if tuned:
        warn(
            f"note: engine.tune has written post settings into {', '.join(tuned)}; the run goes on with its own, so "
            "that its scores can be compared: tune its best again when it has ended"
        )
    return store.newest(checkpoints)


def keep_global_batch(config: Config, ranks: Ranks, source: Path) -> tuple[Config, str]:
    """With another number of ranks than at the checkpoint: `accumulate` such that an update sees as many pages.

    Unchanged where that does not divide or data.batch_size is another one, too; `restore` refuses then.

    Returns:
        the configuration, what changed in words.
    """
    saved, pages = store.load_settings(source), store.load_state(source)["global_batch"]
    batch = saved["data"]["batch_size"]
    accumulate, rest = divmod(pages, batch * ranks.world_size)
    same_ranks = pages == batch * saved["trainer"]["accumulate"] * ranks.world_size
    if same_ranks or rest or batch != config.data.batch_size:
        return config, ""
    change = (
        f"trainer.accumulate={accumulate} instead of {config.trainer.accumulate}, so that an update on "
        f"{ranks.world_size} ranks sees as many pages as before"
    )
    return changed(config, {"trainer.accumulate": accumulate}), change


def state_of(
    position: Position, config: Config, ranks: Ranks, data: Data, bad: Any, scores: dict[str, float] | None
) -> dict[str, Any]:
    """A checkpoint's state.json: what `restore` needs, and how good it is.

    Args:
        bad: pages known to be bad, of `engine.training.bad_pages.gathered`.
        scores: of the evaluation, None without one. With pages that could not be read they are no score to rank by.
    """
    return {
        **position.to_state(),
        "global_batch": global_batch_size(config, ranks),
        "stream": stream(config, data),
        "bad_pages": bad,
        "score": scores["score"] if scores and not scores["bad_images"] else None,
        "scores": scores,
    }


def stream(config: Config, data: Data) -> dict:
    """What decides which pages an epoch holds and in which order, to be equal on a resume in its middle."""
    return {"seed": config.seed, "pages": data.train.lengths, "weights": config.data.train_weights}


def restore(train_state: TrainState, source: Path, config: Config, ranks: Ranks, data: Data) -> Position:
    """Loads weights, average, optimizer, position and the pages known to be bad.

    Raises:
        UserError: another model, another global batch, or another training stream in the middle of an epoch.
    """
    state = store.load_state(source, Position.kinds())
    size = global_batch_size(config, ranks)
    if state["global_batch"] != size:
        raise UserError(
            f"resume: {source} was trained with a global batch of {state['global_batch']}, this run has {size} "
            f"({config.data.batch_size} pages x {ranks.world_size} ranks x accumulate {config.trainer.accumulate}); "
            "keep it with data.batch_size and trainer.accumulate"
        )
    if state["samples_in_epoch"] % size:
        raise UserError(f"resume: {source} is damaged: {state['samples_in_epoch']} pages are no whole number of steps")
    if state["samples_in_epoch"] and state["stream"] != stream(config, data):
        raise UserError(
            f"resume: {source} stands in the middle of an epoch of {state['stream']}, this run has "
            f"{stream(config, data)}; use the same data.train, data.train_weights and seed"
        )
    bad_pages.restore(data.train, state.get("bad_pages", []), source)  # none in checkpoints of before
    store.load_model(train_state.model, store.load_part(source, "model"), source)
    store.load_optimizer(train_state.optimizer, store.load_part(source, "optimizer"), source)
    if train_state.ema is not None:
        average = store.load_part(source, "ema") or store.load_part(source, "model")
        store.load_model(train_state.ema.model, average, source)
    return Position.from_state(state)
