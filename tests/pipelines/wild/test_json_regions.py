"""Regions of JSON files that cannot be read as they are, and marks that they are not to be learnt."""

import json

import numpy as np
import pytest
from wild_sets import FLAT, OTHER, QUAD, opened, pages, put, refused


def coco(tmp_path, *items, categories=None, images=None):
    pages(tmp_path)
    images = images or [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    good = {"id": 90, "image_id": 2, "bbox": [20, 50, 100, 20], "category_id": 1}
    items = [{"id": k, "image_id": 1, "category_id": 1} | item for k, item in enumerate(items, 1)]
    data = {"images": images, "annotations": [*items, good]}
    return put(tmp_path / "c.json", data | ({"categories": categories} if categories else {}))


# COCO files by way of CVAT, Roboflow, labelme2coco: deleted shapes leave empty outlines, dragging leaves two points.
@pytest.mark.parametrize("outline", [[[]], [[10, 20, 110, 40]], [[10, 20, None, 20, 110, 40]], [[], [10, 20]]])
def test_coco_outline_that_is_none_has_its_box(tmp_path, outline):
    path = coco(tmp_path, {"segmentation": outline, "bbox": [10, 20, 100, 20]})
    report, index = opened(path, tmp_path)
    np.testing.assert_array_equal(index.polygons(0)[0], QUAD)
    assert report.counts == {"boxed": 1} and index.counts["boxed"] == 1 and index.num_usable == 2


# A box drawn from the bottom right, as scripts with x2 - x1 in the wrong order write it.
@pytest.mark.parametrize("bounds", [[110, 40, -100, -20], [110, 20, -100, 20], [10, 40, 100, -20]])
def test_coco_box_of_a_negative_side_is_spanned_and_ignored(tmp_path, bounds):
    report, index = opened(coco(tmp_path, {"bbox": bounds}), tmp_path)
    polygon = index.polygons(0)[0]
    assert (polygon.min(0) <= [10, 20]).all() and (polygon.max(0) >= [110, 40]).all()
    assert index.ignore(0).tolist() == [True] and report.counts == {"masked": 1}


# The same beside an outline of two points: both say where it lies.
def test_coco_bad_outline_and_bad_box_are_masked_together(tmp_path):
    item = {"segmentation": [[20, 30, 60, 30]], "bbox": [110, 40, -100, -20]}
    report, index = opened(coco(tmp_path, item), tmp_path)
    assert np.ptp(index.polygons(0)[0], axis=0).tolist() == [100, 20] and report.counts == {"masked": 1}


# numpy writes NaN for a missing coordinate, and Python's json takes it.
def test_coco_box_of_nan_is_masked_where_it_is_known(tmp_path):
    report, index = opened(coco(tmp_path, {"bbox": [10, 20, float("nan"), 20]}), tmp_path)
    assert index.ignore(0).tolist() == [True] and report.counts == {"masked": 1}


# pycocotools writes run-length masks; without a bbox nobody knows where they lie but the mask.
@pytest.mark.parametrize("item", [{}, {"segmentation": []}, {"segmentation": {"counts": "x", "size": [1, 1]}}])
def test_coco_region_that_lies_nowhere_is_refused(tmp_path, item):
    line = refused(coco(tmp_path, item), tmp_path)
    assert "a.jpg: nowhere" in line and "region 1" in line


# Files filtered by hand: images taken out, annotations left in.
def test_coco_some_orphans_are_said_and_most_are_refused(tmp_path):
    path = coco(tmp_path, {"bbox": [10, 20, 100, 20]}, {"bbox": [10, 20, 100, 20], "image_id": 7})
    report, index = opened(path, tmp_path)
    assert report.counts == {"orphan": 1} and index.oddities == "1 orphan"
    items = [{"bbox": [10, 20, 100, 20], "image_id": k} for k in (7, 8)]
    assert "2 of 3 annotations are of images that it does not list" in refused(coco(tmp_path, *items), tmp_path / "x")


# VIA's COCO export writes image ids as strings in one place and as numbers in the other.
def test_coco_ids_may_be_strings_and_numbers(tmp_path):
    path = coco(tmp_path, {"bbox": [10, 20, 100, 20], "image_id": "1"})
    assert opened(path, tmp_path)[1].num_usable == 2


# Sorted keys (json.dump(sort_keys=True)) put the annotations in front of the images.
def test_coco_annotations_may_come_first(tmp_path):
    path = coco(tmp_path, {"bbox": [10, 20, 100, 20]})
    put(path, dict(sorted(json.loads(path.read_text()).items())))
    assert opened(path, tmp_path)[1].num_usable == 2


@pytest.mark.parametrize("flag", [{"ignore": 1}, {"difficult": True}, {"illegible": "true"}, {"iscrowd": 1},
                                  {"text": "#"}, {"text": "#####"}, {"legibility": "illegible"}, {"legible": False},
                                  {"attributes": {"illegibility": True}}])  # fmt: skip
def test_coco_marks_are_ignored(tmp_path, flag):
    index = opened(coco(tmp_path, {"bbox": [10, 20, 100, 20]} | flag), tmp_path)[1]
    assert index.ignore(0).tolist() == [True] and index.counts["ignored"] == 1


@pytest.mark.parametrize("flag", [{"ignore": 0}, {"difficult": "false"}, {"iscrowd": False}, {"text": "#1"}])
def test_coco_marks_that_are_not_set(tmp_path, flag):
    assert opened(coco(tmp_path, {"bbox": [10, 20, 100, 20]} | flag), tmp_path)[1].num_usable == 2


# Roboflow and CVAT projects have several classes; `ignore` is nobody's text.
def test_coco_categories_are_named(tmp_path):
    kinds = [{"id": 1, "name": "text"}, {"id": 2, "name": "logo"}, {"id": 3, "name": "Don't care"}]
    items = [{"bbox": [10, 20, 100, 20], "category_id": 2}, {"bbox": [10, 60, 100, 20], "category_id": 3}]
    report, index = opened(coco(tmp_path, *items, categories=kinds), tmp_path)
    assert index.ignore(0).tolist() == [False, True] and index.oddities == "1 categories"
    assert report.findings[0].detail == "read as text: logo (1), text (1); ignored: Don't care (1)"


def test_coco_one_category_is_nothing_to_say(tmp_path):
    kinds = [{"id": 1, "name": "text"}, {"id": 2, "name": "logo"}]
    assert not opened(coco(tmp_path, {"bbox": [1, 2, 90, 20]}, categories=kinds), tmp_path)[0].findings


# Merged files: both halves count their images from 1.
def test_coco_two_images_of_one_id_are_refused(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]
    line = refused(coco(tmp_path, images=images), tmp_path)
    assert "image 1: two images of this id, a.jpg and b.jpg" in line


def test_coco_one_file_under_two_ids_is_refused(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "./a.jpg"}]
    assert "a.jpg is listed twice, by image 1 and by image 2" in refused(coco(tmp_path, images=images), tmp_path)


