"""Verdicts of `pytest bench/`: a row against its baseline. Pure functions and the baseline's files; no torch here.

A figure is better when smaller. With the percentiles p20, p50, p80 of the run and of the baseline, a row has

    regressed   p50 > (1 + tolerance) baseline p50   and   p20 > baseline p80
    improved    p50 < baseline p50 / (1 + tolerance) and   p80 < baseline p20

and is ok otherwise. The second condition keeps a noisy row from failing by noise, the first a steady one by a trifle.
Example: baseline 0.90 1.00 1.10; a run of 1.05 1.50 1.80 is ok (its best fifth reaches the baseline's), 1.15 1.50 1.80
has regressed, and 1.11 1.15 1.20 is ok (within the tolerance of a ratio).

`bench/baselines/DEVICE.jsonl` holds one row a line, sorted, so that a change of it can be read as a diff. A device that
has no file there is its own baseline: its first run's rows are kept in `own_folder()`, outside the repository.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from engine.console import text_table
from engine.files import replace_text
from pipelines.errors import UserError

OK, IMPROVED, REGRESSED, NO_BASELINE = "ok", "improved", "regressed", "no baseline"
# Of a ratio: as far from 1 as from a planted slowdown of 2. On 2 cores shared with four other processes the medians of
# an unchanged tree differed by up to 25 % from run to run. Microseconds on a GPU of one's own are far steadier.
TOLERANCES = {"cpu_ratio": 0.4, "wall_ratio": 0.4, "cuda_us": 0.1}
FOLDER = Path(__file__).parent / "baselines"


def own_folder() -> Path:
    """Where machines without a baseline in the repository keep their own: in the user's cache, by XDG's rule."""
    given = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "dbnet-engine" / "bench"


def folder_for(folder: Path, device: str) -> Path:
    """The folder of a device's baseline: the given one where it has the device's file, else the machine's own."""
    return folder if (folder / f"{device}.jsonl").exists() else own_folder()


@dataclass(frozen=True)
class Row:
    """One measured case. p20, p50, p80 are the compared figure's, smaller is better; everything else explains it."""

    bench: str  # the benched function
    case: str  # its input
    impl: str  # "reference" (PyTorch), "kernels" (Triton), "python", ...
    dtype: str
    metric: str  # "cpu_ratio", "wall_ratio": time over the peer's in the same round; "cuda_us": microseconds
    unit: str  # "of PEER" or "us"
    p20: float
    p50: float
    p80: float
    n: int  # rounds
    ms: tuple[float, float, float]  # 20, 50, 80 % of one call of ours, on the metric's clock
    peer_ms: float | None  # median of one call of the peer
    peak_mib: float | None  # memory one call needs beyond what was there; None: not measured
    rate: float | None  # at the median
    rate_unit: str  # "images/s" or "GB/s"
    device: str  # names the baseline's file
    versions: dict[str, str]  # shown where they differ from the baseline's, never compared
    commit: str
    dirty: bool
    date: str

    @property
    def name(self) -> str:
        """How people call the row: "find_quads: 4 pages of 118 boxes, slow"."""
        return f"{self.bench}: {self.case}"

    @property
    def times_faster(self) -> float:
        """The peer's time over ours in the best fifth of the rounds, for goals: noise alone misses none."""
        return 1 / self.p20

    @property
    def key(self) -> tuple[str, ...]:
        """What a row and its baseline share. Another peer is another figure, so the unit, which names it, is in it."""
        return self.bench, self.case, self.impl, self.dtype, self.metric, self.unit, self.device


def judge(row: Row, baseline: Row | None) -> str:
    """OK, IMPROVED, REGRESSED or NO_BASELINE, by the rule above."""
    if baseline is None:
        return NO_BASELINE
    assert row.key == baseline.key, (row.key, baseline.key)
    tolerance = TOLERANCES[row.metric]
    if row.p50 > (1 + tolerance) * baseline.p50 and row.p20 > baseline.p80:
        return REGRESSED
    if row.p50 < baseline.p50 / (1 + tolerance) and row.p80 < baseline.p20:
        return IMPROVED
    return OK


def explain(row: Row, baseline: Row) -> str:
    """One line for a row that has regressed."""
    return (
        f"{row.name} ({row.impl}, {row.dtype}) has regressed: {row.p50:.3g} {row.unit} (p20 {row.p20:.3g}, "
        f"p80 {row.p80:.3g}), the baseline is {baseline.p50:.3g} (p20 {baseline.p20:.3g}, p80 {baseline.p80:.3g}, "
        f"{baseline.date}); mend it, or accept it with --bench-update"
    )


def differing_versions(row: Row, baseline: Row) -> dict[str, str]:
    """{"torch": "2.14.1 -> 2.15.0"} where the two differ."""
    names = sorted({*row.versions, *baseline.versions})
    pairs = {name: (baseline.versions.get(name, "none"), row.versions.get(name, "none")) for name in names}
    return {name: f"{before} -> {now}" for name, (before, now) in pairs.items() if before != now}


def load(folder: Path, device: str) -> dict[tuple, Row]:
    """The baseline of a device by key, empty if it has none; raises UserError for a line that is no row."""
    path = folder / f"{device}.jsonl"
    if not path.exists():
        return {}
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            rows.append(Row(**{**fields, "ms": tuple(fields["ms"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number} is no row of bench ({error}): mend it or delete the file") from error
    return {row.key: row for row in rows}


def update(folder: Path, rows: list[Row]) -> list[Path]:
    """Writes rows into their devices' files; rows of a file that are not among them stay. Returns the files."""
    paths = []
    for device in sorted({row.device for row in rows}):
        merged = load(folder, device) | {row.key: row for row in rows if row.device == device}
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{device}.jsonl")
        replace_text(paths[-1], "".join(line(merged[key]) + "\n" for key in sorted(merged)))
    return paths


def line(row: Row, **more) -> str:
    """A row as one line of JSON, floats to four digits."""
    return json.dumps({key: _short(value) for key, value in (dataclasses.asdict(row) | more).items()})


def _short(value):
    if isinstance(value, (tuple, list)):
        return [_short(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(judged: list[tuple[Row, Row | None, str]]) -> list[str]:
    """Lines of text: every row with its verdict, then what differs in versions."""
    head = ("verdict", "row", "impl", "dtype", "p20 / p50 / p80", "baseline", "unit", "ms", "MiB", "rate")
    cells = [head, *(_cells(row, baseline, verdict) for row, baseline, verdict in judged)]
    lines = text_table(cells, left=range(len(head))).splitlines()
    differing: dict[str, str] = {}
    for row, baseline, _ in judged:
        if baseline is not None:
            differing |= differing_versions(row, baseline)
    lines += [f"versions differ from the baseline's: {name} {change}" for name, change in sorted(differing.items())]
    return lines


def _cells(row: Row, baseline: Row | None, verdict: str) -> tuple[str, ...]:
    return (
        verdict,
        row.name,
        row.impl,
        row.dtype,
        f"{row.p20:.3g} / {row.p50:.3g} / {row.p80:.3g}",
        f"{baseline.p50:.3g}" if baseline else "-",
        row.unit,
        f"{row.ms[1]:.3g}",
        "-" if row.peak_mib is None else f"{row.peak_mib:.1f}",
        "-" if row.rate is None else f"{row.rate:.3g} {row.rate_unit}",
    )
