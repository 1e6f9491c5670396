"""Batches: determinism, sharding, resume, errors."""

import gc
import multiprocessing
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import loader
from pipelines.augment import AugmentConfig
from pipelines.errors import UserError
from pipelines.graph import LoaderOptions
from pipelines.index.bare import BareIndex
from pipelines.index.build import ConcatIndex, build
from pipelines.quarantine import BadPages, paths_of
from pipelines.source import SampleMaker

CANVAS = (96, 128)
PAGES = 14


def write_pages(folder, count, ignored_row=1):
    rng = np.random.default_rng(count)
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    for i in range(count):
        small = rng.integers(0, 255, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(small).resize((90 + i, 120 - i), Image.Resampling.BICUBIC).save(folder / "img" / f"{i:02}.png")
        # page 2 has no text at all, page 1 an ignored one
        boxes = [] if i == 2 else [(10 + 2 * k, 10 + 15 * k, 60 + i, 20 + 15 * k) for k in range(1 + i % 4)]
        text = "###" if i == ignored_row else "word"
        rows = [f"{l},{t},{r},{t},{r},{b},{l},{b},{text}" for l, t, r, b in boxes]
        (folder / "gt" / f"{i:02}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return build(folder, folder / "index")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("pages"), PAGES)


def make(index, workers=0, **options):
    given = {"image_size": CANVAS, "batch_size": 2, "augment": AugmentConfig(), "seed": 11, **options}
    return loader.train_loader(index, **given, options=LoaderOptions(workers=workers))


def take(made, count):
    batches = [next(made) for _ in range(count)]
    made.close()
    return batches


def pages_of(batches):
    """Every page of some batches as comparable bytes, in order."""
    result = []
    for batch in batches:
        points, offsets = batch.points_xy.numpy(), batch.poly_offsets.numpy()
        for n in range(len(batch)):
            first, last = batch.page_offsets[n : n + 2].tolist()
            polygons = [points[offsets[p] : offsets[p + 1]].tobytes() for p in range(first, last)]
            image = batch.image[n].permute(1, 2, 0).contiguous().numpy().tobytes()
            flags = batch.ignore[first:last].numpy().tobytes()
            result.append((int(batch.index[n]), image, batch.matrix[n].tobytes(), flags, *polygons))
    return result


def test_the_shape_of_a_batch(index):
    (batch,) = take(make(index, batch_size=4), 1)
    n, p, v = 4, len(batch.ignore), len(batch.points_xy)
    assert len(batch) == n and batch.image.shape == (n, 3, *CANVAS) and batch.image.dtype == torch.float32
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.points_xy.dtype == torch.float32 and batch.points_xy.shape == (v, 2)
    assert batch.poly_offsets.dtype == batch.page_offsets.dtype == torch.int64 and batch.ignore.dtype == torch.bool
    assert batch.poly_offsets.shape == (p + 1,) and batch.poly_offsets[0] == 0 and batch.poly_offsets[-1] == v
    assert batch.page_offsets.shape == (n + 1,) and batch.page_offsets[0] == 0 and batch.page_offsets[-1] == p
    assert batch.index.shape == (n,) and batch.index.dtype == np.int64
    assert batch.matrix.shape == (n, 2, 3) and batch.matrix.dtype == np.float64
    assert torch.all(batch.poly_offsets.diff() >= 3) and batch.page_offsets.diff().sum() == p
    assert pages_of([batch.to("cpu")]) == pages_of([batch])


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


def test_a_sample_is_the_same_on_any_number_of_ranks(index):
    alone = pages_of(take(make(index, batch_size=4), 4))
    for ranks, batch_size, accumulate in ((2, 2, 1), (4, 1, 1), (2, 1, 2), (1, 2, 2)):
        streams = [
            take(make(index, batch_size=batch_size, accumulate=accumulate, rank=r, world_size=ranks), 4 * accumulate)
            for r in range(ranks)
        ]
        spread = pages_of([stream[i] for i in range(4 * accumulate) for stream in streams])
        assert spread == alone


def test_workers_change_nothing(index):
    """7 batches of 2 are one epoch here: the stream goes over its end."""
    inside = take(make(index), 9)
    workers = make(index, workers=2)
    assert len(multiprocessing.active_children()) >= 2
    outside = take(workers, 9)
    assert pages_of(inside) == pages_of(outside)
    assert not multiprocessing.active_children()


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
    pipeline = weakref.ref(made._stream._pipeline)
    made.close()
    assert pipeline() is None  # at once, not when the garbage collector comes by
    with pytest.raises(AssertionError, match="closed"):
        next(made)


def test_too_few_pages_for_a_step(index):
    with pytest.raises(UserError, match="14 training pages are fewer than one global batch of 16"):
        make(index, batch_size=4, world_size=2, accumulate=2)


def damage(path, how):
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "other size":
        Image.new("RGB", (50, 60)).save(path, compress_level=9)
        small = path.read_bytes()
        path.write_bytes(small + bytes(len(data) - len(small)))  # as many bytes as before
    else:
        half = len(data) // 2
        path.write_bytes({"empty": b"", "cut": data[:half], "garbage": data[:half] + bytes(len(data) - half)}[how])


REASONS = {
    "missing": "No such file",
    "empty": "empty file",
    "cut": "bytes but was indexed with",
    "garbage": "cannot be decoded",  # the right number of bytes: only the decoder sees it
    "other size": "decoded as 50x60 px but indexed as 93x117",
}


@pytest.mark.parametrize(("how", "workers"), [*((how, 0) for how in REASONS), ("missing", 1)])
def test_a_bad_page_is_named_once_and_another_takes_its_place(tmp_path, caplog, how, workers):
    index = write_pages(tmp_path / "pages", 4)
    damage(index.path(3), how)
    bad = {}
    made = make(index, workers=workers, bad=bad)
    batches = take(made, 6)  # three epochs
    rows = np.concatenate([batch.index for batch in batches])
    assert 3 not in rows and len(rows) == 12 and {0, 1, 2} <= set(rows.tolist())
    (path, reason), *rest = paths_of(index, bad).items()
    assert path == str(index.path(3)) and REASONS[how] in reason and not rest
    (line,) = [record.getMessage() for record in caplog.records if "03.png" in record.getMessage()]
    assert line.startswith(f"rank 0: {path}: ") and line.endswith("another page takes its place")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])  # a worker takes seconds to start
