"""Numbers that arrive late: windows of steps, and copies from the device."""

import math

import torch

from engine.training.metrics import LateCopies, Scalars
from tests.conftest import DEVICE


def test_copies_come_in_order_each_once():
    copies = LateCopies()
    for number in range(3):
        copies.put(f"step {number}", torch.tensor([number, 2 * number], device=DEVICE))
    assert copies.arrived(wait=True) == [(f"step {n}", [n, 2 * n]) for n in range(3)]
    assert copies.arrived(wait=True) == []


def test_a_copy_that_is_under_way_is_waited_for_only_when_asked():
    """As on a GPU, whose events are played here."""

    class Event:
        ready = False

        def query(self):
            return self.ready

        def synchronize(self):
            self.ready = True

    copies = LateCopies()
    copies.put("late", torch.tensor([1]))
    copies.put("after it", torch.tensor([2]))
    late = Event()
    copies._pending[0] = (*copies._pending[0][:2], late)
    assert copies.arrived() == []
    assert copies.arrived(wait=True) == [("late", [1]), ("after it", [2])] and late.ready


def test_a_window_has_the_means_of_the_steps_that_count():
    scalars = Scalars(3, torch.device(DEVICE))
    for values in ([1.0, 10.0, 0.0], [3.0, 20.0, 0.0], [0.0, 0.0, 1.0]):
        scalars.add(torch.tensor(values, device=DEVICE))
    scalars.close_window({"step": 3})
    scalars.add(torch.tensor([0.0, 0.0, 1.0], device=DEVICE))
    scalars.close_window({"step": 4})
    (first, means), (second, none) = scalars.finished(wait=True)
    assert (first, means) == ({"step": 3}, [2.0, 15.0, 1.0])
    assert second == {"step": 4} and all(math.isnan(x) for x in none[:2]) and none[2] == 1
