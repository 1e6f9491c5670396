"""report.md, report.html and figures/ of a study, at any moment of it: what was searched, found and not found."""

import shlex
from pathlib import Path
from typing import Any

from engine.config.load import shown
from engine.search.model.surrogate import Posterior
from engine.search.report import figures, repeats
from engine.search.report.effects import Z90, digits2
from engine.search.report.findings import Findings, Gain, find
from engine.search.report.words import called, difference, duration, number, rough, short, show
from engine.search.study import Study, Trial, field_of
from engine.visualization.document import Block, Code, Figure, Heading, Items, Link, Table, Text, write_report


def write(study: Study, posterior: Posterior | None, baseline: float | None = None) -> Path:
    """Writes the report into the study's folder; returns report.html.

        write(study, surrogate.fitted(study))

    Args:
        posterior: None where the trials are too few for a model.
        baseline: value of the configuration to beat, where no trial of the study is that configuration.
    """
    found = find(study, posterior, baseline)
    pictures = figures.draw(study, found, study.folder / "figures", found.gain.baseline if found.gain else None)
    return write_report(study.folder, f"Search {study.name}", sections(study, found, pictures))


def sections(study: Study, found: Findings, pictures: dict[str, Path]) -> list[Block]:
    """The whole report as blocks, in order; a section without anything to say is left out."""

    def with_picture(section: list[Block], name: str, caption: str) -> list[Block]:
        return [*section, Figure(pictures[name], caption)] if section and name in pictures else section

    parts = (
        _overview(study, found),
        _space(study),
        with_picture(_ranks(study, found), "parallel", "Every trial as a line through its values; the best one thick."),
        _gain(found),
        with_picture(_best(study, found), "curves", "Learning curves of all trials; the best one in black."),
        _top(found),
        with_picture(
            _influence(study, found),
            "influence",
            "Expected value against each parameter: mean over the others with its 90 % band, with the others as "
            "recommended, the trials, and the safe range in green. In the title its share of the variance.",
        ),
        with_picture(_order(found), "order", "Value by order of the trials, and the best so far."),
        with_picture(_economy(study, found), "epochs", "Epochs trained by each trial, with its value."),
        _poor(found),
        _recommended(study, found),
        _confirmed(study, found),
        _reproduction(study, found),
    )
    return [block for part in parts for block in part]


def _overview(study: Study, found: Findings) -> list[Block]:
    counts = {state: sum(t.state == state for t in study.trials) for state in ("finished", "stopped", "infeasible")}
    ended = ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "none ended"
    imported = sum(t.kind == "imported" for t in study.trials)
    again = sum(t.kind == "confirm" for t in study.trials)
    size = f"{len(study.searched)} of {study.budget} trials" if study.searched or not imported else ""
    extra = [size, f"{imported} imported" if imported else "", f"{again} repeats with other seeds" if again else ""]
    rows = [
        ["metric", f"{study.metric}, {study.goal}"],
        ["trials", ", ".join(part for part in extra if part) + f"; {ended}"],
        ["time of all trials", duration(sum(t.minutes for t in study.trials)) or "not known"],
    ]
    if study.searched or not imported:  # of an imported study all this is unknown
        rows[1:1] = [["method", study.method], ["at the same time", str(study.agents)]]
        numbers = ", ".join(f"{key} {show(value)}" for key, value in study.early_stop.items() if key != "type")
        rule = study.early_stop.get("type", "none") + (f" ({numbers})" if numbers else "")
        rows += [["early stopping", rule], ["epochs of a training", str(study.max_epochs)]]
    if study.objective:
        rows.insert(0, ["objective", study.objective])
    if study.arguments:
        rows.append(["settings", shlex.join(study.arguments)])
    if found.noise.sd:
        rows.append(["noise of one training", f"sd {found.noise.sd:.2g}, {found.noise.source}"])
    lead = _lead(study, found)
    return [*([Text(lead)] if lead else []), *([Items(found.limits)] if found.limits else []), Table(["", ""], rows)]