def test_it_does_not_matter_when_a_bad_page_is_found(tmp_path, workers):
    """Known from the start, found by the source, the decoder or its size; here, in a worker or after a resume."""
    index = write_pages(tmp_path / "pages", PAGES)
    known = take(make(index, bad={3: "", 8: ""}, max_bad_share=0.2), 10)
    other = {row for batch in known for row in batch.index.tolist()}
    assert not {3, 8} & other and len(other) == PAGES - 2
    for first, second in (("missing", "garbage"), ("other size", "empty")):
        index = write_pages(tmp_path / first, PAGES)
        damage(index.path(3), first)
        damage(index.path(8), second)
        assert pages_of(take(make(index, workers=workers, max_bad_share=0.2), 10)) == pages_of(known)
        resumed = make(index, start_epoch=1, start_step=1, max_bad_share=0.2)
        assert pages_of(take(resumed, 2)) == pages_of(known[8:10])
        ranks = [take(make(index, batch_size=1, rank=r, world_size=2, max_bad_share=0.2), 10) for r in (0, 1)]
        assert pages_of([ranks[r][i] for i in range(10) for r in (0, 1)]) == pages_of(known)


def test_a_page_that_goes_bad_on_the_way_changes_nothing_before(tmp_path):
    index = write_pages(tmp_path / "pages", PAGES)
    whole = take(make(index), 14)
    made = make(index)
    batches = [next(made) for _ in range(7)]
    damage(index.path(5), "garbage")
    batches += take(made, 7)
    known = take(make(index, bad={5: ""}), 14)
    assert pages_of(batches[:7]) == pages_of(whole[:7]) and pages_of(batches[9:]) == pages_of(known[9:])
    assert made.position == (2, 0, 0) and 5 not in np.concatenate([batch.index for batch in batches[9:]])


def hidden(path):
    """Where a page's file is meanwhile."""
    return path.with_suffix(".hidden")


