"""Where the headline of a report comes from, in the case that it is not what the curves beside it show.

A tuning writes its settings into the checkpoint, and other pages may be given: the evaluation of the report is then
another one than the run's own, and its figure no point of the curves. Settings alone that the user gives need no word.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import store
from engine.files import json_object
from engine.report.history import Run
from pipelines.errors import UserError

if TYPE_CHECKING:
    from engine.report.judge import Judgement

OWN = "the run's own pages"


def origin(run: Run, judged: "Judgement") -> str:
    """One line with both figures and where each comes from; "" where the run was judged in the same way.

    Args:
        run: with its logged best. judged: the evaluation of the headline.
    """
    if run.config is None:
        return ""
    own, now = run.config, judged.config
    ways = _tuning(judged.checkpoint, own.data.val)
    if now.data.val == own.data.val and not ways:
        return ""
    if now.post != own.post and not ways:
        ways.append("with other settings of the postprocessing than the run's own")
    if now.eval.protocol != own.eval.protocol:
        ways.append(f"by {now.eval.protocol} CLEval (the run: {own.eval.protocol})")
    pages = OWN if now.data.val == own.data.val else f"{', '.join(now.data.val)}, not {OWN}"
    shown = f"H-mean {judged.scores['hmean']:.4f} is of {pages}{', ' if ways else ''}{', '.join(ways)}"
    best, named = run.history.best.get("hmean"), ", ".join(own.data.val) or "built-in"
    curves = "the curves are" if best is None else f"the curves' best, {best:.4f}, is"
    return f"{shown}; {curves} of {OWN} ({named}), as logged while it trained."


def _tuning(checkpoint: Path, own: list[str]) -> list[str]:
    """What engine.tune wrote into the checkpoint, if it did, and on which pages it was found."""
    path = checkpoint / store.TUNED
    if not path.exists():
        return []
    try:
        record = json_object(path)
    except UserError:
        return ["with settings of engine.tune (its record is damaged)"]
    data, hmean = record.get("data"), record.get("hmean")
    on = OWN if data == own else ", ".join(map(str, data)) if isinstance(data, list) else "unknown pages"
    there = [hmean.get(name) for name in ("start", "best")] if isinstance(hmean, dict) else []
    numbers = " -> ".join(f"{value:.4f}" for value in there if isinstance(value, float))
    return [f"with settings that engine.tune found on {on}{f' ({numbers} there)' if numbers else ''}"]
