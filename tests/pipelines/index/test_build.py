import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from indexed_pages import SQUARE, data_set, picture
from PIL import Image

from pipelines.errors import UserError
from pipelines.images.read import read_header
from pipelines.index.build import _key, build, is_index, open_index
from pipelines.index.store import VERSION
from pipelines.limits import Limits


def test_round_trip(source, tmp_path):
    index = build(source, tmp_path / "index")
    assert len(index) == 3 and index.format == "contest" and index.has_texts
    assert [index.name(i) for i in range(3)] == ["a.jpg", "empty.jpg", "b.jpg"]
    assert index.path(2) == source.parent / "images" / "b.jpg" and index.paths[2] == str(index.path(2))
    np.testing.assert_array_equal(index.size_wh, [[200, 100]] * 3)
    assert index.texts(0) == ["가나", "###"] and index.texts(1) == [] and index.texts(2) == ["", "B, C", "D"]
    assert index.ignore(0).tolist() == [False, True] and index.ignore(1).shape == (0,)
    assert [p.shape for p in index.polygons(2)] == [(5, 2), (4, 2), (3, 2)] and index.polygons(1) == []
    np.testing.assert_array_equal(index.polygons(0)[0], SQUARE)
    assert index.polygons(0)[0].dtype == np.float32
    assert index.num_usable == 4
    with pytest.raises(IndexError):
        index.polygons(3)


def test_source_without_texts_or_polygons(tmp_path):
    index = build(data_set(tmp_path, {"a.jpg": [(SQUARE, "")]}, texts=False), tmp_path / "i")
    assert not index.has_texts and index.texts(0) is None
    index = build(data_set(tmp_path, {"a.jpg": []}), tmp_path / "j")
    assert index.polygons(0) == [] and index.num_usable == 0 and index.points.shape == (0, 2)


def test_what_cannot_be_read_is_masked_where_it_lies_and_counted(tmp_path):
    nan = [[10, 20], [float("nan"), 20], [110, 40]]
    infinite = [[10, 20], [1e400, 20], [110, 40]]
    outside = [[-5, 20], [250, 20], [250, 130], [-5, 130]]
    words = [(nan, "n"), (infinite, "i"), (SQUARE[:2], "few"), (outside, "out"), (SQUARE, "in")]
    index = build(data_set(tmp_path, {"a.jpg": words}), tmp_path / "index")
    assert index.texts(0) == ["n", "i", "few", "out", "in"]
    assert index.ignore(0).tolist() == [True, True, True, False, False] and index.num_usable == 2
    np.testing.assert_array_equal(index.polygons(0)[3], [[0, 20], [200, 20], [200, 100], [0, 100]])
    spanned = index.polygons(0)[0]  # around (10, 20) and (110, 40), which is all that is known of it
    assert spanned.min(0).tolist() == [2, 12] and spanned.max(0).tolist() == [118, 48]
    expected = {"masked": 3, "out_of_page": 1, "polygons": 5, "pages": 1, "ignored": 3}
    assert expected.items() <= index.counts.items()


def test_a_region_without_any_coordinate_refuses_its_page(tmp_path):
    words = [(SQUARE, "in"), ([], "none")]
    source = data_set(tmp_path, {"a.jpg": words, "b.jpg": [(SQUARE, "in")]})
    with pytest.raises(UserError, match=r"a\.jpg: nowhere \(region 2 has no coordinates"):
        build(source, tmp_path / "index")
    index = build(source, tmp_path / "index", skip_bad=True)
    assert [index.name(i) for i in range(len(index))] == ["b.jpg"] and index.counts["skipped_images"] == 1


@pytest.mark.parametrize("orientation", [None, *range(1, 9), 0, 9])
def test_sizes_are_oriented(tmp_path, orientation):
    picture(tmp_path / "a.jpg", (200, 100), orientation)
    header = read_header(tmp_path / "a.jpg")
    turned = orientation in (5, 6, 7, 8)
    assert (header.width, header.height) == ((100, 200) if turned else (200, 100))
    assert header.orientation == (orientation if orientation in range(1, 9) else 1)


def test_clamping_uses_the_oriented_page(tmp_path):
    path = data_set(tmp_path, {"a.jpg": [([[0, 0], [90, 0], [90, 190], [0, 190]], "tall")]})
    picture(tmp_path / "images" / "a.jpg", (200, 100), 6)
    index = build(path, tmp_path / "index")
    assert index.size_wh[0].tolist() == [100, 200] and index.orientation[0] == 6
    assert index.polygons(0)[0].max(0).tolist() == [90, 190] and index.counts["wrong_size"] == 1


