"""The types of a ledger's events: what a line must hold before it is believed. A study may come from somebody else."""

from typing import Any

from engine.search.study import ENDED

TEXT, WHOLE, NUMBER, TABLE, LIST = "a text", "a whole number", "a number", "an object", "a list"
MOST = 10**9  # rungs.LONGEST; a curve's model keeps numbers for the epochs it has seen only
COMMON = {"trial": WHOLE, "time": NUMBER}
NEEDED = {
    "study": {
        "name": TEXT,
        "metric": TEXT,
        "goal": TEXT,
        "method": TEXT,
        "budget": WHOLE,
        "agents": WHOLE,
        "space": LIST,
    },
    "extend": {},
    "trial": {**COMMON, "values": TABLE, "kind": TEXT, "seed": WHOLE, "folder": TEXT, "name": TEXT},
    "start": {**COMMON, "attempt": WHOLE},
    "epoch": {**COMMON, "epoch": WHOLE, "value": NUMBER},
    "cut": COMMON,
    "end": {**COMMON, "state": TEXT},
}
OPTIONAL = {
    "seed": WHOLE, "max_epochs": WHOLE, "budget": WHOLE, "agents": WHOLE, "repeats": WHOLE, "minutes": NUMBER,
    "early_stop": TABLE, "first": TABLE, "runner": TABLE, "scores": TABLE, "arguments": LIST, "estimate": LIST,
    "objective": TEXT, "reason": TEXT,
}  # fmt: skip


def _is(value: Any, kind: str) -> bool:
    if kind in (WHOLE, NUMBER):
        number = isinstance(value, int if kind == WHOLE else (int, float)) and not isinstance(value, bool)
        return number and abs(value) < (2**63 if kind == WHOLE else 1e300)  # false for NaN too
    return isinstance(value, {TEXT: str, TABLE: dict, LIST: list}[kind])


def fault(event: dict[str, Any]) -> str:
    """What is wrong with an event's fields, "" for nothing; events of other kinds are passed over by the reader."""
    kind = event["event"]
    if not isinstance(kind, str) or kind not in NEEDED:
        return ""
    for name, wanted in NEEDED[kind].items():
        if name not in event:
            return f"damaged: {kind} has no {name}"
        if not _is(event[name], wanted):
            return f"damaged: {name} of {kind} must be {wanted}"
    for name, wanted in OPTIONAL.items():
        if event.get(name) is not None and not _is(event[name], wanted):
            return f"damaged: {name} of {kind} must be {wanted}"
    return _deeper(kind, event)


def _deeper(kind: str, event: dict[str, Any]) -> str:
    """What a type alone does not say."""
    if event.get("trial", 0) < 0:
        return "damaged: a trial below 0"
    if not all(0 <= (event.get(name) or 0) <= MOST for name in ("max_epochs", "epoch", "budget", "agents")):
        return f"damaged: epochs, budget and agents must be 0 to {MOST}"
    if kind == "end" and event["state"] not in ENDED:
        return f"damaged: state {event['state']!r:.40} is none of {', '.join(ENDED)}"
    if not all(_is(value, NUMBER) for value in (event.get("scores") or {}).values()):
        return "damaged: a score is no number"
    if event.get("estimate") and not (len(event["estimate"]) == 2 and all(_is(v, NUMBER) for v in event["estimate"])):
        return "damaged: estimate must be a mean and its sd"
    if not all(isinstance(word, str) for word in event.get("arguments") or []):
        return "damaged: arguments must be texts"
    folder = event.get("folder", "") if kind == "trial" else ""
    if folder.startswith("/") or ".." in folder.split("/") or "\0" in folder:
        return f"damaged: folder {folder!r:.60} leaves the study"
    return ""
