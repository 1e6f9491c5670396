"""report.md, report.html, comparison.json and figures/ of a comparison.

plain, page = write(study)                           # the result as plain JSON, and where report.html is
"""

import json
import math
import shlex
from pathlib import Path
from typing import Any

from engine.compare import figures
from engine.compare.plan import AXES, LR, SCHEDULE, WARMUP, axes_of
from engine.compare.result import Cell, Result, as_json, cautions, find, same_by_best, sentences
from engine.compare.verdict import Family
from engine.config.load import shown
from engine.console import text_table
from engine.files import replace_text
from engine.search.report.repeats import mean_interval
from engine.search.report.words import duration, number, rough
from engine.search.study import Study
from engine.visualization.document import Block, Code, Figure, Heading, Items, Link, Table, Text, write_report

WHY_LAST = (
    "Compared is the last epoch. The best epoch's value is the largest of as many draws as there are epochs: the "
    "noisier a curve, the higher its best. It is shown beside, as it is what the checkpoint `best` scores."
)


def write(study: Study) -> tuple[dict[str, Any], Path]:
    """Writes everything into the study's folder; returns the result as plain JSON, and report.html."""
    result = find(study)
    picture = figures.draw(result, study.folder / "figures")
    blocks, title = sections(result, picture), f"Comparison {study.name}"
    plain = as_json(result)
    replace_text(study.folder / "comparison.json", json.dumps(plain, indent=1) + "\n")
    return plain, write_report(study.folder, title, blocks)


def sections(result: Result, picture: Path | None) -> list[Block]:
    """The report as blocks, in order."""
    study, seeds = result.study, ", ".join(map(str, result.seeds))
    minutes = math.fsum(trial.minutes for cell in result.cells for trial in cell.trials)
    done = sum(len(cell.trials) for cell in result.cells)
    text = (
        f"{len(result.cells)} combinations, {len(result.seeds)} seeds each ({seeds}), {result.epochs} epochs, "
        f"{done} trainings that took {duration(minutes)} together. Metric: {study.metric}."
    )
    blocks: list[Block] = [Text(text), Heading("Verdict"), Items(verdict_lines(result))]
    blocks += [Heading("Combinations"), table(result.cells, result.study.metric), Text(WHY_LAST)]
    if picture is not None:
        caption = "Left the validation curves, from the lowest to the highest seed; right what was compared."
        blocks.append(Figure(picture, caption))
    for family in result.families:
        rows = [
            [p.first, p.second, f"{p.difference:+.2g}", f"{p.low:.2g} to {p.high:.2g}", f"{p.p:.2g}", "yes" * p.shown]
            for p in family.pairs
        ]
        pairs = Table(["higher", "lower", "difference", "interval for all pairs", "p", "shown"], rows)
        blocks += [Heading(f"Pairs: {family.name}"), pairs, Text(_how(family, len(result.families)))]
    blocks += [Heading("What is fair, and what is not"), Items(fairness(result))]
    blocks += [Heading("Trainings"), _trainings(result), Heading("Again"), Code(_again(result))]
    return blocks


def verdict_lines(result: Result) -> list[str]:
    """The verdict in words, with what cannot be said."""
    lines = [" ".join(sentences(family, result.study.metric)) for family in result.families]
    if result.families and same_by_best(result):
        lines.append("The best epochs instead of the last ones show the same.")
    elif result.families:
        shown = [f"{pair.first} over {pair.second}" for family in result.by_best for pair in family.shown]
        lines.append(f"The best epochs instead of the last ones show: {'; '.join(shown) or 'no difference'}.")
    return [*lines, *cautions(result), *result.left_out]


