"""engine.console: what is said never fails, names that do not exist get their neighbour, tables are aligned."""

import errno
import io
import sys

import pytest

from engine.console import did_you_mean, nearest, one_line, optional, reason, text_table, warn
from pipelines.errors import UserError


def test_a_warning_stops_nothing(monkeypatch, capsys):
    warn("one \x1b[31mline")
    assert capsys.readouterr().err == "one \\x1b[31mline\n"
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    warn("nobody reads this")


def test_the_nearest_name_is_offered_or_none():
    assert nearest("hmaen", ["loss", "hmean"]) == "hmean" and nearest("xyz", ["loss", "hmean"]) == ""
    assert did_you_mean("--buget", ["--budget"]) == "did you mean --budget?" and did_you_mean("x", ["--budget"]) == ""


def test_reasons_are_words():
    assert reason(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert reason(RuntimeError("I/O error: (os error 28)")) == "No space left on device"  # as safetensors says it
    assert reason(ValueError()) == "ValueError"
    assert one_line(ValueError("a\n b"), 3) == "a b" and one_line(KeyError()) == "KeyError"


def test_a_table_is_aligned():
    rows = [["", "H-mean", "of"], ["fold 0", "0.9421", "a"], ["all", "1", "bb"]]
    assert text_table(rows, left=(0, 2)) == "        H-mean  of\nfold 0  0.9421  a\nall          1  bb"


def test_what_a_run_can_do_without_is_a_warning(capsys):
    with optional("curves.png"):
        raise OSError(errno.EROFS, "Read-only file system")
    with optional("curves.png"):
        raise UserError("no font")
    err = capsys.readouterr().err
    assert err.count("WARNING: curves.png not written (") == 2 and "Read-only file system" in err
    with pytest.raises(ZeroDivisionError), optional("curves.png"):
        raise ZeroDivisionError
