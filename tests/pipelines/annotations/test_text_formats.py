import numpy as np
import pytest
from annotation_files import QUAD, SQUARE, picture, put, read, sroie

from pipelines.annotations.read import read_source
from pipelines.annotations.text_formats import choose_layout, interpret, parse_line
from pipelines.errors import UserError


@pytest.mark.parametrize("images", ["img", "images"])
@pytest.mark.parametrize("labels", ["box", "gt", "labels", "annotations"])
def test_text_line_folders(tmp_path, images, labels):
    name, root, pages = read(sroie(tmp_path, [QUAD + ",A"], images, labels, ".txt"))
    assert (name, root) == ("icdar", tmp_path)
    assert pages[0].path == f"{images}/000.jpg" and pages[0].texts == ["A"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_keeps_commas_and_marks(tmp_path, encoding):
    lines = [QUAD + ",LOT 1, JALAN, 가", QUAD + ",###", "", QUAD + ",", QUAD + ",  padded \r"]
    page = read(sroie(tmp_path, lines, encoding=encoding))[2][0]
    assert page.texts == ["LOT 1, JALAN, 가", "###", "", "padded"]
    assert page.ignore == [False, True, False, False]


def test_text_without_transcriptions(tmp_path):
    assert read(sroie(tmp_path, [QUAD, QUAD]))[2][0].texts is None


def test_latin1_bytes_keep_their_boxes(tmp_path, caplog):
    page = read(sroie(tmp_path, [QUAD + ",caf\xe9"], encoding="latin-1"))[2][0]
    assert page.texts == ["caf\xe9"] and "not UTF-8" in caplog.text


def test_prices_are_not_points(tmp_path, caplog):
    lines = [QUAD + ",12,000", QUAD + ",1,234,500", QUAD + ",15.90", QUAD + ",TOTAL"]
    name, _, pages = read(sroie(tmp_path, lines))
    assert name == "icdar"
    assert pages[0].texts == ["12,000", "1,234,500", "15.90", "TOTAL"]
    assert all(p.shape == (4, 2) for p in pages[0].polygons)
    assert "2 of 4 lines" in caplog.text


def test_curved_outlines_are_points(tmp_path):
    top = [(x, 50 - x * (100 - x) / 100) for x in range(0, 101, 20)]
    outline = top + [(x, y + 30) for x, y in reversed(top)]
    line = ",".join(f"{v:g}" for point in outline for v in point)
    name, _, pages = read(sroie(tmp_path, [line + ",CURVED", line, QUAD + ",STRAIGHT"]))
    assert name == "polygon"
    assert [len(p) for p in pages[0].polygons] == [12, 12, 4]
    assert pages[0].texts == ["CURVED", "", "STRAIGHT"]


def test_named_layout_wins_over_the_vote(tmp_path):
    folder = sroie(tmp_path, [QUAD + ",12,000"])
    assert read(folder, "polygon")[2][0].polygons[0].shape == (5, 2)
    assert read(folder, "icdar")[2][0].texts == ["12,000"]


@pytest.mark.parametrize("line", ["10,20,110,40,A, B", '10, 20, 110, 40, "A, B"', '10 20 110 40 "A, B"'])
def test_left_top_right_bottom(tmp_path, line):
    name, _, pages = read(sroie(tmp_path, [line]))
    assert name == "ltrb" and pages[0].texts == ["A, B"]
    np.testing.assert_array_equal(pages[0].polygons[0], SQUARE)


def test_mlt_script_is_not_text(tmp_path):
    page = read(sroie(tmp_path, [QUAD + ",Latin,A, B", QUAD + ",Korean,###"]))[2][0]
    assert page.texts == ["A, B", "###"] and page.ignore == [False, True]


def test_bad_lines_are_told_and_most_bad_lines_refused(tmp_path):
    folder = sroie(tmp_path, [QUAD, QUAD, "1,2,3"])
    source = read_source(folder)
    assert source.pages[0].ignore == [False, False, True]
    assert source.findings[0].kind == "bad-line" and "000.csv:3" in source.findings[0].detail
    put(folder / "box" / "000.csv", "hello\nworld\n" + QUAD)
    with pytest.raises(UserError, match="not a text-line annotation"):
        read(folder)


@pytest.mark.parametrize("ids", ["000\n", "000.jpg", "\n000\n\n"])
def test_id_list(tmp_path, ids):
    sroie(tmp_path, [QUAD + ",A"])
    picture(tmp_path / "img" / "001.jpg")
    put(tmp_path / "box" / "001.csv", QUAD)
    _, root, pages = read(put(tmp_path / "train.txt", ids))
    assert root == tmp_path and [p.path for p in pages] == ["img/000.jpg"]


def test_id_list_duplicates_and_unknown_ids(tmp_path):
    sroie(tmp_path, [QUAD])
    with pytest.raises(UserError, match=r"train.txt:2: 000 is listed a second time"):
        read(put(tmp_path / "train.txt", "000\n000\n"))
    with pytest.raises(UserError, match=r"train.txt:2: 9: no label file"):
        read(put(tmp_path / "train.txt", "000\n9\n"))
    with pytest.raises(UserError, match="next to an image folder"):
        read(put(tmp_path / "lonely" / "train.txt", "000\n"))


@pytest.mark.parametrize("label", ["gt_a.txt", "a.txt", "a.csv", "a.jpg.txt"])
def test_labels_beside_images(tmp_path, label):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "unlabelled.jpg")
    put(tmp_path / label, QUAD + ",A")
    source = read_source(tmp_path)
    assert [p.path for p in source.pages] == ["a.jpg"]
    assert [(f.path, f.kind) for f in source.findings] == [("unlabelled.jpg", "no-labels")]


def test_label_without_image_is_told(tmp_path):
    put(sroie(tmp_path, [QUAD]) / "box" / "999.csv", QUAD)
    assert [(f.path, f.kind) for f in read_source(tmp_path).findings] == [("box/999.csv", "orphan")]


def test_layout_vote_needs_numbers():
    with pytest.raises(UserError):
        choose_layout([parse_line("a,b,c,d,e", 1)], "x")


@pytest.mark.parametrize(
    ("line", "layout", "text"),
    [
        ("1,2,3,4, a,b ,", "ltrb", "a,b ,"),
        ("1,2,3,4", "ltrb", None),
        ("1,2,3,4,", "ltrb", ""),
        ("1 2 3 4  two   words ", "ltrb", "two words"),
        ("1 2 3 4 ", "ltrb", None),
        ("1,2,3,4,5,6,7,8,9,12,000", "icdar", "9,12,000"),
        ("1,2,3,4,5,6,7,8,9", "polygon", "9"),
        ("1,2,3,4,5,6,7,x,9", "polygon", "7,x,9"),
        ("1\t2\t3\t4\t5\t6\tx", "polygon", "x"),
    ],
)
def test_the_text_behind_the_numbers_of_a_line(line, layout, text):
    assert interpret(parse_line(line, 1), layout)[1] == text
