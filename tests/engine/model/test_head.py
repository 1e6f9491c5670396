"""The DB head."""

import pytest
import torch

from engine.model.head import Head


@pytest.mark.parametrize("smooth", [False, True])
def test_four_times_the_size_and_thresholds_in_training_only(smooth):
    head, x = Head(8, 4, smooth), torch.randn(2, 8, 3, 5)
    prob, thresh = head(x)
    assert prob.shape == thresh.shape == (2, 1, 12, 20)
    assert head.eval()(x).shape == (2, 1, 12, 20)
