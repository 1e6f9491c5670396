"""Numbers as the report writes them."""

import pytest

from engine.search.report.words import number, show


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.13e-05, "1.13e-5"), (1e-4, "1e-4"), (0.000148, "1.48e-4"), (0.25, "0.25"), (15, "15"), (True, "True"),
     (100.0, "100"), (20.0, "20"), (1e7, "1e7"), ("adamw", "adamw"), (0.0, "0"), (-2e-5, "-2e-5")],
)  # fmt: skip
def test_values_as_written(value, text):
    assert show(value) == text


def test_metrics_keep_their_zeros():
    assert [number(v) for v in (0.969, 1.0, 1234.5, 123456.0, None)] == [
        "0.96900",
        "1.0000",
        "1234.5",
        "1.2346e+05",
        "",
    ]