def test_what_an_epoch_has_found_counts_from_the_next_one_on(tmp_path):
    """Gone in the first epoch, back in the second: passed over as by a run that starts there and knows of it."""
    index = write_pages(tmp_path / "pages", PAGES)
    good = pages_of(take(make(index, start_epoch=1), 7))
    known = pages_of(take(make(index, bad={5: ""}, start_epoch=1), 7))
    assert pages_of(take(make(index, bad={5: ""}, unread=(), start_epoch=1), 7)) == good != known
    index.path(5).rename(hidden(index.path(5)))
    bad = {}
    made = make(index, bad=bad)
    first = [next(made) for _ in range(7)]
    hidden(index.path(5)).rename(index.path(5))
    assert bad.keys() == {5} and 5 not in np.concatenate([b.index for b in first])
    made.pass_over([5])
    assert pages_of(take(made, 7)) == known


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_within_an_epoch_a_new_pipeline_changes_nothing(tmp_path, workers):
    """A page that comes twice in an epoch and cannot be read the first time: it is read the second time."""
    index = write_pages(tmp_path / "pages", PAGES)
    places = [batch.index.tolist() for batch in take(make(index, weights=[2.0]), 14)]
    twice = {row: [i for i, place in enumerate(places) if row in place] for row in range(PAGES)}
    row, (first, second) = max(
        ((row, at) for row, at in twice.items() if len(at) == 2), key=lambda p: p[1][1] - p[1][0]
    )
    assert second - first > 5  # not made ahead when the file is back
    results = []
    for rebuilt in (False, True):
        index.path(row).rename(hidden(index.path(row)))
        made = make(index, weights=[2.0], workers=workers)
        batches = [next(made) for _ in range(first + 1)]
        hidden(index.path(row)).rename(index.path(row))
        if rebuilt:
            made._stream._start()
        batches += take(made, 13 - first)
        assert row not in batches[first].index and row in batches[second].index
        results.append(pages_of(batches))
    assert results[0] == results[1]


def test_a_substitute_is_of_the_same_data_set_and_augmented_in_its_own_way(tmp_path):
    both = ConcatIndex([write_pages(tmp_path / "a", 4), write_pages(tmp_path / "b", 2)])
    damage(both.path(5), "missing")
    batches = take(make(both, bad=both.bad, weights=[1.0, 2.0]), 4)
    pages = pages_of(batches)
    assert sorted(page[0] for page in pages) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert len({page[1] for page in pages}) == 8 and both.bad.keys() == {5}


def test_above_the_share_the_loader_stops_with_the_list(tmp_path):
    index = write_pages(tmp_path / "pages", PAGES)
    for row in range(0, 12, 2):
        damage(index.path(row), "empty")
    made = make(index, max_bad_share=0.3)  # 4.2 of 14, rounded up
    with pytest.raises(UserError, match=r"6 of 14 pages cannot be read, above data.max_bad_share=0.3: ") as caught:
        take(made, 7)
    assert all(str(index.path(row)) in str(caught.value) for row in range(0, 12, 2))
    assert len(take(make(index, max_bad_share=0.4), 7)) == 7
    with pytest.raises(UserError, match="1 of 14 pages cannot be read: "):
        take(make(index, max_bad_share=0.0), 7)


def test_a_data_set_without_a_good_page_ends_in_a_line(tmp_path):
    index = write_pages(tmp_path / "pages", 4)
    for row in range(4):
        damage(index.path(row), "missing")
    for workers in (0, 1):
        with pytest.raises(UserError, match="is the disk there"):
            take(make(index, max_bad_share=1.0, workers=workers), 2)


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


@pytest.mark.parametrize("how", REASONS)
def test_evaluation_of_a_bad_page(tmp_path, how, caplog):
    index = write_pages(tmp_path / "pages", 5)
    options = {"image_size": CANVAS, "batch_size": 2}
    whole = pages_of(loader.eval_loader(index, **options))
    damage(index.path(3), how)
    with pytest.raises(UserError, match=rf"03\.png \(.*{REASONS[how]}"):
        list(loader.eval_loader(index, **options))
    bad = {}
    pages = loader.eval_loader(index, **options, bad=BadPages("black", bad))
    for _ in range(2):
        got = list(pages)
        assert [p for p in pages_of(got) if p[0] != 3] == [p for p in whole if p[0] != 3]
        black = got[1].image[1].numpy()
        assert got[1].index[1] == 3 and (black == black[:, :1, :1]).all() and black[0, 0, 0] < -2
    assert bad.keys() == {3} and REASONS[how] in bad[3]
    assert len([r for r in caplog.records if r.getMessage().endswith("; black")]) == 1


def test_bare_files(index, tmp_path):
    paths = [index.path(i) for i in (5, 2, 9)]
    pages = loader.eval_loader(BareIndex(paths), image_size=CANVAS, batch_size=2)
    batches = list(pages)
    pages.close()
    assert [batch.index.tolist() for batch in batches] == [[0, 1], [2]]
    for batch in batches:
        assert batch.points_xy.shape == (0, 2) and batch.poly_offsets.tolist() == [0] and len(batch.ignore) == 0
        assert batch.page_offsets.tolist() == [0] * (len(batch) + 1)
    whole = loader.eval_loader(index, image_size=CANVAS, batch_size=PAGES)
    (batch,) = list(whole)
    whole.close()
    assert torch.equal(batches[0].image[0], batch.image[5]) and torch.equal(batches[1].image[0], batch.image[9])
    with pytest.raises(UserError, match=r"nowhere\.png: missing"):
        BareIndex([tmp_path / "nowhere.png"])
