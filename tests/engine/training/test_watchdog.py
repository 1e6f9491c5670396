"""The thread that takes signals and watches the loop, within this process."""

import os
import signal
import threading
import time

import pytest
import torch

from engine.distributed import Agreement, Ranks
from engine.training.watchdog import Watchdog

ALONE = Ranks(0, 0, 1, torch.device("cpu"))


def _wait(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_while_the_loop_runs_and_handlers_come_back(number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with Watchdog(ALONE, 0) as watchdog:
        watchdog.defer(True)
        os.kill(os.getpid(), number)
        _wait(lambda: watchdog.asked)
        assert watchdog.asked == number.name
        os.kill(os.getpid(), number)  # passed on twice within a moment: no second request
        time.sleep(0.3)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == handlers
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_ctrl_c_before_the_first_step_is_a_keyboard_interrupt():
    with Watchdog(ALONE, 0) as watchdog, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert not watchdog.asked


def test_a_pause_may_be_longer_than_the_limit(monkeypatch):
    ended = []
    monkeypatch.setattr(Watchdog, "_end", lambda self, reason: ended.append(reason))
    with Watchdog(ALONE, 0.5) as watchdog:
        time.sleep(2.2)  # before the first step: compilation
        watchdog.tick()
        watchdog.pause()
        time.sleep(2.2)
        assert ended == []
        watchdog.tick()
        _wait(lambda: ended)
    assert "rank 0 does not get on" in ended[0]


def test_a_lone_rank_agrees_with_itself():
    assert Agreement().max_over_ranks(1, 0, 7) == [1, 0, 7]


@pytest.fixture
def pair(monkeypatch):
    """Watchdogs of two ranks in this process over one real store, limit 0.5 s; and what they ended with."""
    import torch.distributed as dist

    store, ended = dist.HashStore(), []
    monkeypatch.setattr(Watchdog, "_open_store", lambda self: store)
    monkeypatch.setattr(Watchdog, "_end", lambda self, reason: ended.append((self.ranks.rank, reason)))
    monkeypatch.setattr("engine.training.watchdog.BEAT_S", 0.05)
    ranks = [Ranks(rank, rank, 2, torch.device("cpu")) for rank in range(2)]
    with Watchdog(ranks[0], 0.5) as first, Watchdog(ranks[1], 0.5) as second:
        yield first, second, ended


def test_the_rank_with_fewer_steps_is_named_whatever_was_evaluated(pair):
    first, second, ended = pair
    for watchdog, pages in ((first, 4), (second, 3)):
        watchdog.tick()
        for _ in range(pages):
            watchdog.tick(step=False)
    second.tick()
    _wait(lambda: ended)
    assert "rank 0 does not get on" in ended[0][1]


def test_a_rank_that_pauses_is_waited_for(pair):
    first, second, ended = pair
    for watchdog in (first, second):
        watchdog.tick()
    first.pause()  # a slow disk holds rank 0 after its last collective, and rank 1 waits for it in the next step
    second.tick()
    time.sleep(1.5)
    assert ended == []
    first.tick()
    first.tick()
    _wait(lambda: ended)
    assert "rank 1 does not get on" in ended[0][1]


def test_where_each_rank_is_tells_which_one_is_odd(pair):
    first, second, ended = pair
    first.tick()
    second.tick()
    _wait(lambda: ended)
    assert "no rank gets on: rank 0 in training/test_watchdog.py:" in ended[0][1] and "rank 1 in" in ended[0][1]


def test_time_in_which_the_process_was_suspended_is_no_delay(monkeypatch):
    ended, clock = [], time.monotonic
    monkeypatch.setattr(Watchdog, "_end", lambda self, reason: ended.append(reason))
    with Watchdog(ALONE, 3.0) as watchdog:
        watchdog.tick()
        time.sleep(0.2)
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 60)  # as after Ctrl-Z, a minute and fg
        time.sleep(1.5)
        assert ended == []
