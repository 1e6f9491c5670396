import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.annotations.read import FORMATS, read_source
from pipelines.annotations.text_formats import choose_layout, interpret, parse_line
from pipelines.errors import UserError

QUAD = "10,20,110,20,110,40,10,40"
SQUARE = [[10, 20], [110, 20], [110, 40], [10, 40]]


def read(*args, **options):
    """(format, image root, pages) of a source."""
    made = read_source(*args, **options)
    return made.format, made.root, made.pages


def picture(path, size=(200, 100)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "white").save(path)


def put(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def put_json(path, data):
    return put(path, json.dumps(data))


def contest(words, name="a.jpg", **size):
    return {"images": {name: {"words": words, **size}}}


def test_contest_reads_points_flags_and_sizes(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    words = {
        "0001": {"points": SQUARE, "orientation": "Horizontal", "language": ["ko"], "transcription": "가"},
        "0002": {"points": SQUARE, "illegibility": True},
        "0003": {"points": SQUARE, "transcription": "###"},
    }
    path = put_json(tmp_path / "train.json", contest(words, img_w=200, img_h=100))
    name, root, pages = read(path)
    assert (name, root) == ("contest", tmp_path / "images")
    assert (pages[0].path, pages[0].width, pages[0].height) == ("a.jpg", 200, 100)
    assert pages[0].ignore == [False, True, True]
    assert pages[0].texts == ["가", "", "###"]
    np.testing.assert_array_equal(pages[0].polygons[0], np.array(SQUARE, np.float32))


@pytest.mark.parametrize("place", ["images", "images/train", "."])
def test_contest_finds_its_images(tmp_path, place):
    picture(tmp_path / place / "a.jpg")
    path = put_json(tmp_path / "train.json", contest({"1": {"points": SQUARE}}))
    assert read(path)[1] == (tmp_path / place).resolve()


def test_contest_root_is_named_or_refused(tmp_path):
    picture(tmp_path / "elsewhere" / "a.jpg")
    path = put_json(tmp_path / "set" / "train.json", contest({}))
    assert read(path, root=tmp_path / "elsewhere")[1] == tmp_path / "elsewhere"
    with pytest.raises(UserError, match=r"a\.jpg.*--root"):
        read(path)
    with pytest.raises(UserError, match="no such folder"):
        read(path, root=tmp_path / "nowhere")


def test_contest_without_words_has_no_texts(tmp_path):
    picture(tmp_path / "a.jpg")
    path = put_json(tmp_path / "test.json", contest(None, img_w=200, img_h=100))
    page = read(path)[2][0]
    assert page.polygons == [] and page.texts is None


def test_a_key_twice_in_the_json_is_told(tmp_path):
    picture(tmp_path / "a.jpg")
    path = put(tmp_path / "x.json", '{"images": {"a.jpg": {"words": {}}, "a.jpg": {"words": {}}}}')
    assert [(f.kind, f.detail) for f in read_source(path).findings] == [("duplicate-key", "a.jpg")]


def sroie(tmp_path, lines, images="img", labels="box", suffix=".csv", encoding="utf-8"):
    picture(tmp_path / images / "000.jpg")
    put(tmp_path / labels / f"000{suffix}", "\n".join(lines), encoding)
    return tmp_path


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
    assert len(source.pages[0].polygons) == 2
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
    source = read_source(put(tmp_path / "train.txt", "000\n000\n"))
    assert len(source.pages) == 1 and source.findings[0].kind == "duplicate"
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


def coco_file(tmp_path, annotations):
    picture(tmp_path / "a.jpg")
    images = [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 100}]
    return put_json(tmp_path / "c.json", {"images": images, "annotations": annotations})


def test_coco(tmp_path):
    flat = [10, 20, 110, 20, 110, 40, 10, 40]
    path = coco_file(
        tmp_path,
        [
            {"id": 1, "image_id": 7, "segmentation": [flat], "bbox": [0, 0, 1, 1], "attributes": {"text": "A"}},
            {"id": 2, "image_id": 7, "bbox": [10, 20, 100, 20], "iscrowd": 1},
            {"id": 3, "image_id": 7, "segmentation": {"counts": "x", "size": [1, 1]}, "bbox": [10, 20, 100, 20]},
            {"id": 4, "image_id": 7, "segmentation": [[0, 0, 1, 0, 1, 1], [9, 9, 8, 9, 9, 8]]},
            {"id": 5, "image_id": 8, "bbox": [0, 0, 1, 1]},
        ],
    )
    source = read_source(path)
    page = source.pages[0]
    assert source.format == "coco" and (page.width, page.height) == (200, 100)
    for polygon in page.polygons[:3]:
        np.testing.assert_array_equal(polygon, SQUARE)
    assert len(page.polygons[3]) == 5  # hull of the two triangles
    assert page.ignore == [False, True, False, False] and page.texts == ["A", "", "", ""]
    assert [f.kind for f in source.findings] == ["orphan"]


def test_coco_text(tmp_path):
    picture(tmp_path / "t.jpg")
    images = {"1": {"id": 1, "file_name": "t.jpg", "width": 200, "height": 100, "set": "train"}}
    images["2"] = {"id": 2, "file_name": "u.jpg", "width": 200, "height": 100, "set": "test"}
    mask = [10, 20, 110, 20, 110, 40, 10, 40]
    annotations = {
        "5": {"id": 5, "image_id": 1, "mask": mask, "legibility": "legible", "utf8_string": "A"},
        "6": {"id": 6, "image_id": 1, "bbox": [10, 20, 100, 20], "legibility": "illegible"},
    }
    data = {"imgs": images, "anns": annotations, "cats": {}}
    _, _, pages = read(put_json(tmp_path / "cocotext.v2.json", data))
    assert len(pages) == 1 and pages[0].texts == ["A", ""] and pages[0].ignore == [False, True]
    np.testing.assert_array_equal(pages[0].polygons[1], SQUARE)


def labelme(image, shapes):
    return {"imagePath": image, "imageWidth": 200, "imageHeight": 100, "shapes": shapes}


def test_labelme(tmp_path):
    picture(tmp_path / "a.jpg")
    shapes = [
        {"label": "A", "points": SQUARE, "shape_type": "polygon"},
        {"label": "text", "description": "B", "points": [[110, 40], [10, 20]], "shape_type": "rectangle"},
        {"label": "###", "points": SQUARE},
        {"label": "C", "points": SQUARE, "flags": {"ignore": True}},
    ]
    put_json(tmp_path / "a.json", labelme("a.jpg", shapes))
    for source in (tmp_path, tmp_path / "a.json"):
        name, _, pages = read(source)
        assert name == "labelme" and pages[0].texts == ["A", "B", "###", "C"]
        assert pages[0].ignore == [False, False, True, True]
        np.testing.assert_array_equal(pages[0].polygons[1], SQUARE)


def test_labelme_images_in_a_sibling_folder_need_a_root_above(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    put_json(tmp_path / "json" / "a.json", labelme("..\\images\\a.jpg", []))
    with pytest.raises(UserError, match="leaves the image folder"):
        read(tmp_path / "json")
    assert read(tmp_path / "json", root=tmp_path)[2][0].path == "images/a.jpg"


def test_paddle(tmp_path):
    picture(tmp_path / "img" / "a.jpg")
    words = [{"transcription": t, "points": SQUARE} for t in ("A,\tB", "###", "*")]
    line = f"img/a.jpg\t{json.dumps(words)}\n"
    source = read_source(put(tmp_path / "Label.txt", line + line))
    assert source.format == "paddle" and len(source.pages) == 1
    assert source.pages[0].texts == ["A,\tB", "###", "*"] and source.pages[0].ignore == [False, True, True]
    assert [f.kind for f in source.findings] == ["duplicate"]
    with pytest.raises(UserError, match=r"Label.txt:2"):
        read(put(tmp_path / "Label.txt", line + "img/a.jpg\t[oops"))


@pytest.mark.parametrize("bad", ["../a.jpg", "/etc/passwd", "C:\\a.jpg", "..\\a.jpg", "x/../../a.jpg", "", "a\0.jpg"])
@pytest.mark.parametrize("kind", ["contest", "coco", "labelme", "paddle", "list"])
def test_paths_cannot_leave_the_root(tmp_path, kind, bad):
    if kind == "contest":
        path = put_json(tmp_path / "x.json", contest({}, bad))
    elif kind == "coco":
        path = put_json(tmp_path / "x.json", {"images": [{"id": 1, "file_name": bad}], "annotations": []})
    elif kind == "labelme":
        path = put_json(tmp_path / "x.json", labelme(bad, []))
    elif kind == "paddle":
        path = put(tmp_path / "x.txt", f"ok.jpg\t[]\n{bad}\t[]")
    else:
        if not bad:
            pytest.skip("an empty line of an id list is no id")
        sroie(tmp_path, [QUAD])
        path = put(tmp_path / "x.txt", f"000\n{bad}")
    with pytest.raises(UserError, match=r"image path|binary"):
        read(path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("x.json", '{"hello": 1}'),
        ("x.json", "[1, 2]"),
        ("x.txt", "hello, world"),
        ("x.dat", "\0\1\2\3"),
        ("x.txt", '{"hello": 1}'),
    ],
)
def test_unknown_content_lists_the_formats(tmp_path, name, text):
    with pytest.raises(UserError) as caught:
        read(put(tmp_path / name, text))
    assert all(name in str(caught.value) for name in FORMATS) and "\n" not in str(caught.value)


def test_a_page_of_boxes_is_not_a_data_set(tmp_path):
    with pytest.raises(UserError, match="one page; name the folder"):
        read(put(tmp_path / "000.csv", QUAD + ",A"))


def test_broken_json_says_where(tmp_path):
    with pytest.raises(UserError, match="line 2 column 3"):
        read(put(tmp_path / "x.json", '{"images":\n  }'))
    with pytest.raises(UserError, match="nested"):
        read(put(tmp_path / "x.json", "[" * 200000))


def test_nothing_to_read(tmp_path):
    for make in (lambda: put(tmp_path / "e.txt", ""), lambda: put_json(tmp_path / "e.json", {"images": {}})):
        with pytest.raises(UserError, match="no pages"):
            read(make())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pages"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match="allowed is auto"):
        read(tmp_path, "yolo")
    with pytest.raises(UserError, match="several annotation files"):
        read(tmp_path)


def test_wrong_named_format_is_refused(tmp_path):
    picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="content is contest"):
        read(put_json(tmp_path / "x.json", contest({})), "coco")


