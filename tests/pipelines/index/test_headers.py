import numpy as np
import pytest
from indexed_pages import SQUARE, picture

from pipelines.annotations.packed import Shelf, pack
from pipelines.annotations.page import Page
from pipelines.index import headers
from pipelines.index.headers import keep_known, read_headers, refuse_regions
from pipelines.limits import Limits


def test_headers_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "BLOCK", 4)
    monkeypatch.setattr(headers, "TOGETHER", 2)
    names = [f"{k}.jpg" for k in range(5)]
    for k, name in enumerate(names):
        picture(tmp_path / name, (100 + k, 50), 6 if k == 4 else None)
    (tmp_path / "3.jpg").unlink()
    seen = []
    made = read_headers(tmp_path, names, 2, progress=lambda *told: seen.append(told))
    assert made.size_wh.tolist() == [[100, 50], [101, 50], [102, 50], [0, 0], [50, 104]]
    assert made.orientation.tolist() == [1, 1, 1, 1, 6] and not made.several.any()
    assert made.problems == {3: ("missing", "No such file or directory")} and seen[-1] == (5, 5) and len(seen) == 5
    stat = (tmp_path / "1.jpg").stat()
    assert made.file_stat[1].tolist() == [stat.st_mtime_ns, stat.st_size]
    assert keep_known(tmp_path, names, made, None) == {}


def test_a_stated_size_beyond_any_number_of_pixels_is_too_large(tmp_path):
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff\xff\xff\0\0\0\1\x08\2\0\0\0"
    (tmp_path / "a.png").write_bytes(head + b"\0\0\0\0" + b"\0\0\0\0IEND\xaeB`\x82")
    assert 0 in read_headers(tmp_path, ["a.png"], 1, Limits(1000)).problems


@pytest.mark.parametrize("packed", [False, True])
def test_regions_that_make_a_page_unusable(packed):
    nan = np.full((3, 2), np.nan, np.float32)
    half = np.array([[1, 2], [np.nan, 3]], np.float32)
    square = np.array(SQUARE, np.float32)
    pages = []
    for polygons in ([], [square], [square, nan], [half], [square[:0]], [square] * 3, [nan]):
        pages.append(Page("a.jpg", polygons=polygons, ignore=[False] * len(polygons)))
    if packed:
        shelf = Shelf()
        pages = [pack(page, shelf) for page in pages]
    made = headers.Headers(len(pages))
    made.problems[6] = "missing", "was before"
    refuse_regions(pages, made, most=2)
    assert {row: problem for row, (problem, _) in made.problems.items()} == {
        2: "nowhere", 4: "nowhere", 5: "too-many-polygons", 6: "missing",
    }  # fmt: skip
    assert made.problems[2][1] == "region 2 has no coordinates: mend or delete it"
