"""What a user sees of a running training."""

import io
import time

from rich.console import Console

from engine.run.progress import Progress, duration, score_line, train_line

TRAIN = {
    "step": 20, "epoch": 1, "lr": 1e-4, "images_per_second": 96.24, "data_wait_share": 0.013, "loss": 2.31,
    "prob_loss": 0.2, "thresh_loss": 0.1, "binary_loss": 0.31,
}  # fmt: skip


def test_lines_leave_out_what_is_missing():
    assert train_line({"lr": 1e-3}) == "lr 1.00e-03" and score_line({}) == ""
    assert train_line({"loss": None, "lr": 1.0, "prob_loss": None}) == "lr 1.00e+00  loss nan (prob nan)"
    assert [duration(s) for s in (0, 59.6, 3723, -1)] == ["0:00", "1:00", "1:02:03", "0:00"]


def test_time_left(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr("engine.run.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    shown = Progress(100, 1, 0, Console(file=out))
    shown.train({"step": 20})
    shown.train({"step": 40})
    first, second = out.getvalue().splitlines()
    assert "left" not in first and second.endswith("left 0:30")


def test_a_bar_on_a_terminal():
    out = io.StringIO()
    shown = Progress(100, 3, 0, Console(file=out, force_terminal=True, width=160))
    shown.train(TRAIN)
    shown.say("a line [with brackets]")
    time.sleep(0.6)
    shown.close()
    text = out.getvalue()
    assert "epoch 2/3" in text and "loss 2.3100" in text and "a line [with brackets]" in text and "\x1b[" in text
