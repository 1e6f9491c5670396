"""pipelines.bars: a bar on a terminal, nothing in a log."""

import io
import sys

from pipelines.bars import Progress, progress


def test_a_log_gets_no_bar(capsys):
    with progress("pages") as bar:
        bar.advance()
        bar(2, 3)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("pages") as bar:
        bar(2, 3)
    assert "pages" in terminal.getvalue()


def test_one_more_is_counted_from_what_was_said():
    seen = []
    bar = Progress(lambda done, total: seen.append((done, total)))
    bar(4, 9)
    bar.advance()
    assert seen == [(4, 9), (5, None)]