def _lead(study: Study, found: Findings) -> str:
    """The result in three sentences."""
    if not found.ranked:
        return ""
    best = found.ranked[0]
    text = f"Best: {called(best)} with {number(best.value)}."
    text += f" {_verdict(found.gain)}" if found.gain else ""
    after = repeats.recommended(study)
    if after is not None:
        text += f" After the repeats, use trial {after}'s values:"
        text += ", ".join(f" {short(name)} {show(value)}" for name, value in study.trials[after].values.items()) + "."
    elif found.ranges:
        text += " Recommended: " + ", ".join(f"{short(r.name)} {show(r.optimum)}" for r in found.ranges) + "."
    return text


def _space(study: Study) -> list[Block]:
    rows, own = [], bool(study.searched)  # an imported study has no start of ours
    for p in study.space.parameters:
        if p.values:
            what = ", ".join(show(value) for value in p.values)
        else:
            what = f"{show(p.low)} to {show(p.high)}" + (f", multiples of {show(p.step)}" if p.step else "")
        first = [show(study.first[p.name]) if p.name in study.first else ""] if own else []
        rows.append([p.name, p.kind if p.values else f"{p.kind}, {p.scale}", what, *first])
    header = ["parameter", "kind", "values", *(["start"] if own else [])]
    return [Heading("Search space"), Table(header, rows)]


def _ranks(study: Study, found: Findings) -> list[Block]:
    measured = {t.number for t in found.ranked}
    rest = [t for t in study.trials if t.kind != "confirm" and t.number not in measured]
    trials = found.ranked + sorted(rest, key=lambda t: t.number)
    if not trials:
        return [Heading("Ranking"), Text("No trial was started yet.")]
    key = field_of(study.metric)
    scores = [name for name in ("precision", "recall") if any(name in t.scores for t in trials)]
    several = len({t.kind for t in trials}) > 1
    optional = {
        "from": lambda t: t.kind if several else "",
        "expected": lambda t: f"{t.estimate[0]:#.5g} ± {Z90 * t.estimate[1]:.1g}" if t.estimate else "",
        "time": lambda t: duration(t.minutes),
        "name": lambda t: t.name,
    }
    optional = {name: cell for name, cell in optional.items() if any(cell(t) for t in trials)}
    header = ["rank", "trial", key, *scores, *map(short, study.space.names), "epochs", "state", *optional]
    rows = []
    for rank, trial in enumerate(trials, 1):
        link = Link(str(trial.number), trial.folder) if _has_run(study, trial) else str(trial.number)
        values = [show(trial.values[name]) for name in study.space.names]
        cells = [str(rank) if rank <= len(measured) else "", link, number(trial.value)]
        cells += [number(trial.scores.get(name)) for name in scores] + values
        cells += [str(trial.epochs or ""), trial.state, *[cell(trial) for cell in optional.values()]]
        rows.append(cells)
    note = " Trial numbers lead to the run folders." if any(_has_run(study, t) for t in trials) else ""
    text = Text("By measured value, best first." + note)
    return [Heading("Ranking"), text, Table(header, rows, 0 if found.ranked else -1)]


def _has_run(study: Study, trial: Trial) -> bool:
    return bool(trial.folder) and (study.folder / trial.folder).is_dir()


def _verdict(gain: Gain) -> str:
    against = f"the baseline's {number(gain.baseline)} ({gain.source})"
    if gain.verdict == "the baseline is the best":
        return f"The baseline configuration itself ({gain.source}) is the best one measured: no gain."
    measured = f"Measured gain over {against}: {difference(gain.measured)}."
    if gain.expected is None or gain.low is None or gain.high is None:
        return measured + " The noise of a training is not known yet, so no gain is claimed."
    by = {
        "repeats": f"the paired repeats of trial {gain.trial} with other seeds",
        "model": "the model, which allows for luck",
    }[gain.by]
    spread = f"{difference(gain.expected)} ({difference(gain.low)} to {difference(gain.high)}, 90 %)"
    ending = {"shown": "the gain is shown", "a loss": "no gain, the baseline is better"}.get(gain.verdict, gain.verdict)
    return f"{measured} By {by}: {spread}: {ending}."


def _gain(found: Findings) -> list[Block]:
    if not found.ranked:
        return []
    if found.gain is None:
        return [Heading("Gain over the baseline"), Text("No value of the baseline configuration is known.")]
    relative = ""
    if found.gain.measured and found.gain.baseline:
        relative = f" As measured that is {100 * found.gain.measured / abs(found.gain.baseline):+.2f} %."
    blocks: list[Block] = [Heading("Gain over the baseline"), Text(_verdict(found.gain) + relative)]
    if found.gain.by != "repeats" and found.gain.verdict != "the baseline is the best":
        blocks.append(Text("The best of several noisy values is partly luck; --confirm 3 repeats it with other seeds."))
    return blocks


