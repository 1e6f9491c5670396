"""Bad pages: named, replaced, counted."""

import numpy as np
import pytest
from loaded_pages import CANVAS, PAGES, damage, make, pages_of, take, write_pages

from pipelines import loader
from pipelines.errors import UserError
from pipelines.quarantine import BadPages, paths_of, refuse_above

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
            made._start()
        batches += take(made, 13 - first)
        assert row not in batches[first].index and row in batches[second].index
        results.append(pages_of(batches))
    assert results[0] == results[1]


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


def test_the_share_of_bad_pages_is_exact():
    """0.07 * 100 is 7.000000000000001 in floats, whose ceiling is 8."""
    bad = {f"{k}.jpg": "empty file" for k in range(8)}
    with pytest.raises(UserError, match="8 of 100"):
        refuse_above(0.07, 100, bad)
    refuse_above(0.071, 100, bad)  # rounded up
