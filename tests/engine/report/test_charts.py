"""report.charts: axes and bars."""

import pytest

from engine.report import charts


def test_axes_have_round_ends():
    assert charts.axis([0.0, 0.97], zero=True).ticks == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.axis([3.0]).low < 3 < charts.axis([3.0]).high
    assert charts.axis([0.0], zero=True).high > 0
    log = charts.axis([0.02, 900.0], log=True)
    assert log.log and log.low <= 0.02 and log.high >= 900 and len(log.ticks) <= 7
    assert not charts.axis([-1.0, 900.0], log=True).log
    assert charts.page_bars("pages", [charts.Bar(0.0, "<x>", "a&b")], 5).count("&lt;x&gt;") == 1
    high = charts.page_bars("pages", [charts.Bar(0.984, ""), charts.Bar(1.0, "")], 2)
    assert "the axis starts at 0.98" in high and ">0.984<" in high and ">1<" in high
    assert "starts at" not in charts.page_bars("pages", [charts.Bar(0.4, "")], 1)
