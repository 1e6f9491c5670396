"""A few hundred cases of every target of `tests.faults.fuzz`, and proof that it sees what breaks its rule."""

import logging
import time
import warnings

import pytest
from hypothesis import strategies as st

from pipelines.errors import UserError

from . import fuzz
from .fuzz_targets import targets


@pytest.fixture(scope="module")
def every():
    """{name: target}."""
    return {target.name: target for target in targets()}


def test_no_reader_raises_anything_else(every):
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            results = [fuzz.run_target(target, max(4, round(8 * target.share)), 1) for target in every.values()]
    finally:
        logging.disable(logging.NOTSET)
    assert len(results) > 25 and sum(r.cases for r in results) > 400
    assert not {r.name: r.faults for r in results if r.faults}
    assert all(r.accepted + r.refused == r.cases for r in results)


def test_the_fuzzer_counts_what_breaks_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "HANG_S", 1.0)
    monkeypatch.setattr(fuzz, "SLOW_S", 0.02)

    def read(case, folder):
        if case == 0:
            raise UserError("refused")
        if case == 1:
            raise KeyError("x")
        if case == 2:
            time.sleep(5)
        if case == 3:
            end = time.process_time() + 0.04
            while time.process_time() < end:
                pass

    cases = iter([0, 1, 2, 3, 4, 0, 1, 3, 4])
    result = fuzz.run_target(
        fuzz.Target("planted", lambda: st.integers().map(lambda _: next(cases)), read), 9, 0, tmp_path
    )
    assert (result.cases, result.refused, result.accepted, result.slow) == (9, 2, 4, 2)
    kinds = sorted(where.split(" at ")[0] for where in result.faults)
    assert kinds == ["Hang", "KeyError", "Slow"] and result.faults.total() == 5
    assert len(list(tmp_path.iterdir())) == 3, "the first of each kind is kept"


def test_damage_keeps_most_of_a_file_and_changes_it():
    import random

    data = bytes(range(256)) * 4
    made = [fuzz.damage(data, random.Random(k)) for k in range(200)]
    assert sum(m != data for m in made) > 180 and len(set(made)) > 180
    assert made[:5] == [fuzz.damage(data, random.Random(k)) for k in range(5)], "a seed names its cases"
