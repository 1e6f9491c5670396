"""Fuzzing of everything that reads what others wrote: annotations, settings, sweeps, ledgers, checkpoints, images.

    python -m tests.faults.fuzz --cases 200000 [--seed 0] [--only NAME ...] [--keep FOLDER]

The rule: a reader returns or raises UserError, within a second, and memory stays bounded. Hypothesis draws each case;
half of the targets edit a valid document value by value, the others its bytes. A case that breaks the rule is counted
under the line it broke at, and the first of each is kept in --keep. Exit code 1 when there is any.
"""

import argparse
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pipelines.errors import UserError

SLOW_S = 1.0  # of this process's own time: the machine may be busy with others
LARGE_MIB = 256  # by which one case raises the process's highest memory
MORE_BYTES = 4 << 30
HANG_S = 20.0  # of the clock
MEMORY = Path("/dev/shm")  # files of a case: a disk takes longer to open one than a reader to refuse it
BATCH = 20  # damaged files of one draw
CHUNK = 1000  # Hypothesis remembers every example of a test


class Target(NamedTuple):
    """One reader: what it is fed with, how, and which share of the cases it gets."""

    name: str
    cases: Callable[[], st.SearchStrategy]
    read: Callable[[Any, Path], Any]
    share: float = 1.0


class Result(NamedTuple):
    """What became of a target's cases."""

    name: str
    cases: int
    accepted: int
    refused: int
    faults: Counter  # by exception and line
    slow: int
    slowest_s: float
    seconds: float
    rss_mib: int  # highest of the process so far


class Hang(BaseException):
    """A case that did not come back; no reader's `except` may swallow it."""


def _alarm(*_: object) -> None:
    raise Hang(f"no answer within {HANG_S:g} s")


def _where(error: BaseException) -> str:
    """Exception and the innermost line of ours that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{type(error).__name__} at its end:0: {error}"
    ours = [f for f in frames if "site-packages" not in f.filename and "/lib/python" not in f.filename]
    at = ours[-1] if ours else frames[-1]
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {str(error)[:80]!r}".replace("\n", " ")


def _key(where: str) -> str:
    return where.rpartition(": ")[0] or where


def run_target(target: Target, cases: int, start_seed: int, keep: Path | None = None) -> Result:
    """Feeds `cases` drawn cases to a target; nothing is raised, everything is counted."""
    counts: Counter = Counter()
    faults: Counter = Counter()
    texts: dict[str, str] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)

        def drawn(value: Any) -> None:
            for case in value if isinstance(value, Many) else [value]:
                if counts["cases"] < cases:
                    once(case)

        def once(case: Any) -> None:
            nonlocal slowest
            counts["cases"] += 1
            begin, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.setitimer(signal.ITIMER_REAL, HANG_S)
            error: BaseException | None = None
            try:
                target.read(case, folder)
                counts["accepted"] += 1
            except UserError as refusal:
                counts["refused"] += 1
                if "\n" in str(refusal).strip() and len(str(refusal)) > 2000:
                    error = AssertionError("a message that is no line")
            except (Exception, Hang) as other:
                error = other
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            spent = time.process_time() - begin
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
            if error is None and grown > LARGE_MIB * 1024:
                error = MemoryError(f"took {grown // 1024} MiB")
            slowest = max(slowest, spent)
            counts["slow"] += spent > SLOW_S
            if error is not None or spent > SLOW_S:
                where = _where(error) if error is not None else f"Slow at {target.name}:0: {spent:.1f} s"
                if _key(where) not in texts:
                    texts[_key(where)] = where
                    _keep(keep, target.name, len(texts), where, case, error)
                faults[_key(where)] += 1

        before, begin = signal.signal(signal.SIGALRM, _alarm), time.perf_counter()
        try:
            chunk = 0
            while counts["cases"] < cases:
                chunk += 1
                quiet = settings(
                    max_examples=min(CHUNK, cases - counts["cases"]),
                    database=None,
                    deadline=None,
                    derandomize=False,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                seed(start_seed * 1_000_003 + chunk)(quiet(given(target.cases())(drawn)))()
        finally:
            signal.signal(signal.SIGALRM, before)
    named = Counter({texts[key]: number for key, number in faults.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = time.perf_counter() - begin
    return Result(
        target.name,
        counts["cases"],
        counts["accepted"],
        counts["refused"],
        named,
        counts["slow"],
        slowest,
        seconds,
        peak,
    )


def _keep(keep: Path | None, name: str, number: int, where: str, case: Any, error: BaseException | None) -> None:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        text = f"{where}\n\n{case!r:.20000}\n\n{trace}"
        (keep / f"{name}.{number}.txt").write_text(text, errors="backslashreplace")


# ---- drawing cases

TOKENS = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1e308",
    b"9" * 400,
    b"9" * 5000,
    b"0x10",
    b"\\ud800",
    b"\\u0000",
    b"\x00",
    b"\xff",
    b"\xff" * 50_000 + b"\0",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"../",
    b"/etc/passwd",
    b"C:\\x",
    b"~",
    b"\n",
    b"\r",
    b"\t",
    b",",
    b" ",
    b'"',
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"[" * 2000,
    b'{"a":' * 500,
    b"-",
    b"${a}",
    b"!!python/object/apply:os.system [x]",
    b"&a",
    b"*a",
    b"<<: ",
    b"\x1b[2J",
    b"\xe2\x80\xae",
    b"\xe2\x80\xa8",
    b"1_000",
    b"\xd9\xa3",
    b"x" * 5000,
    b"1e-400",
]
TEXTS = [
    "",
    " ",
    "###",
    "*",
    "..",
    "../x",
    "/abs",
    "a\\..\\..\\b",
    "\x00",
    "\x1b[31m",
    "\ud800",
    "\u202e",
    "a" * 300,
    "a" * 5000,
    "nan",
    "inf",
    "1e999",
    "-0",
    "0x1F",
    "9" * 5000,
    "${x}",
    "null",
    "true",
    "[1,2]",
    "{a: 1}",
    "1,2",
    "a.jpg",
    "A.JPG",
    "\n",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**53, 2**63, -(2**64), 10**400, 1e308, 1e-320]),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
)
NASTY = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=5),
    st.lists(st.lists(st.one_of(st.integers(-9, 99), st.floats(), SCALARS), max_size=4), max_size=5),
    st.dictionaries(st.sampled_from([*TEXTS[:14], "points", "words", "id", "values"]), SCALARS, max_size=3),
    st.just([[[[[]]]]]),
)


def _places(node: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all values below a document, the document's own () first."""
    found = [path]
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        found += _places(value, (*path, key))
    return found


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node