# The test file of many sets: images, no annotations.
def test_coco_without_annotations_is_no_set_of_empty_pages(tmp_path):
    pages(tmp_path)
    path = put(tmp_path / "c.json", {"images": [{"id": 1, "file_name": "a.jpg"}]})
    assert "no `annotations`" in refused(path, tmp_path)


def labelme(tmp_path, *shapes):
    pages(tmp_path)
    for name, drawn in (("a", shapes), ("b", [{"label": "text", "points": OTHER, "shape_type": "polygon"}])):
        drawn = [{"label": "text", "shape_type": "polygon"} | shape for shape in drawn]
        put(tmp_path / f"{name}.json", {"version": "5.4.1", "flags": {}, "shapes": drawn, "imagePath": f"{name}.jpg"})
    return tmp_path


# labelme's other tools: a click is a point, two are a line; none of them has an inside.
@pytest.mark.parametrize("kind, points", [("point", [[50, 50]]), ("line", [[10, 20], [110, 20]]),
                                          ("linestrip", [[10, 20], [60, 30], [110, 20]]),
                                          ("polygon", [[10, 20], [110, 40]])])  # fmt: skip
def test_labelme_shapes_without_an_inside_are_masked(tmp_path, kind, points):
    report, index = opened(labelme(tmp_path, {"shape_type": kind, "points": points}), tmp_path)
    assert index.ignore(0).tolist() == [True] and report.counts == {"masked": 1}


def test_labelme_circle_and_mask(tmp_path):
    shapes = [{"shape_type": "circle", "points": [[60, 50], [60, 70]]},
              {"shape_type": "mask", "points": [[10, 20], [110, 40]], "mask": "iVBORw0KGgo="}]  # fmt: skip
    report, index = opened(labelme(tmp_path, *shapes), tmp_path)
    circle, box = index.polygons(0)
    assert len(circle) >= 16 and np.abs(np.hypot(*(circle - [60, 50]).T) - 20).max() < 0.01
    np.testing.assert_array_equal(box, QUAD)
    assert index.num_usable == 3 and not report.findings


# Most people label every shape `text`: no page says "text" that often.
def test_labelme_label_of_all_shapes_is_a_class(tmp_path):
    index = opened(labelme(tmp_path, {"points": QUAD}), tmp_path)[1]
    assert not index.has_texts
    (tmp_path / "x").mkdir()
    index = opened(labelme(tmp_path / "x", {"points": QUAD, "description": "TOTAL"}), tmp_path)[1]
    assert index.texts(0) == ["TOTAL"]


