import json
import pickle

import numpy as np
import pytest
from indexed_pages import SQUARE, data_set

from pipelines.errors import UserError
from pipelines.index import store
from pipelines.index.build import ConcatIndex, build, load, open_index
from pipelines.synthetic import receipts


def test_arrays_are_mapped_and_csr(source, tmp_path):
    index = build(source, tmp_path / "index")
    assert isinstance(index.points.base, np.memmap) and not index.points.flags.writeable
    assert index.page_offsets.tolist() == [0, 2, 2, 5]
    assert index.point_offsets.tolist() == [0, 4, 7, 12, 16, 19]
    assert index.size_wh.dtype == np.int32 and index.orientation.dtype == np.uint8


def test_damaged_indexes_are_refused(source, tmp_path):
    folder = tmp_path / "index"
    build(source, folder)
    good = (folder / "points.npy").read_bytes()
    (folder / "points.npy").write_bytes(good[:-8])
    with pytest.raises(UserError, match=r"points\.npy: damaged"):
        load(folder)
    (folder / "points.npy").unlink()
    with pytest.raises(UserError, match="incomplete"):
        load(folder)
    (folder / "points.npy").write_bytes(good)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"version": 0}))
    with pytest.raises(UserError, match=r"version 0.*build it again"):
        load(folder)
    (folder / "meta.json").write_text(json.dumps(meta | {"root": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match="gone"):
        load(folder)
    with pytest.raises(UserError, match="not an index"):
        load(tmp_path)


def test_concat(source, tmp_path):
    first = build(source, tmp_path / "first")
    second = build(data_set(tmp_path / "two", {"z.jpg": [(SQUARE, "")]}, texts=False), tmp_path / "second")
    both = ConcatIndex([first, second, first])
    assert len(both) == 7 and both.lengths == [3, 1, 3] and both.dataset_of.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert both.name(3) == "z.jpg" and both.path(6) == first.path(2) and both.paths[3] == str(second.path(0))
    assert both.num_usable == 9 and not both.has_texts and both.texts(0) is None
    assert both.size_wh.shape == (7, 2) and both.orientation.shape == (7,)
    assert len(both.polygons(6)) == 3 and both.ignore(4).tolist() == [False, True]
    assert ConcatIndex([first, first]).texts(5) == ["", "B, C", "D"]
    for row in (-1, 7):
        with pytest.raises(IndexError):
            both.polygons(row)


def test_a_pickled_index_is_its_folder_not_a_copy(tmp_path):
    made = receipts.write_dataset(tmp_path / "pages", 3, 1, 96, 128)
    index = open_index(made, cache_dir=tmp_path / "cache")
    packed = pickle.dumps(index)
    assert len(packed) < 500
    again = pickle.loads(packed)
    assert [again.path(i) for i in range(3)] == [index.path(i) for i in range(3)]
    assert all(np.array_equal(a, b) for a, b in zip(again.polygons(1), index.polygons(1), strict=True))


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1000])
def test_what_is_asked_of_all_pages_at_once(source, tmp_path, monkeypatch, block):
    monkeypatch.setattr(store, "BLOCK", block)
    index = build(source, tmp_path / "index")
    assert index.relative_paths() == [index.relative_path(i) for i in range(3)]
    assert index.longest_polygon == 5 and index.untold == 2  # b.jpg's first text is ""
    told = build(data_set(tmp_path / "told", {"a.jpg": [(SQUARE, "a"), (SQUARE, "b")]}), tmp_path / "all")
    assert told.untold is None and told.longest_polygon == 4
    empty = build(data_set(tmp_path / "empty", {"a.jpg": []}), tmp_path / "none")
    assert empty.longest_polygon == 0
    for name, arrays in (("point_offsets", [0, 4, 3, 12, 16, 19]), ("text_offsets", [0, 4, 9, 9, 13, 14])):
        load(tmp_path / "index")
        good = np.load(tmp_path / "index" / f"{name}.npy")
        np.save(tmp_path / "index" / f"{name}.npy", np.array(arrays))
        with pytest.raises(UserError, match=f"{name}.*damaged|text_offsets|an image path|text"):
            load(tmp_path / "index")
        np.save(tmp_path / "index" / f"{name}.npy", good)
