import json

import numpy as np
import pytest
from annotation_files import SQUARE, contest, labelme, picture, put, put_json, read

from pipelines.annotations.read import read_source
from pipelines.errors import UserError


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
    for polygon in list(page.polygons)[:3]:
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
    source = read_source(put(tmp_path / "Label.txt", line))
    assert source.format == "paddle" and len(source.pages) == 1
    assert source.pages[0].texts == ["A,\tB", "###", "*"] and source.pages[0].ignore == [False, True, True]
    with pytest.raises(UserError, match="listed twice, by line 1 and by line 2"):
        read(put(tmp_path / "Label.txt", line + line))
    with pytest.raises(UserError, match=r"Label.txt:2"):
        read(put(tmp_path / "Label.txt", line + "img/a.jpg\t[oops"))


def test_broken_json_says_where(tmp_path):
    with pytest.raises(UserError, match="line 2 column 3"):
        read(put(tmp_path / "x.json", '{"images":\n  }'))
    with pytest.raises(UserError, match="nested"):
        read(put(tmp_path / "x.json", "[" * 200000))