def _best(study: Study, found: Findings) -> list[Block]:
    if not found.ranked:
        return []
    best = found.ranked[0]
    rows = [[name, show(best.values[name])] for name in study.space.names]
    rows += [[name, number(value)] for name, value in best.scores.items()]
    rows += [["epochs trained", str(best.epochs or "not known")], ["state", best.state]]
    return [Heading("Best configuration"), Text(f"Measured best: {called(best)}."), Table(["", ""], rows)]


def _top(found: Findings) -> list[Block]:
    if not found.shared:
        return []
    header = ["parameter", *[f"trial {t.number}" for t in found.ranked[:3]], "centre", "as close by chance"]
    rows, close = [], []
    for item in found.shared:
        centre = "" if item.centre is None else show(item.centre)
        rows.append([item.name, *map(show, item.values), centre, f"{100 * item.chance:.0f} %"])
        if item.chance <= 0.1:
            close.append(short(item.name))
    text = (
        "Centre: mean, geometric on a log scale. By chance: how many of all sets of three trials lie as close together."
    )
    alike = (
        f"The three are unusually alike in {', '.join(close)}" if close else "In no parameter are they unusually alike"
    )
    return [Heading("What the best three share"), Text(f"{text} {alike}."), Table(header, rows)]


def _influence(study: Study, found: Findings) -> list[Block]:
    if not found.effects:
        return []
    rows = []
    for effect in sorted(found.effects, key=lambda e: -e.share[0]):
        at = int((study.sign * effect.slice).argmax())
        share = f"{100 * effect.share[0]:.0f} % ({100 * effect.share[1]:.0f} to {100 * effect.share[2]:.0f})"
        rows.append([effect.name, share, f"{effect.mean.max() - effect.mean.min():.2g}", show(effect.values[at])])
    header = ["parameter", "share of the variance, 90 %", "effect", "best, others as recommended"]
    text = (
        "By the fitted model. Share: of the variance over the whole space, by this parameter alone. Effect: highest "
        "less lowest expected value, mean over the other parameters; where trials are few it is drawn towards nothing."
    )
    blocks: list[Block] = [Heading("Influence of each parameter"), Text(text), Table(header, rows)]
    header = ["trials", "mean", "best", "expected, mean of the others", "expected, others as recommended"]
    for effect in found.effects:
        if effect.levels:
            cells = [(v.mean, v.best, v.expected, v.others_best) for v in effect.levels]
            rows = [[show(v.value), str(v.number), *map(number, c)] for v, c in zip(effect.levels, cells, strict=True)]
            blocks.append(Table([short(effect.name), *header], rows))
    return blocks


def _order(found: Findings) -> list[Block]:
    if not found.incumbents:
        return []
    last, count = found.incumbents[-1], len(found.ranked)
    order = sorted(t.number for t in found.ranked)
    text = f"The best value came with trial {last[0]}, number {order.index(last[0]) + 1} of {count} in order."
    rows = [[str(trial), number(value)] for trial, value in found.incumbents]
    return [Heading("Order and convergence"), Text(text), Table(["trial", "best so far"], rows)]


def _economy(study: Study, found: Findings) -> list[Block]:
    economy = found.economy
    if economy is None:
        return []
    if not economy.stopped:
        return [Heading("Early stopping"), Text(f"No trial was stopped early; {economy.epochs} epochs were trained.")]
    saved = economy.whole - economy.epochs
    text = (
        f"{economy.stopped} of {economy.trials} trials were stopped early: {economy.epochs} epochs trained instead of "
        f"{economy.whole}, {100 * saved / economy.whole:.0f} % saved."
    )
    best = found.ranked[0]
    stopped = [t for t in found.ranked if t.state == "stopped" and t is not best]
    hopeful = [t for t in stopped if study.sign * t.reached >= study.height(best)]
    if hopeful:
        text += f" Expected to end above the best, yet stopped: {', '.join(called(t) for t in hopeful)}."
    return [Heading("Early stopping"), Text(text)]


