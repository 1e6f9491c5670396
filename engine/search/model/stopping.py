"""Early stopping: whether a running trial is worth its remaining epochs. Pure functions of the study.

Two rules, and none:

    curve      (default) stop what has less than `chance` (10 %) to beat the incumbent by the last epoch, by the
               learning-curve model of `curves`; less than a share of `chance` when only that share of
               the epochs is left: what is left must not be dearer than a whole training with a chance of 10 %
    hyperband  W&B's: at epoch-counts min_iter, min_iter eta, ... keep the best third (1 / eta) of all that got there

A stopped trial carries the estimate (mean, sd) of the value it would have reached; the surrogate is told that. Early
stopping is an economy, not a quality gain.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from engine.config.load import load_config
from engine.search.model import curves
from engine.search.study import SCORES, Study, Trial, field_of
from pipelines.errors import UserError

CHANCE = 0.1
MIN_SHARE = 0.3  # of the epochs that no trial is stopped in: 5 of 15, 6 of 20
BANDS = 100  # as W&B has it
LONGEST = 10**9  # evaluations


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do with a running trial; `reason` is one line, "" when it goes on."""

    stop: bool
    reason: str = ""
    estimate: tuple[float, float] | None = None  # (mean, sd) of its best value by the last epoch; None when not asked


def default_rule(max_epochs: int) -> dict[str, Any]:
    """The rule of a study whose sweep file has none."""
    return {"type": "curve", "chance": CHANCE, "min_epochs": max(2, math.ceil(MIN_SHARE * max_epochs))}


def check(rule: dict[str, Any]) -> None:
    """Refuses a rule that `decide` could not follow.

    Raises:
        UserError: unknown type, a number out of range.
    """
    kind = rule.get("type")
    if kind not in ("curve", "hyperband", "none"):
        raise UserError(f"early_stop: type {kind}: expected curve, hyperband or none")
    if kind == "curve" and not 0 < rule.get("chance", CHANCE) < 1:
        raise UserError(f"early_stop: chance {rule['chance']}: expected a probability above 0 and below 1")
    if kind == "hyperband" and not bands(rule):
        raise UserError("early_stop: hyperband has no band: give min_iter, or a larger max_iter")


def decide(trial: Trial, study: Study) -> Decision:
    """Whether to stop `trial` now.

    Never: before its first value, after its last epoch, imported trials and those of --confirm. By the curve rule
    never: during warm-up (models.scheduler.warmup_epochs, and min_epochs), the study's first trial, before a trial with
    a curve has finished, of a score before any curve has left 0.

    Args:
        trial: running, its curve up to date.
        study: with all trials; an empty `early_stop` is the default rule.
    """
    rule = study.early_stop or default_rule(study.max_epochs)
    values = _finite(trial)
    if rule["type"] == "none" or not values or trial.kind in ("recommended", "confirm", "imported"):
        return Decision(False)
    if max(epoch for epoch, _ in values) >= study.max_epochs:
        return Decision(False)
    if rule["type"] == "hyperband":
        return _hyperband(trial, study, rule)
    assert rule["type"] == "curve", rule
    return _curve(trial, study, rule)


def estimate(trial: Trial, study: Study) -> tuple[float, float] | None:
    """(mean, sd) of the best value the trial would reach by the last epoch; None without a finite value."""
    return _forecast(trial, study).estimate if _finite(trial) else None


def _finite(trial: Trial) -> list[tuple[int, float]]:
    return [(epoch, value) for epoch, value in trial.curve if math.isfinite(value)]


def _forecast(trial: Trial, study: Study) -> curves.Forecast:
    others = [t for t in _comparable(study).trials if t.number != trial.number]
    ended = [t.curve for t in others if t.state in ("finished", "stopped")]
    return curves.forecast(trial.curve, [c for c in ended if c], study.max_epochs, study.sign, score=_of_score(study))


def _of_score(study: Study) -> bool:
    """Whether the metric is in 0..1 by its nature; of a function (--objective) nobody knows."""
    return not study.objective and field_of(study.metric) in SCORES


