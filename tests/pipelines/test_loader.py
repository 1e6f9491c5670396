"""Batches: determinism, sharding, resume, errors."""

import gc
import multiprocessing
import weakref

import numpy as np
import pytest
import torch
from loaded_pages import CANVAS, PAGES, make, pages_of, take

from pipelines import loader
from pipelines.errors import UserError
from pipelines.source import SampleMaker


def test_an_unaugmented_batch_holds_the_index_polygons(index):
    pages = loader.eval_loader(index, image_size=CANVAS, batch_size=5)
    batches = list(pages)
    pages.close()
    rows = np.concatenate([batch.index for batch in batches])
    assert rows.tolist() == list(range(PAGES)) and [len(batch) for batch in batches] == [5, 5, 4]
    for batch in batches:
        offsets = batch.poly_offsets.numpy()
        for n, row in enumerate(batch.index):
            span = range(*batch.page_offsets[n : n + 2].tolist())
            got = [batch.points_xy[offsets[p] : offsets[p + 1]].numpy() for p in span]
            linear, shift = batch.matrix[n][:, :2], batch.matrix[n][:, 2]
            expected = [polygon @ linear.T + shift for polygon in index.polygons(row)]
            assert len(got) == len(expected)
            assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(got, expected))
            assert batch.ignore[span.start : span.stop].tolist() == index.ignore(row).tolist()


def test_workers_change_nothing(index):
    """7 batches of 2 are one epoch here: the stream goes over its end."""
    inside = take(make(index), 9)
    workers = make(index, workers=2)
    assert len(multiprocessing.active_children()) >= 2
    outside = take(workers, 9)
    assert pages_of(inside) == pages_of(outside)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_evaluation_shards_without_duplicates(index, world_size):
    seen = []
    for rank in range(world_size):
        pages = loader.eval_loader(index, image_size=CANVAS, batch_size=3, rank=rank, world_size=world_size)
        batches = list(pages)
        assert len(batches) == len(pages)
        rows = np.concatenate([batch.index for batch in batches])
        assert rows.tolist() == list(range(rank, PAGES, world_size)) == pages.rows.tolist()
        seen += rows.tolist()
        pages.close()
    assert sorted(seen) == list(range(PAGES))


def test_evaluation_can_be_repeated_and_left_early(index):
    pages = loader.eval_loader(index, image_size=CANVAS, batch_size=4)
    first = pages_of(pages)
    next(iter(pages))
    assert pages_of(pages) == first
    assert pages.wait_seconds > 0
    pages.close()


def test_a_rank_without_rows(index):
    pages = loader.eval_loader(index, image_size=CANVAS, batch_size=4, rank=PAGES, world_size=PAGES + 1)
    assert len(pages) == 0 and list(pages) == [] and pages.wait_seconds == 0
    pages.close()


def test_held_batches_keep_their_pixels(index):
    made = make(index)
    held = [next(made) for _ in range(3)]
    copies = [batch.image.clone() for batch in held]
    for _ in range(6):
        next(made)
    made.close()
    del made
    gc.collect()
    assert all(torch.equal(batch.image, copy) for batch, copy in zip(held, copies))


def test_close_frees_the_pipeline(index):
    made = make(index)
    next(made)
    assert made.wait_seconds > 0
    pipeline = weakref.ref(made._pipeline)
    made.close()
    assert pipeline() is None  # at once, not when the garbage collector comes by
    with pytest.raises(AssertionError, match="closed"):
        next(made)


def test_too_few_pages_for_a_step(index):
    with pytest.raises(UserError, match="14 training pages are fewer than one global batch of 16"):
        make(index, batch_size=4, world_size=2, accumulate=2)


def test_a_fault_that_no_file_explains_is_raised(index, monkeypatch):
    made = make(index)
    next(made)
    monkeypatch.setattr(SampleMaker, "__call__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take(made, 9)


def test_a_file_that_was_bad_for_a_moment_only_costs_a_new_pipeline(index, monkeypatch, caplog):
    """Garbage when the batch was made, whole when it is looked at again: no file is at fault, the batch is the same."""
    whole = pages_of(take(make(index), 9))
    bad = {}
    made, read, reads = make(index, bad=bad), SampleMaker.read, []

    def garbled(maker, row):
        reads.append(row)
        encoded = read(maker, row)
        return np.zeros_like(encoded) if len(reads) == 5 else encoded

    monkeypatch.setattr(SampleMaker, "read", garbled)
    assert pages_of(take(made, 9)) == whole and not bad and len(reads) > 18
    assert caplog.text.count("is made again") == 1


def test_a_batch_that_fails_twice_without_a_file_at_fault_ends_the_run(index, monkeypatch):
    made = make(index)
    next(made)
    monkeypatch.setattr(SampleMaker, "read", lambda *_: np.zeros(50, np.uint8))
    monkeypatch.setattr("pipelines.quarantine.undecodable", lambda *_: [])
    with pytest.raises(RuntimeError):
        take(made, 9)