def table(cells: list[Cell], metric: str) -> Table:
    """Mean, sd and interval of each combination, by the last and by the best epoch."""
    header = ["combination", "n", f"last {metric}", "sd", "90 % interval", "best epoch", "sd", "not measured"]
    rows = []
    for cell in cells:
        failed = str(len(cell.failed)) if cell.failed else ""
        if not cell.final:
            rows.append([cell.label, "0", "", "", "", "", "", failed])
            continue
        mean, sd, low, high = mean_interval(list(cell.final.values()))
        best, best_sd, *_ = mean_interval(list(cell.best.values()))
        span = "" if sd is None else f"{number(low)} to {number(high)}"
        row = [number(mean), rough(sd), span, number(best), rough(best_sd)]
        rows.append([cell.label, str(len(cell.final)), *row, failed])
    return Table(header, rows)


def _how(family: Family, families: int) -> str:
    shared = f" The {families} tables share the 5 % evenly." if families > 1 else ""
    return (
        "Tukey's comparison of all pairs, seeds as blocks (scipy.stats.studentized_range): with noise alone, one pair "
        f"or more is called different in 5 % of comparisons.{shared} Each mean is of {family.repeats} trainings; shown "
        f"in 4 of 5 comparisons would be {family.detectable:.2g}."
    )


def fairness(result: Result) -> list[str]:
    """What all trainings have in common, and whom it may wrong."""
    lines = [
        "All have the same data, epochs, seeds and settings, but for what is compared. A seed is the order of the "
        "pages, their augmentation and the first weights, the same for all combinations.",
        "The learning rate is the peak for every schedule, but its mean differs: constant and poly stay high longer, "
        "onecycle climbs first, and a warm-up takes its epochs from the schedule.",
    ]
    if result.study.objective:
        return ["A function in the place of trainings; it gets the same seeds for all combinations."]
    if LR in axes_of(result.study):
        lines.append(
            "Learning rates are an axis: a schedule at its best rate is found among the combinations, and the choice "
            "is covered, since all pairs are corrected together."
        )
    else:
        lines.append(
            "One learning rate for all: a schedule whose own best rate is another one is at a disadvantage here. "
            "lrs=1e-4,3e-4 makes the rate an axis."
        )
    return lines


def _trainings(result: Result) -> Table:
    rows: list[list[str | Link]] = []
    for cell in result.cells:
        for trial in cell.trials:
            final = number(cell.final.get(trial.seed))
            link = Link(str(trial.number), trial.folder)
            note = cell.failed.get(trial.seed, "")
            if trial.attempts > 1:
                note = f"{note} {trial.attempts} attempts".strip()
            rows.append([link, cell.label, str(trial.seed), final, number(trial.value), duration(trial.minutes), note])
    return Table(["training", "combination", "seed", "last", "best", "time", "note"], rows)


def _again(result: Result) -> str:
    """The command that makes the same comparison."""
    study = result.study
    names = {key: name for name, key in AXES.items()}
    axes = [f"{names[key]}={','.join(map(shown, values))}" for key, values in axes_of(study).items()]
    settings: list[str] = []
    for item in study.arguments:
        key, _, value = item.partition("=")
        alone = key in (SCHEDULE, WARMUP)  # an axis of one value
        (axes if alone else settings).append(f"{names[key]}={value}" if alone else item)
    if study.objective:
        settings = [f"--objective={study.objective}"]
    seeds = f"seeds={','.join(map(str, result.seeds))}"
    return shlex.join(["python", "-m", "engine.compare", *axes, seeds, *settings])


def text_of(result: dict[str, Any]) -> str:
    """The result for a terminal: a table and the verdict."""
    rows = [["", "last epoch", "sd", "best epoch", "trainings"]]
    for cell in result["combinations"]:
        last, best = cell["final"], cell["best"]
        count = f"{len(last['by_seed'])}" + (f", {len(cell['failed'])} failed" if cell["failed"] else "")
        rows.append([cell["label"], number(last["mean"]), rough(last["sd"]), number(best["mean"]), count])
    verdicts = [family["verdict"] for family in result["families"]]
    return "\n".join([text_table(rows, left=(0, 4)), "", *verdicts, *result["cautions"], *result["left_out"]])