def _comparable(study: Study) -> Study:
    """Without imported trials of longer trainings: no trial here can be asked to beat a value of 15 epochs in 5."""
    known = [t for t in study.trials if t.kind != "imported" or t.epochs <= study.max_epochs]
    return dataclasses.replace(study, trials=known)


def _curve(trial: Trial, study: Study, rule: dict[str, Any]) -> Decision:
    first = min(trial.number, *(t.number for t in study.searched))
    done = max(epoch for epoch, _ in _finite(trial))
    least = rule.get("min_epochs", default_rule(study.max_epochs)["min_epochs"])
    incumbent = _comparable(study).incumbent()
    finished = any(t.state == "finished" and len(t.curve) > 1 for t in study.trials)
    if trial.number == first or done < max(least, _warmup(trial, study)) or not finished or incumbent is None:
        return Decision(False)
    begun = any(curves.left_zero(t.curve) for t in _comparable(study).trials)
    if _of_score(study) and study.sign > 0 and not begun:
        return Decision(False)
    forecast = _forecast(trial, study)
    limit = rule.get("chance", CHANCE) * (study.max_epochs - done) / study.max_epochs
    chance = forecast.chance(incumbent.result)
    mean, sd = forecast.estimate
    if chance >= limit:
        return Decision(False, "", (mean, sd))
    reason = (
        f"after epoch {done}: {100 * chance:.1f} % chance to beat trial {incumbent.number}'s {incumbent.value:.5g}, "
        f"below {100 * limit:.1f} %; it would reach {mean:.5g} +- {sd:.2g}"
    )
    return Decision(True, reason, (mean, sd))


def _warmup(trial: Trial, study: Study) -> float:
    """Epochs of linear warm-up of this trial's training."""
    if study.objective:
        return 0.0
    key = "models.scheduler.warmup_epochs"
    own = [f"{key}={trial.values[key]}"] if key in trial.values else []
    return _warmup_epochs((*study.arguments, *own))


@functools.lru_cache(maxsize=256)
def _warmup_epochs(arguments: tuple[str, ...]) -> float:
    return load_config(list(arguments))[0].models.scheduler.warmup_epochs


def bands(rule: dict[str, Any]) -> list[int]:
    """Numbers of evaluations at which W&B's hyperband compares, ascending.

    With max_iter and s: max_iter / eta, / eta^2, ... s times, down to 1; else min_iter eta^k, k = 0 to 99.
    """
    eta = rule.get("eta", 3)
    found: list[int] = []
    band, factor, count = rule.get("min_iter", 0), eta, BANDS
    if "max_iter" in rule:
        band, factor, count = rule["max_iter"] / eta, 1 / eta, int(rule["s"])
    while len(found) < count and 1 <= band < LONGEST:
        found.append(int(band))
        band *= factor
    return sorted(found)


def threshold(band: int, histories: Sequence[Sequence[float]], eta: float) -> float:
    """The value at evaluation `band` that a run must not fall below, higher is better; -inf when none got there.

    Item int(n / eta), best first, of the n runs that got there: 1 run stops none, 2 to 5 with eta 3 keep 1 or 2.
    """
    there = sorted((history[band - 1] for history in histories if len(history) >= band), reverse=True)
    return there[int(1 / eta * len(there))] if there else -math.inf


def _hyperband(trial: Trial, study: Study, rule: dict[str, Any]) -> Decision:
    """W&B's rule. An iteration is the place of a value in the list of finite logged values, not the epoch."""
    own = [study.sign * value for _, value in _finite(trial)]
    reached = [band for band in bands(rule) if band <= len(own)]
    if not reached:
        return Decision(False)
    others = [t for t in study.trials if t.number != trial.number and t.kind not in ("confirm", "imported")]
    histories = [own, *([study.sign * value for _, value in _finite(t)] for t in others)]
    least = threshold(reached[-1], histories, rule.get("eta", 3))
    value = own[reached[-1] - 1] if rule.get("strict", True) else max(own)
    if value >= least:
        return Decision(False)
    reason = (
        f"hyperband, band of {reached[-1]} evaluations: {study.sign * value:.5g} is worse than {study.sign * least:.5g}"
    )
    return Decision(True, reason, estimate(trial, study))
