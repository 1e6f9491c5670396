import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import sampler
from pipelines.errors import UserError


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [sampler.epoch_order(0, epoch, [100]) for epoch in range(3)]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order) == list(range(100))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    np.testing.assert_array_equal(orders[1], sampler.epoch_order(0, 1, [100], [1.0]))
    assert not np.array_equal(orders[0], sampler.epoch_order(1, 0, [100]))


def test_the_shuffle_reaches_everywhere():
    """First positions over many epochs are spread evenly: chi-square over 10 sample numbers."""
    counts = np.bincount([sampler.epoch_order(9, epoch, [10])[0] for epoch in range(1000)], minlength=10)
    assert ((counts - 100) ** 2 / 100).sum() < 27.9  # 99.9 % of chi-square with 9 degrees of freedom


def test_weights():
    order = sampler.epoch_order(0, 0, [10, 20, 30], [2.5, 0.25, 0.0])
    assert len(order) == sampler.num_samples([10, 20, 30], [2.5, 0.25, 0.0]) == 25 + 5
    counts = np.bincount(order, minlength=60)
    assert set(counts[:10]) == {2, 3} and counts[:10].sum() == 25
    assert set(counts[10:30]) == {0, 1} and counts[10:30].sum() == 5 and counts[30:].sum() == 0
    other = np.bincount(sampler.epoch_order(0, 1, [10, 20, 30], [2.5, 0.25, 0.0]), minlength=60)
    assert not np.array_equal(other, counts)  # the fraction is another part of the data each epoch
    with pytest.raises(UserError, match="one number >= 0 for each of 2 data sets"):
        sampler.epoch_order(0, 0, [1, 2], [1.0])


def test_repeats_count_earlier_occurrences():
    assert sampler.repeats(np.array([3, 1, 3, 3, 1, 0])).tolist() == [0, 0, 1, 2, 1, 0]
    assert sampler.repeats(np.zeros(0, np.int64)).tolist() == []
    assert not sampler.repeats(sampler.epoch_order(0, 0, [50])).any()


@given(ranks=st.sampled_from([1, 2, 3, 4, 6, 12]), accumulate=st.sampled_from([1, 2]), samples=st.integers(24, 100))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_any_world_sees_the_same_global_batches(ranks, accumulate, samples):
    """24 samples a step, however they are spread over ranks and micro-steps."""
    order = sampler.epoch_order(0, 0, [samples])
    batch = 24 // (ranks * accumulate)
    for step in range(samples // 24):
        seen = [
            sampler.rank_batch(order, step, micro, sampler.Share(batch, rank, ranks, accumulate))
            for micro in range(accumulate)
            for rank in range(ranks)
        ]
        np.testing.assert_array_equal(np.concatenate(seen), order[step * 24 : (step + 1) * 24])


def test_the_last_incomplete_step_is_dropped():
    order = sampler.epoch_order(0, 0, [100])
    with pytest.raises(AssertionError):
        sampler.rank_batch(order, 4, 0, sampler.Share(24))
