"""Everything that is to be measured on a GPU, in order of value, as one table.

    python -m bench.gpu --out bench/results [--budget-s 540]

writes DIR/DEVICE-DATE/results.json and report.md, row by row as they come: correctness of every kernel, their times
against the byte floor and their peers, convolutions, then the training step of HRNet-W44 at 1280 (bf16, 16 pages, data
from disk and kept on the device) in eager and compiled forms, the loop users come from, evaluation. What is certain and
takes a minute comes first. Each entry is a process of its own with a time of its own, so that a hang, a crash, a lack
of memory or a missing package costs that entry only: it then says "not measured: reason", and the next run on the same
DIR (copied into the tree where a machine keeps none) tries it again and goes on with what is left. Needs torch, triton
and timm, and OpenCV or DALI for pages; pyclipper and cupy add rows. Without a CUDA device it says "not measured".
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import argparse
import datetime
import importlib
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pipelines.errors import UserError

NOT_MEASURED = "not measured"
HIDDEN = ("section", "of", "what", "end", "text", "date", "commit")  # keys of a row that are no figures
# Least seconds that must be left for an entry, by its first word: W44 compiles long, torch and CUDA take 10 to start.
SECONDS = {"compiled": 150, "validation": 90}
LEAST_S = 20
# The most that an entry may take, so that it never takes what another needs; W44's compilation is some 100 to 200 s.
MOST = {"checks": 120, "times": 60, "peak": 30, "grid": 60, "eager": 90, "compiled": 240, "plain loop": 90}
MOST_S = 120
# Section and entry, by value. bench.gpu.SECTION.rows(entry, size) gives pairs of a row's name and its figures.
PLAN = (
    ("kernels", "checks"),
    ("kernels", "times, db_targets"),
    ("kernels", "times, db_loss"),
    ("kernels", "times, find_quads"),
    ("kernels", "times, norm_relu"),
    ("conv", "peak"),
    ("conv", "grid"),
    ("step", "eager"),
    ("step", "compiled"),  # with its profile
    ("step", "compiled, fused norms"),
    ("step", "compiled, fused norms, combo kernels"),
    ("step", "compiled, 2 pages, graphs"),
    ("step", "compiled, 2 pages"),
    ("step", "compiled, 48 channels"),
    ("step", "compiled, forced layout"),
    ("step", "plain loop"),
    ("step", "compiled, blocks"),
    ("step", "compiled, 64 channels"),
    ("step", "compiled, half the activations"),
    ("step", "compiled, max-autotune"),
    ("evaluation", "validation"),
)
# Images/s of the step on one H200: what must be reached, the target, the floor without fusing BN into convolutions.
GOALS = "eager 45-55 expected; 60 at least, 75-85 the target, 108 the floor without conv-BN fusion, 120 to reach for"


def rows_of(section: str, what: str, argv: list[str]) -> Iterator[tuple[str, dict]]:
    """Measures one entry of PLAN here, in this process."""
    parser = argparse.ArgumentParser()
    for name, default in (("pages", 16), ("side", 1280)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--encoder", default="hrnet_w44")
    parser.add_argument("--device", default="cuda:0")
    size = parser.parse_args(argv)
    yield from importlib.import_module(f"bench.gpu.{section}").rows(what, size)


def child(section: str, what: str, argv: list[str]) -> int:
    """Prints a line of JSON for every row, and says what is missing as a row too."""
    try:
        for name, figures in rows_of(section, what, argv):
            print("ROW " + json.dumps({"section": section, "of": what, "what": name, **figures}), flush=True)
    except ModuleNotFoundError as error:
        print("ROW " + json.dumps(missing(section, what, f"no package {error.name}")), flush=True)
    return 0


def missing(section: str, what: str, reason: str) -> dict:
    """The row of what could not be measured."""
    return {"section": section, "of": what, "what": what, NOT_MEASURED: reason}


def measure(section: str, what: str, seconds: float, argv: list[str], keep: Callable[[dict], None]) -> None:
    """Runs one entry in a process of its own for at most `seconds`, handing on its rows as they come."""
    command = [sys.executable, "-m", "bench.gpu", "--section", section, "--what", what, *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, said = process.stdout, process.stderr
    assert output and said  # pipes
    errors: list[str] = []
    whole = False
    reader = threading.Thread(target=lambda: errors.extend(said), daemon=True)
    reader.start()
    late = threading.Timer(seconds, process.kill)
    late.start()
    try:
        for line in output:
            if line.startswith("ROW "):
                row = json.loads(line[4:])
                whole = whole or bool(row.get("end"))
                keep(row)
    finally:
        code = process.wait()
        expired = not late.is_alive()
        late.cancel()
        reader.join()
    if code and not whole:  # what a process says on its way out costs no row that is there
        last = next((line.strip() for line in reversed(errors) if line.strip()), f"exit code {code}")
        keep(missing(section, what, f"over its time, {seconds:.0f} s" if expired else last[:300]))


def facts(device: torch.device) -> dict:
    """Device, versions, date, command and commit."""
    commit = "no git"
    if shutil.which("git"):
        git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or commit
    versions = {}
    for package in ("triton", "timm", "nvidia.dali", "cupy"):
        try:
            versions[package] = importlib.import_module(package).__version__
        except ImportError:
            versions[package] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "commit": commit,
        "command": "python -m bench.gpu",
    }


class Report:
    """The rows of one device and day, on disk after every change."""

    def __init__(self, folder: Path, given: dict) -> None:
        self.folder, self.facts = folder, given
        path = folder / "results.json"
        self.rows: list[dict] = json.loads(path.read_text())["rows"] if path.exists() else []

    def done(self, section: str, what: str) -> bool:
        """Whether all of an entry is there: its last row carries `end`."""
        mine = [row for row in self.rows if (row["section"], row["of"]) == (section, what)]
        return any(row.get("end") for row in mine)

    def forget(self, section: str, what: str) -> None:
        """Drops the rows that say why an entry was not measured: it is tried again."""
        self.rows = [r for r in self.rows if (r["section"], r["of"]) != (section, what) or NOT_MEASURED not in r]

    def keep(self, row: dict) -> None:
        """Adds a row, in the place of one of the same name, and writes the files. Rows say when and of which commit."""
        row = row | {key: self.facts[key] for key in ("date", "commit")}
        names = [(other["section"], other["of"], other["what"]) for other in self.rows]
        name = (row["section"], row["of"], row["what"])
        if name in names:
            self.rows[names.index(name)] = row
        else:
            self.rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)
        rates = {r["what"]: r["images_per_second"] for r in self.rows if "images_per_second" in r}
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = {"facts": self.facts, "images_per_second": rates, "rows": self.rows}
        (self.folder / "results.json").write_text(json.dumps(whole, indent=1) + "\n")
        (self.folder / "report.md").write_text(markdown(self.facts, self.rows))


def _line(row: dict) -> str:
    figures = ", ".join(f"{key} {_short(value)}" for key, value in row.items() if key not in HIDDEN)
    return f"{row['section']}: {row['what']}: {figures}"


def _short(value: object) -> str:
    if isinstance(value, list):
        return "/".join(_short(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(given: dict, rows: list[dict]) -> str:
    """The report as text: a table a section, its columns the figures that its rows have."""
    lines = [f"# {given['device']}, {given['date']}", "", ", ".join(f"{k} {v}" for k, v in given.items()), ""]
    planned = [*PLAN, *{(row["section"], row["of"]): None for row in rows}]
    for section in dict.fromkeys(name for name, _ in planned):
        mine = [row for row in rows if row["section"] == section]
        left = [what for name, what in PLAN if name == section and what not in [row["of"] for row in mine]]
        columns = list(dict.fromkeys(key for row in mine for key in row if key not in HIDDEN))
        lines += [f"## {section}", "", "| what | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
        lines += ["| " + " | ".join([row["what"], *(_short(row.get(c, "")) for c in columns)]) + " |" for row in mine]
        lines += [f"| {what} | {NOT_MEASURED}: no time was left |" for what in left]
        lines += ["", *([f"Images/s on one H200: {GOALS}.", ""] if section == "step" else [])]
        lines += [text for row in mine for text in (row.get("text", ""), "") if row.get("text")]
    return "\n".join(lines)


def run(folder: Path, device: torch.device, budget_s: float, argv: list[str], plan: tuple = PLAN) -> Report:
    """Measures what is not there yet, in the order of the plan, while there is time."""
    given = facts(device)
    name = given["device"].lower().replace(" ", "-")
    older = sorted(folder.glob(f"{name}-20*"))  # a rerun fills what is missing, also after midnight
    report = Report(older[-1] if older else folder / f"{name}-{given['date']}", given)
    end = time.monotonic() + budget_s
    for section, what in plan:
        left = end - time.monotonic()
        kind = what.split(",")[0]
        if left > SECONDS.get(kind, LEAST_S) and not report.done(section, what):
            report.forget(section, what)
            measure(section, what, min(left, MOST.get(kind, MOST_S)), argv, report.keep)
    return report


def main(argv: list[str]) -> int:
    """Entry point; 1 when a check failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the folder of results")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds in all; a rerun goes on")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # the child's
    parser.add_argument("--what", help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(argv)
    if args.section:
        return child(args.section, args.what, rest)
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: --help lists what there is")
    if not torch.cuda.is_available():
        print("\n".join(f"{section}: {what}: {NOT_MEASURED}: no CUDA device" for section, what in PLAN))
        return 0
    report = run(args.out, torch.device("cuda"), args.budget_s, rest)
    print(markdown(report.facts, report.rows))
    return 1 if any(row.get("right") is False for row in report.rows) else 0


if __name__ == "__main__":
    # engine.cli would bring omegaconf, which the machine may not have
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
