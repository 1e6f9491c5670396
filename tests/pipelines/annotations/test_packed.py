import numpy as np
import pytest

from pipelines.annotations import packed
from pipelines.annotations.packed import Polygons, Shelf, Texts, in_pixels, pack
from pipelines.annotations.page import Page
from pipelines.errors import UserError


@pytest.fixture(params=["in memory", "in a file", "in both"])
def shelf(request, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(packed.tempfile, "tempdir", None)  # else the one that was asked for first
    monkeypatch.setattr(packed, "IN_MEMORY", {"in memory": 1 << 20, "in a file": 0, "in both": 60}[request.param])
    made = Shelf()
    made.put(b"x" * 8)
    return made


@pytest.mark.parametrize("counts", [[], [4], [0, 4, 1, 12, 0], [3, 3], [0, 0]])
def test_packed_polygons_are_the_polygons(shelf, counts):
    polygons = [np.arange(2 * n, dtype=np.float32).reshape(n, 2) + 100 * k for k, n in enumerate(counts)]
    made = Polygons(polygons, shelf)
    assert len(made) == len(polygons) and made.read()[0].tolist() == counts
    for k in range(-len(polygons), len(polygons)):
        np.testing.assert_array_equal(made[k], polygons[k])
    for one, other in zip(made, polygons, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(IndexError):
        made[len(polygons)]


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "\u00e9\ud800", "\udc00", "bc", ""]])
def test_packed_texts_are_the_texts(shelf, texts):
    made = Texts(texts, shelf)
    assert made == texts and [made[k] for k in range(-len(texts), len(texts))] == texts + texts
    with pytest.raises(IndexError):
        made[len(texts)]


def test_nothing_is_added_to_a_packed_page(shelf):
    page = pack(Page("a.jpg"), shelf)
    with pytest.raises(AssertionError):
        page.add(np.zeros((4, 2), np.float32), False, None)


def test_a_packed_page_is_what_it_was(shelf):
    outline = np.array([[0.1, 0.2], [0.5, 0.2], [0.5, 0.7]], np.float32)
    pages = []
    for _ in range(2):
        page = Page("a.jpg", normalized=True)
        page.add(outline, False, "a")
        page.add(outline[:2], True, None, np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32))
        pages.append(page)
    plain, made = pages[0], pack(pages[1], shelf)
    made.ignore[0] |= True
    assert made.ignore == [True, True] and made.texts == ["a", ""] and list(made.boxed) == [1]
    for one, other in zip(in_pixels(made, 300, 200).polygons, in_pixels(plain, 300, 200).polygons, strict=True):
        np.testing.assert_array_equal(one, other)
    in_pixels(made, 300, 200)  # they are: nothing changes
    np.testing.assert_array_equal(made.polygons[0], plain.polygons[0])


def test_a_full_disk_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(packed, "IN_MEMORY", 10)
    monkeypatch.setattr(packed.tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    shelf = Shelf()
    shelf.put(b"0123456789")
    with pytest.raises(
        UserError, match=r"cannot be put aside here \(No space left on device\).*TMPDIR=FOLDER"
    ) as caught:
        shelf.put(b"more")
    assert "\n" not in str(caught.value)