@st.composite
def near(draw: st.DrawFn, documents: list, most: int = 3) -> Any:
    """A valid document with up to `most` values replaced, removed, renamed or repeated."""
    document = _copy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(0, most))):
        places = _places(document)[1:]
        if not places:
            return document
        path = places[draw(st.integers(0, len(places) - 1))]
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        edit = draw(st.integers(0, 5))
        if edit == 0:
            del holder[path[-1]]
        elif edit == 1 and isinstance(holder, dict):
            name = draw(st.one_of(st.sampled_from(TEXTS), st.text(max_size=6)))
            holder[name] = holder.pop(path[-1])
        elif edit == 1:
            holder.append(_copy(holder[path[-1]]))
        else:
            holder[path[-1]] = _copy(draw(NASTY))
    return document


def damage(data: bytes, chance: random.Random) -> bytes:
    """Bytes with 1 to 6 edits: flipped, cut, repeated, moved, or replaced by a token."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at, kind = chance.randrange(len(made) + 1), chance.randrange(8)
        end = min(len(made), at + chance.choice((1, 1, 2, 4, 16, 200)))
        if kind == 0 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(made):
            made[at] = chance.randrange(256)
        elif kind == 2:
            del made[at:end]
        elif kind == 3:
            made[at:at] = made[at:end] * chance.choice((1, 2, 50))
        elif kind == 4:
            made[at:end] = chance.choice(TOKENS)
        elif kind == 5:
            made[at:at] = chance.choice(TOKENS)
        elif kind == 6:
            del made[at:]
        else:
            made[at:end] = chance.randbytes(end - at)
    return bytes(made)


class Many(list):
    """Cases that come from one draw."""


def damaged(seeds: dict[str, bytes], shape: Callable[[tuple, random.Random], Any] = lambda pair, _: pair) -> Any:
    """Draws of BATCH cases made of (name, bytes), one of the seeds, damaged.

    Hypothesis draws the first edit's seed only: a draw takes it 2 ms, which is more than most readers take.

    Args:
        shape: (name, bytes) and a generator for what else a case has -> the case.
    """
    names = sorted(seeds)

    def cases(number: int) -> Many:
        made = Many()
        for k in range(BATCH):
            chance = random.Random(number * BATCH + k)
            name = chance.choice(names)
            made.append(shape((name, damage(seeds[name], chance)), chance))
        return made

    return st.integers(0, 2**48).map(cases)


def main(argv: list[str]) -> int:
    from tests.faults.fuzz_targets import targets

    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of targets")
    parser.add_argument("--keep", type=Path, help="folder for the first case of each kind that broke the rule")
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error", RuntimeWarning)  # numpy's would reach a user's terminal
    chosen = [target for target in targets() if not args.only or target.name in args.only]
    whole = sum(target.share for target in chosen)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_BYTES  # a case that asks for more gets a MemoryError, not the machine
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    results, begin = [], time.perf_counter()
    print(
        f"{'target':18s}{'cases':>8s}{'accepted':>10s}{'refused':>9s}{'faults':>8s}{'slowest':>9s}{'time':>8s}{'RSS':>9s}"
    )
    for target in chosen:
        r = run_target(target, round(args.cases * target.share / whole), args.seed, args.keep)
        results.append(r)
        print(
            f"{r.name:18s}{r.cases:8d}{r.accepted:10d}{r.refused:9d}{r.faults.total():8d}{r.slowest_s:7.2f} s"
            f"{r.seconds:6.0f} s{r.rss_mib:5d} MiB",
            flush=True,
        )
        for where, number in r.faults.most_common():
            print(f"    {number} x {where}", flush=True)
    cases, faults = sum(r.cases for r in results), sum(r.faults.total() for r in results)
    print(f"{cases} cases in {time.perf_counter() - begin:.0f} s, {faults} broke the rule")
    return 1 if faults else 0


if __name__ == "__main__":
    from tests.faults import fuzz  # this module by its name: fuzz_targets imports that one

    sys.exit(fuzz.main(sys.argv[1:]))
