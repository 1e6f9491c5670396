"""The table as a picture: H-mean of every detector, with the paired error of its difference to the best member."""

from collections.abc import Sequence
from pathlib import Path

from engine.visualization.sheet import sheet

COLOURS = {"member": "tab:blue", "ensemble": "tab:orange", "soup": "tab:green"}
LONGEST = 44  # letters of a name: its end, since names are paths


def draw(path: Path, table: Sequence[dict], title: str) -> None:
    """Writes a PNG: a point a row of `engine.evaluation.compare.rows`, bars of one (thick) and two standard errors.

    Raises:
        OSError: it cannot be written.
    """
    figure = sheet(9, 1.3 + 0.42 * len(table))
    axes = figure.subplots()
    best = next(row["hmean"] for row in table if row["difference"] is None)
    axes.axvline(best, color="grey", lw=1, ls="--")
    for place, row in enumerate(table):
        colour, error = COLOURS[row["kind"]], row["standard_error"] or 0.0
        for times, width in ((1, 4), (2, 1.5)):
            axes.plot([row["hmean"] - times * error, row["hmean"] + times * error], [place] * 2, color=colour, lw=width)
        axes.plot(row["hmean"], place, "o", color=colour, ms=7)
        words = f"{row['hmean']:.4f}, {row['images_per_second']:.2g} images/s"
        words += f", {row['verdict']}" if row["verdict"] else ", the best member"
        axes.annotate(words, (row["hmean"], place), (0, 8), textcoords="offset points", ha="center", fontsize=8)
    # Its end; dollar signs as they are: matplotlib would take what is between two for mathematics.
    names = [row["name"].encode("utf-8", "replace").decode().replace("$", r"\$") for row in table]
    names = [name if len(name) <= LONGEST else "..." + name[-LONGEST:] for name in names]
    axes.set_yticks(range(len(table)), names, fontsize=8)
    axes.set_ylim(len(table) - 0.5, -0.8)
    axes.margins(x=0.15)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel("H-mean; bars: one and two standard errors of the difference to the best member")
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=100, format="png")
