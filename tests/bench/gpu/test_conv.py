from types import SimpleNamespace

from tiny_gpu import TINY

from bench.gpu import conv


def test_convolutions_and_the_peak_are_timed():
    grid = dict(conv.rows("grid", TINY))
    assert len(grid) == 15 and all(figures["useful_tflop_s"] > 0 for figures in grid.values())
    assert [figures.get("end") for figures in grid.values()] == [None] * 14 + [True]
    ((_, peak),) = conv.rows("peak", SimpleNamespace(device="cpu"))
    assert peak["tflop_s"] > 0