def test_missing_and_broken_images(source, tmp_path):
    (source.parent / "images" / "b.jpg").unlink()
    (source.parent / "images" / "empty.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"empty\.jpg: unreadable.*2 of 3 pages.*--skip-bad") as caught:
        build(source, tmp_path / "index")
    assert "\n" not in str(caught.value) and not (tmp_path / "index").exists()
    index = build(source, tmp_path / "index", skip_bad=True)
    assert [index.name(i) for i in range(len(index))] == ["a.jpg"] and index.counts["skipped_images"] == 2
    (source.parent / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="empty file"):
        build(source, tmp_path / "index", skip_bad=True)


def test_too_many_pixels(source, tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match="too-large"):
        build(source, tmp_path / "index", limits=Limits(199 * 100))
    with pytest.raises(UserError, match="too-large"):
        build(source, tmp_path / "index", limits=Limits(100))
    assert len(build(source, tmp_path / "index", limits=Limits(200 * 100))) == 3
    assert before == Image.MAX_IMAGE_PIXELS


def test_progress_and_workers(source, tmp_path):
    seen = []
    build(source, tmp_path / "index", workers=2, progress=lambda *told: seen.append(told))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_out_folder_is_never_somebody_elses(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is not an index"):
        build(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    build(source, tmp_path / "index")
    build(source, tmp_path / "index")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index", "mine", "set"]


def test_a_failed_write_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError):
        build(source, tmp_path / "index")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_open_index_takes_folders_and_sources(source, tmp_path):
    build(source, tmp_path / "index")
    assert len(open_index(str(tmp_path / "index"), cache_dir=tmp_path / "cache")) == 3
    assert not (tmp_path / "cache").exists()
    assert len(open_index(str(source), cache_dir=tmp_path / "cache")) == 3
    with pytest.raises(UserError, match="no such file"):
        open_index(str(tmp_path / "absent"), cache_dir=tmp_path / "cache")


def builds(caplog):
    return sum("building the index" in message for message in caplog.messages)


def test_cache_is_used_only_while_true(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        open_index(source, cache_dir=tmp_path / "cache")
    assert builds(caplog) == 1
    data = json.loads(source.read_text())
    data["images"].pop("empty.jpg")
    source.write_text(json.dumps(data))
    assert len(open_index(source, cache_dir=tmp_path / "cache")) == 2 and builds(caplog) == 2
    picture(source.parent / "images" / "a.jpg", (300, 100))
    index = open_index(source, cache_dir=tmp_path / "cache")
    assert index.size_wh[0].tolist() == [300, 100] and builds(caplog) == 3
    open_index(source, cache_dir=tmp_path / "cache")
    assert builds(caplog) == 3


@pytest.mark.parametrize("spec", ["", "train.txt"])
def test_cache_sees_edited_label_files(tmp_path, spec):
    folder = tmp_path / "sroie"
    picture(folder / "img" / "0.jpg")
    (folder / "box").mkdir()
    label = folder / "box" / "0.csv"
    label.write_text("10,20,110,20,110,40,10,40,A")
    (folder / "train.txt").write_text("0\n")
    assert open_index(folder / spec, cache_dir=tmp_path / "cache").texts(0) == ["A"]
    label.write_text("10,20,110,20,110,40,10,40,B")
    os.utime(label, ns=(1, 1))
    assert open_index(folder / spec, cache_dir=tmp_path / "cache").texts(0) == ["B"]


def test_many_ranks_open_the_same_source_at_once(source, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: open_index(source, cache_dir=tmp_path / "cache"), range(8)))
    assert all(index.texts(2) == ["", "B, C", "D"] for index in found)
    assert [is_index(p) for p in (tmp_path / "cache").iterdir()] == [True]


def test_a_text_without_area_is_kept_but_ignored(tmp_path):
    line = [[10, 10], [60, 10], [110, 10], [60, 10]]
    source = data_set(tmp_path / "pages", {"a.jpg": [(SQUARE, "text"), (line, "flat")]})
    index = open_index(source, cache_dir=tmp_path / "cache")
    assert index.ignore(0).tolist() == [False, True] and index.num_usable == 1 and index.counts["zero_area"] == 1


def test_the_key_of_a_cached_index_is_as_it_always_was(tmp_path):
    folder = tmp_path / "sroie"
    picture(folder / "img" / "0.jpg")
    (folder / "box").mkdir()
    for name in ("0.csv", "1.csv", "\u00e9.csv"):
        (folder / "box" / name).write_text("10,20,110,20,110,40,10,40,A")
    (folder / "train.txt").write_text("0\n")
    for spec in (folder, folder / "train.txt", folder / "box" / "0.csv"):
        listed = [folder / "train.txt", *sorted((folder / "box").iterdir())] if spec.name != "0.csv" else [spec]
        files = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in listed]
        stated = json.dumps([VERSION, "auto", "", str(spec), files, [1, 2, 3]])
        assert _key(spec, "auto", "", [1, 2, 3]) == hashlib.sha256(stated.encode()).hexdigest()
