"""report.history: series of any length."""

from engine.report import history


def test_series_of_any_length_are_thinned_and_keep_their_peaks():
    thin = history.Thinned()
    for step in range(100_000):
        thin.add({"step": step, "loss": 50.0 if step == 777 else 1.0})
    assert thin.count == 100_000 and len(thin.buckets) <= 2 * history.POINTS
    points = thin.series("loss")
    assert max(most for _, _, _, most in points) == 50.0
    assert points[0][0] == (thin.size - 1) / 2 and sum(b["loss"][1] for b in thin.buckets) == 100_000
    assert thin.series("lr") == []
