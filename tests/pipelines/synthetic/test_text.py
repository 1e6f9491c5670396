import numpy as np
import pytest

from pipelines.synthetic.text import Row, Segment, compose


@pytest.mark.parametrize("korean", [False, True])
def test_receipts_say_something(korean):
    rows = compose(np.random.default_rng(0), 40, korean)
    assert 12 < len(rows) < 70 and all(isinstance(row, Row) for row in rows)
    prices = [s for row in rows for s in row.segments if isinstance(s, Segment) and s.anchor == "r"]
    assert len(prices) >= 3
