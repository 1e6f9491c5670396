"""The thread that takes signals and watches the loop, within this process."""

import os
import signal
import threading
import time

import pytest
import torch

from engine.distributed import Agreement, Ranks
from engine.sentinel import Sentinel

ALONE = Ranks(0, 0, 1, torch.device("cpu"))


def _wait(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_while_the_loop_runs_and_handlers_come_back(number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with Sentinel(ALONE, 0) as sentinel:
        sentinel.defer(True)
        os.kill(os.getpid(), number)
        _wait(lambda: sentinel.asked)
        assert sentinel.asked == number.name
        os.kill(os.getpid(), number)  # passed on twice within a moment: no second request
        time.sleep(0.3)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == handlers
    assert not any(thread.name == "sentinel" for thread in threading.enumerate())


def test_ctrl_c_before_the_first_step_is_a_keyboard_interrupt():
    with Sentinel(ALONE, 0) as sentinel, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert not sentinel.asked


def test_a_pause_may_be_longer_than_the_limit(monkeypatch):
    ended = []
    monkeypatch.setattr(Sentinel, "_end", lambda self, reason: ended.append(reason))
    with Sentinel(ALONE, 0.5) as sentinel:
        time.sleep(2.2)  # before the first step: compilation
        sentinel.tick()
        sentinel.pause()
        time.sleep(2.2)
        assert ended == []
        sentinel.tick()
        _wait(lambda: ended)
    assert "rank 0 does not get on" in ended[0]


def test_a_lone_rank_agrees_with_itself():
    assert Agreement().maxima(1, 0, 7) == [1, 0, 7]
