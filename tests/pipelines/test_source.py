"""Which page comes when, on any rank, worker and resume."""

import os

import numpy as np
import pytest
from loaded_pages import PAGES, damage, make, pages_of, take, write_pages
from PIL import Image

from pipelines.errors import UserError
from pipelines.index.bare import BareIndex
from pipelines.index.build import ConcatIndex
from pipelines.quarantine import problem
from pipelines.source import read_page


def test_a_sample_is_the_same_on_any_number_of_ranks(index):
    alone = pages_of(take(make(index, batch_size=4), 4))
    for ranks, batch_size, accumulate in ((2, 2, 1), (4, 1, 1), (2, 1, 2), (1, 2, 2)):
        streams = [
            take(make(index, batch_size=batch_size, accumulate=accumulate, rank=r, world_size=ranks), 4 * accumulate)
            for r in range(ranks)
        ]
        spread = pages_of([stream[i] for i in range(4 * accumulate) for stream in streams])
        assert spread == alone


def test_starting_midway_is_running_on(index):
    whole = make(index, batch_size=2, accumulate=2)
    assert whole.steps_per_epoch == 3 and whole.position == (0, 0, 0)
    batches = take(whole, 14)
    assert whole.position == (2, 1, 0)
    resumed = make(index, batch_size=2, accumulate=2, start_epoch=1, start_step=2)
    assert resumed.position == (1, 2, 0)
    assert pages_of(take(resumed, 4)) == pages_of(batches[10:14])


def test_epochs_differ_and_hold_every_page_once(index):
    batches = take(make(index), 14)
    epochs = [np.concatenate([b.index for b in batches[:7]]), np.concatenate([b.index for b in batches[7:]])]
    assert [sorted(e) for e in epochs] == [list(range(PAGES))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    first, second = ({page[0]: page for page in pages_of(part)} for part in (batches[:7], batches[7:]))
    assert all(first[i][1] != second[i][1] for i in first)  # the same page, another augmentation


def test_weights_choose_between_data_sets(index, tmp_path):
    other = write_pages(tmp_path / "other", 4)
    both = ConcatIndex([index, other])
    made = make(both, weights=[0.0, 2.0])
    assert made.steps_per_epoch == 4
    batches = take(made, 4)
    rows = np.concatenate([batch.index for batch in batches])
    assert sorted(rows) == sorted([PAGES, PAGES + 1, PAGES + 2, PAGES + 3] * 2)
    assert len({page[1] for page in pages_of(batches)}) == 8  # a page that comes twice is augmented twice
    with pytest.raises(UserError, match="one number >= 0 for each of 2 data sets"):
        make(both, weights=[1.0])


def test_a_substitute_is_of_the_same_data_set_and_augmented_in_its_own_way(tmp_path):
    both = ConcatIndex([write_pages(tmp_path / "a", 4), write_pages(tmp_path / "b", 2)])
    damage(both.path(5), "missing")
    batches = take(make(both, bad=both.bad, weights=[1.0, 2.0]), 4)
    pages = pages_of(batches)
    assert sorted(page[0] for page in pages) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert len({page[1] for page in pages}) == 8 and both.bad.keys() == {5}


def test_a_pipe_in_the_place_of_a_page_does_not_block(tmp_path):
    """It did for ever: nobody writes into it."""
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 50)).save(path)
    index = BareIndex([path])
    assert read_page(index, 0).tobytes() == path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    assert not len(read_page(index, 0)) and problem(index, 0) == "not a file"