def test_layout_vote_needs_numbers():
    with pytest.raises(UserError):
        choose_layout([parse_line("a,b,c,d,e", 1)], "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["words", "points", "img_w", "bbox", "id", "image_id", "file_name", "segmentation", "label"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(kind=st.sampled_from(["contest", "coco", "imgs", "labelme"]), first=JSON, second=JSON)
def test_any_json_is_read_or_refused(tmp_path_factory, kind, first, second):
    data = {
        "contest": {"images": {"a.jpg": first, "b.jpg": {"words": {"1": second}}}},
        "coco": {"images": [{"id": 1, "file_name": "a.jpg"}, first], "annotations": [second, {"image_id": first}]},
        "imgs": {"imgs": {"1": {"id": 1, "file_name": "a.jpg"}}, "anns": {"1": {"image_id": 1, "bbox": first}}},
        "labelme": {"imagePath": "a.jpg", "shapes": [first, {"points": second}]},
    }[kind]
    folder = tmp_path_factory.mktemp("fuzz")
    path = put_json(folder / "x.json", data)
    try:
        pages = read(path, root=folder)[2]
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(p.dtype == np.float32 and p.ndim == 2 for page in pages for p in page.polygons)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | st.text('0123456789.,-\t\n#[]{}":ae ', max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    picture(folder / "img" / "000.png", (8, 8))
    (folder / "box").mkdir()
    (folder / "box" / "000.txt").write_bytes(data)
    (folder / "train.txt").write_bytes(data)
    for source in (folder, folder / "train.txt"):
        try:
            read(source)
        except UserError as error:
            assert "\n" not in str(error)


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