def _poor(found: Findings) -> list[Block]:
    failed, ended = found.infeasible
    if not found.poor:
        return []
    share = f"{failed} of {ended} ended trials are infeasible ({100 * failed / ended:.0f} %). " if ended else ""
    rows = [[called(p.trial), "" if p.gap is None else f"{p.gap:.2g}", p.trial.state, p.reason] for p in found.poor]
    text = "Poor: below the best by more than the noise of two trainings (90 %). Reasons by the model are likely ones."
    header = ["trial", "below the best", "state", "likely reason"]
    return [Heading("Failed and poor settings"), Text(share + text), Table(header, rows)]


def _recommended(study: Study, found: Findings) -> list[Block]:
    if found.optimum_value is None:
        if not found.ranked:
            return []
        text = "Too few trials for a model: the best measured configuration is all there is; no ranges can be given."
        return [Heading("Recommended values"), Text(text)]
    rows = []
    for item, parameter in zip(found.ranges, study.space.parameters, strict=True):
        spans = [
            ", ".join(map(show, found)) if parameter.values else " to ".join(map(show, found))
            for found in (item.safe, item.wider)
        ]
        rows.append([item.name, show(item.optimum), *spans, "not told apart" if item.whole else ""])
    mean, sd = found.optimum_value
    expected = f"{number(mean)} ± {Z90 * sd:.1g} (90 %)"
    text = (
        "By the model, the surest of the good configurations: the highest lower end of the model's 90 % interval, here "
        f"{expected}, rounded to 2 digits. Safe: 90 % sure to lose less than one noise sd against it, the other "
        "parameters as recommended; wider: two to one. Not told apart: the wider range is all that was searched."
    )
    blocks: list[Block] = [Heading("Recommended values"), Text(text)]
    blocks.append(Table(["parameter", "recommended", "safe range", "wider range", ""], rows))
    if found.boundaries:
        blocks += [Text("At the edge of what was searched:"), Items(found.boundaries)]
    return blocks


def _confirmed(study: Study, found: Findings) -> list[Block]:
    if not found.confirmed:
        return []
    rows, base = [], study.baseline()
    for item in found.confirmed:
        values = ", ".join(number(v) for v in item.values)
        gain = "baseline" if base and item.number == base.number else ""
        if item.gain is not None:
            gain = difference(item.gain)
            if item.low is not None and item.high is not None:
                gain += f" ({difference(item.low)} to {difference(item.high)})"
            else:
                gain += ", no interval"
        rows.append([str(item.number), values, str(item.failed or ""), number(item.mean), rough(item.sd), gain])
    header = ["trial", "values by seed", "failed", "mean", "sd", "gain over the baseline, 90 %"]
    text = f"After the repeats: trial {repeats.recommended(study)}. The first values are left out: they were chosen."
    return [Heading("Repeats with other seeds"), Text(text), Table(header, rows)]


def _reproduction(study: Study, found: Findings) -> list[Block]:
    if not found.ranked:
        return []
    blocks: list[Block] = [
        Heading("Reproduction"),
        Text("The best measured configuration:"),
        Code(command(study, found.ranked[0].values, found.ranked[0].seed)),
    ]
    after = repeats.recommended(study)
    if after is not None:
        trial = study.trials[after]
        blocks += [Text(f"After the repeats, trial {after}:"), Code(command(study, trial.values, trial.seed))]
    if found.optimum:
        values = {p.name: digits2(p, found.optimum[p.name]) for p in study.space.parameters}
        blocks += [Text("The model's recommended values:"), Code(command(study, values, study.seed))]
    if not study.objective:
        blocks.append(Text("On several GPUs: torchrun --standalone --nproc_per_node N in place of python."))
    return blocks


def command(study: Study, values: dict[str, Any], seed: int) -> str:
    """The training with these values, for a shell; of an objective, the call in Python."""
    if study.objective:
        module, _, function = study.objective.partition(":")
        values = study.runner.fixed | values
        return f"from {module} import {function}\n{function}({values!r}, lambda epoch, value: None)"
    settings = [f"{name}={shown(value)}" for name, value in values.items()]
    return shlex.join(["python", "-m", "engine.train", *study.arguments, *settings, f"seed={seed}"])