def test_labelme_marks_and_classes(tmp_path):
    shapes = [{"points": QUAD, "label": "illegible"}, {"points": OTHER, "flags": {"difficult": True}}]
    report, index = opened(labelme(tmp_path, *shapes), tmp_path)
    assert index.ignore(0).tolist() == [True, True] and report.counts == {"categories": 1}


def test_labelme_two_files_of_one_image_are_refused(tmp_path):
    labelme(tmp_path, {"points": QUAD})
    put(tmp_path / "a copy.json", {"shapes": [], "imagePath": "a.jpg"})
    assert "a.jpg is listed twice, by file a copy.json and by file a.json" in refused(tmp_path, tmp_path / "x")


# Total-Text marks by one #; where ### is the mark, # is what stands on the page (a receipt's `# 12`).
@pytest.mark.parametrize("mark, ignored", [("###", False), ("A", True)])
def test_one_sign_is_a_mark_only_where_three_are_not(tmp_path, mark, ignored):
    items = [{"bbox": [10, 20, 100, 20], "text": "#"}, {"bbox": [10, 60, 100, 20], "text": mark}]
    assert opened(coco(tmp_path, *items), tmp_path)[1].ignore(0).tolist() == [ignored, not ignored]


def paddle(tmp_path, *lines):
    pages(tmp_path / "train")
    path = tmp_path / "Label.txt"
    path.write_text("".join(f"{name}\t{json.dumps(words)}\n" for name, words in lines), encoding="utf-8")
    return path


# PPOCRLabel leaves words without points when a box was deleted while it was open.
def test_paddle_word_without_points_is_refused(tmp_path):
    path = paddle(tmp_path, ("train/a.jpg", [{"transcription": "A"}]), ("train/b.jpg", [{"points": QUAD}]))
    assert "a.jpg: nowhere" in refused(path, tmp_path)


def test_paddle_marks(tmp_path):
    marks = enumerate(("*", "##", "#", "A"))
    words = [{"transcription": t, "points": [[10 + k, 20], [110, 20], [110, 40]]} for k, t in marks]
    words += [{"transcription": "B", "points": OTHER, "difficult": True}]
    index = opened(paddle(tmp_path, ("train/a.jpg", words[3:]), ("train/b.jpg", words[:3])), tmp_path)[1]
    assert index.ignore(0).tolist() == [False, True] and index.ignore(1).tolist() == [True] * 3


# Two label files written one after the other.
def test_paddle_image_listed_twice_is_refused(tmp_path):
    path = paddle(tmp_path, ("train/a.jpg", [{"points": QUAD}]), ("train/a.jpg", [{"points": OTHER}]))
    assert "train/a.jpg is listed twice, by line 1 and by line 2" in refused(path, tmp_path)


def contest(tmp_path, words):
    pages(tmp_path)
    return put(
        tmp_path / "t.json", {"images": {"a.jpg": {"words": words}, "b.jpg": {"words": {"1": {"points": QUAD}}}}}
    )


def test_contest_marks_and_short_outlines(tmp_path):
    words = {"1": {"points": QUAD, "illegibility": True}, "2": {"points": OTHER, "illegibility": False},
             "3": {"points": QUAD[:2]}, "4": {"points": OTHER, "transcription": "##"}}  # fmt: skip
    report, index = opened(contest(tmp_path, words), tmp_path)
    assert index.ignore(0).tolist() == [True, False, True, True] and report.counts["masked"] == 1


def test_contest_word_without_points_is_refused(tmp_path):
    assert "a.jpg: nowhere" in refused(contest(tmp_path, {"1": {"transcription": "A"}}), tmp_path)


def test_flat_outline_with_a_box_is_the_box(tmp_path):
    assert opened(coco(tmp_path, {"polygon": FLAT, "bbox": [1, 2, 3, 4]}), tmp_path)[1].num_usable == 2


# PPOCRLabel writes a placeholder into every new box; converters write the class into every word.
@pytest.mark.parametrize("said, kept", [("待识别", False), ("text", False), (None, True)])
def test_paddle_text_of_all_words_is_none(tmp_path, said, kept):
    words = [{"transcription": said or f"W{k}", "points": [[10 + k, 20], [110, 20], [110, 40]]} for k in range(11)]
    index = opened(paddle(tmp_path, ("train/a.jpg", words), ("train/b.jpg", words[:2])), tmp_path)[1]
    assert index.has_texts == kept and index.num_usable == 13


# A label file that an editor of Windows saved: one line in Latin-1 among lines of UTF-8.
def test_paddle_line_that_is_no_utf8_keeps_its_regions(tmp_path):
    path = paddle(tmp_path, ("train/a.jpg", [{"transcription": "A", "points": QUAD}]))
    line = f'train/b.jpg\t[{{"transcription": "Gebühr", "points": {QUAD}}}]\n'
    path.write_bytes(path.read_bytes() + line.encode("latin-1"))
    assert opened(path, tmp_path)[1].texts(1) == ["Gebühr"]
