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
from pipelines.index import ConcatIndex, build

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


def make(index, **options):
    given = {"image_size": CANVAS, "batch_size": 2, "augment": AugmentConfig(), "seed": 11, **options}
    return loader.train_loader(index, **given)


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
    assert torch.all(batch.poly_offsets.diff() >= 3) and batch.num_polygons.sum() == p
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


@pytest.mark.parametrize(
    ("damage", "workers"), [("missing", 0), ("empty", 0), ("garbage", 0), ("cut", 0), ("missing", 1)]
)
def test_a_bad_file_is_named(tmp_path, damage, workers):
    index = write_pages(tmp_path / "pages", 4)
    path = index.path(3)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "garbage": b"no image " * 99, "cut": data[: len(data) // 2]}[damage])
    made = make(index, workers=workers)
    with pytest.raises(UserError) as caught:
        take(made, 2)
    assert str(path) in str(caught.value) and "cannot decode" in str(caught.value)
    assert not any(str(index.path(i)) in str(caught.value) for i in range(3))


def test_a_file_that_changed_its_size_is_named(tmp_path):
    index = write_pages(tmp_path / "pages", 2)
    Image.new("RGB", (50, 60)).save(index.path(0))
    pages = loader.eval_loader(index, image_size=CANVAS, batch_size=2)
    with pytest.raises(UserError, match=r"00.png: decoded as 50x60 px but indexed as 90x120"):
        list(pages)
    pages.close()


def test_bare_files(index, tmp_path):
    paths = [index.path(i) for i in (5, 2, 9)]
    pages = loader.predict_loader(paths, image_size=CANVAS, batch_size=2)
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
        loader.predict_loader([tmp_path / "nowhere.png"], image_size=CANVAS, batch_size=1)
