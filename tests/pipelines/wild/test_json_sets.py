"""The JSON formats people have, two pages each, laid out as their projects publish them."""

import json

import numpy as np
import pytest
from wild_sets import FLAT, OTHER, QUAD, opened, pages, put, refused


def corners(points):
    return {f"{axis}{k}": value for k, point in enumerate(points, 1) for axis, value in zip("xy", point, strict=True)}


def word(points, text):
    return {"quad": corners(points), "is_key": 0, "row_id": 1, "text": text}


def cord(tmp_path, **more):
    pages(tmp_path / "train" / "image", "receipt_00000.png", "receipt_00001.png")
    for k in range(2):
        line = {"words": [word(QUAD, "TOTAL"), word(OTHER, "60.000")], "category": "total.total_price", "group_id": 3}
        data = {"meta": {"image_size": {"width": 200, "height": 100}}, "valid_line": [line], "dontcare": []} | more
        put(tmp_path / "train" / "json" / f"receipt_0000{k}.json", data)
    return tmp_path / "train"


# CORD (clovaai/cord): train/json/receipt_00000.json beside train/image/receipt_00000.png.
def test_cord(tmp_path):
    report, index = opened(cord(tmp_path), tmp_path)
    assert report.format == "cord" and index.relative_path(1) == "receipt_00001.png"
    np.testing.assert_array_equal(index.polygons(0)[0], QUAD)
    assert index.texts(0) == ["TOTAL", "60.000"] and index.num_usable == 4 and not report.findings


# CORD marks what is no word of the receipt in two lists of their own, with or without a text.
def test_cord_what_is_not_to_be_read_is_ignored(tmp_path):
    folder = cord(tmp_path, dontcare=[[corners([[1, 1], [9, 1], [9, 9], [1, 9]])]],
                  repeating_symbol=[[word([[1, 90], [90, 90], [90, 99], [1, 99]], "-----")]])  # fmt: skip
    index = opened(folder, tmp_path)[1]
    assert index.ignore(0).tolist() == [False, False, True, True]
    assert opened(folder / "json", tmp_path)[1].num_usable == 4


def test_cord_quad_without_a_corner_is_masked(tmp_path):
    line = {"words": [{"quad": corners(QUAD[:3]), "text": "A"}, word(OTHER, "B")]}
    assert opened(cord(tmp_path, valid_line=[line]), tmp_path)[0].counts == {"masked": 2}


def funsd(tmp_path, *entries):
    folder = tmp_path / "training_data"
    pages(folder / "images", "0000971160.png", "0000989556.png")
    words = [{"box": [10, 20, 60, 40], "text": "Date:"}, {"box": [70, 20, 150, 40], "text": "1999"}]
    both = [{"box": [10, 20, 150, 40], "text": "Date: 1999", "label": "question", "id": 0, "words": words}]
    for name in ("0000971160", "0000989556"):
        put(folder / "annotations" / f"{name}.json", {"form": [*both, *entries]})
    return folder


# FUNSD (guillaumejaume.github.io/FUNSD): training_data/annotations beside training_data/images.
def test_funsd(tmp_path):
    folder = funsd(tmp_path)
    for source in (folder, folder / "annotations"):
        report, index = opened(source, tmp_path)
        assert report.format == "funsd" and index.texts(0) == ["Date:", "1999"] and index.num_usable == 4
        np.testing.assert_array_equal(index.polygons(0)[0], [[10, 20], [60, 20], [60, 40], [10, 40]])


# FUNSD has boxes without a text (check marks, signatures), and entries without words.
def test_funsd_boxes_without_a_text(tmp_path):
    more = [{"box": [10, 50, 30, 70], "text": "", "words": [{"box": [10, 50, 30, 70], "text": ""}]},
            {"box": [40, 50, 90, 70], "text": "Name", "words": []},
            {"box": [90, 90, 50, 70], "text": "back", "words": []}]  # fmt: skip
    report, index = opened(funsd(tmp_path, *more), tmp_path)
    assert index.ignore(0).tolist() == [False, False, True, False, True] and report.counts == {"masked": 2}


def test_page_files_without_their_image_are_refused(tmp_path):
    folder = funsd(tmp_path)
    (folder / "images" / "0000971160.png").unlink()
    assert "0000971160.png: missing" in refused(folder, tmp_path)
    (folder / "images" / "0000989556.png").unlink()
    assert "no image 0000971160.png or .jpg" in refused(folder, tmp_path)


# WildReceipt (as MMOCR publishes it): train.txt beside image_files/, label 0 = `Ignore` in its class_list.txt.
def test_wildreceipt(tmp_path):
    names = [f"image_files/Image_{k}/1/x.jpeg" for k in range(2)]
    pages(tmp_path, *names)
    items = [{"box": FLAT, "text": "SAFEWAY", "label": 1},
             {"box": [20.0, 50.0, 150.0, 52.0, 150.0, 80.0, 20.0, 78.0], "text": "#", "label": 0}]  # fmt: skip
    lines = [{"file_name": name, "height": 100, "width": 200, "annotations": items} for name in names]
    report, index = opened(put(tmp_path / "train.txt", *lines), tmp_path)
    assert report.format == "wildreceipt" and index.texts(1) == ["SAFEWAY", "#"]
    assert index.ignore(0).tolist() == [False, True] and not report.findings
    (tmp_path / "class_list.txt").write_text("0 Ignore\n1 Store_name_value\n")  # no labels
    assert opened(tmp_path, tmp_path)[0].format == "wildreceipt"
    line = refused(put(tmp_path / "train.txt", *lines, lines[0]), tmp_path)
    assert "listed twice, by line 1 and by line 3" in line


def mmocr_item(**more):
    return {"iscrowd": 0, "category_id": 1, "bbox": [10, 20, 100, 20], "segmentation": [FLAT]} | more


# MMOCR 0.x: instances_training.txt beside imgs/, one page a line; the first page may have no text.
def test_mmocr_lines(tmp_path):
    pages(tmp_path / "imgs" / "training", "img_1.jpg", "img_2.jpg")
    lines = [{"file_name": "training/img_1.jpg", "height": 100, "width": 200, "annotations": []},
             {"file_name": "training/img_2.jpg", "height": 100, "width": 200,
              "annotations": [mmocr_item(), mmocr_item(iscrowd=1, segmentation=[[20, 50, 90, 50, 90, 70, 20, 70]]),
                              mmocr_item(segmentation=[[]], bbox=[100, 60, 50, 20])]}]  # fmt: skip
    report, index = opened(put(tmp_path / "instances_training.txt", *lines), tmp_path)
    assert report.format == "mmocr-lines" and index.ignore(1).tolist() == [False, True, False]
    assert report.counts == {"boxed": 1}


# MMOCR 0.x: instances_training.json, COCO with one category, its images in imgs/.
def test_mmocr_json(tmp_path):
    pages(tmp_path / "imgs" / "training", "img_1.jpg", "img_2.jpg")
    images = [
        {"id": k, "file_name": f"training/img_{k}.jpg", "height": 100, "width": 200, "segm_file": ""} for k in (1, 2)
    ]
    data = {"images": images, "categories": [{"id": 1, "name": "text"}],
            "annotations": [mmocr_item(id=k, image_id=k) for k in (1, 2)]}  # fmt: skip
    report, index = opened(put(tmp_path / "instances_training.json", data), tmp_path)
    assert report.format == "coco" and index.root == tmp_path / "imgs" and not report.findings


# MMOCR 1.x (dataset preparer): textdet_train.json beside textdet_imgs/.
def test_mmocr_1(tmp_path):
    pages(tmp_path / "textdet_imgs" / "train", "img_1.jpg", "img_2.jpg")
    instances = [{"polygon": FLAT, "bbox": [10, 20, 110, 40], "bbox_label": 0, "ignore": False, "text": "A"},
                 {"polygon": [20, 50, 150, 52, 150, 80, 20, 78], "bbox_label": 0, "ignore": True, "text": "###"},
                 {"polygon": [1, 2], "bbox": [160, 2, 190, 12], "bbox_label": 0, "ignore": False}]  # fmt: skip
    entries = [{"img_path": f"textdet_imgs/train/img_{k}.jpg", "height": 100, "width": 200, "instances": instances}
               for k in (1, 2)]  # fmt: skip
    meta = {"dataset_type": "TextDetDataset", "task_name": "textdet", "category": [{"id": 0, "name": "text"}]}
    path = put(tmp_path / "textdet_train.json", {"metainfo": meta, "data_list": entries})
    report, index = opened(path, tmp_path)
    assert report.format == "mmocr" and index.ignore(0).tolist() == [False, True, False]
    np.testing.assert_array_equal(index.polygons(0)[2], [[160, 2], [190, 2], [190, 12], [160, 12]])
    assert report.counts == {"boxed": 2}


# docTR (references/detection): labels.json beside images/, polygons as a list, or by class.
@pytest.mark.parametrize("polygons", [[QUAD, OTHER], {"words": [QUAD, OTHER]}])
def test_doctr(tmp_path, polygons):
    pages(tmp_path / "images")
    entry = {"img_dimensions": [100, 200], "img_hash": "0" * 64, "polygons": polygons}
    report, index = opened(put(tmp_path / "labels.json", {"a.jpg": entry, "b.jpg": entry}), tmp_path)
    assert report.format == "doctr" and index.num_usable == 4 and not report.findings
    np.testing.assert_array_equal(index.polygons(1)[1], OTHER)


def test_doctr_classes_are_named(tmp_path):
    pages(tmp_path / "images")
    entry = {"img_dimensions": [100, 200], "polygons": {"words": [QUAD], "illegible": [OTHER], "logo": []}}
    report, index = opened(put(tmp_path / "labels.json", {"a.jpg": entry, "b.jpg": entry}), tmp_path)
    assert index.ignore(0).tolist() == [False, True] and report.counts == {"categories": 1}


def via(tmp_path, *regions, project=True):
    pages(tmp_path)
    good = {"shape_attributes": {"name": "rect", "x": 20, "y": 50, "width": 100, "height": 20}, "region_attributes": {}}
    data = {f"{name}1234": {"filename": name, "size": 1234, "regions": drawn, "file_attributes": {}}
            for name, drawn in (("a.jpg", list(regions)), ("b.jpg", [good]))}  # fmt: skip
    settings = {
        "_via_settings": {"ui": {}},
        "_via_img_metadata": data,
        "_via_attributes": {},
        "_via_data_format_version": "2.0.10",
    }
    return put(tmp_path / "via.json", settings if project else data)


def region(name, about=None, **shape):
    return {"shape_attributes": {"name": name, **shape}, "region_attributes": about or {}}


XS, YS = [x for x, _ in QUAD], [y for _, y in QUAD]


# VGG Image Annotator 2: a saved project, or `Export annotations (as json)`.
@pytest.mark.parametrize("project", [True, False])
def test_via(tmp_path, project):
    shapes = [region("polygon", {"text": "A"}, all_points_x=XS, all_points_y=YS),
              region("rect", {"text": "###"}, x=10, y=50, width=100, height=20),
              region("circle", {"text": "B"}, cx=150, cy=50, r=20),
              region("ellipse", {"text": "C"}, cx=150, cy=50, rx=40, ry=10, theta=1.5707963)]  # fmt: skip
    report, index = opened(via(tmp_path, *shapes, project=project), tmp_path)
    assert report.format == "via" and index.texts(0) == ["A", "###", "B", "C"]
    assert index.ignore(0).tolist() == [False, True, False, False]
    np.testing.assert_array_equal(index.polygons(0)[0], QUAD)
    np.testing.assert_allclose(np.ptp(index.polygons(0)[3], axis=0), [20, 80], atol=1e-3)


# VIA's other tools, and boxes drawn backwards by a script.
@pytest.mark.parametrize("shape", [region("point", cx=50, cy=50), region("rect", x=90, y=50, width=-50, height=10),
                                   region("polyline", all_points_x=XS, all_points_y=YS)])  # fmt: skip
def test_via_shapes_without_an_inside_are_masked(tmp_path, shape):
    assert opened(via(tmp_path, shape), tmp_path)[0].counts == {"masked": 1}


# VIA 1 writes regions as an object; a class attribute is no transcription; checkboxes are objects.
def test_via_1_and_its_attributes(tmp_path):
    shape = {"x": 10, "y": 20, "width": 100, "height": 20}
    about = [{"type": "text"}, {"type": "text", "marks": {"illegible": True}}, {"type": "Don't care"}]
    regions = [region("rect", one, **shape | {"y": 20 + 25 * k}) for k, one in enumerate(about)]
    path = via(tmp_path, project=False)
    data = json.loads(path.read_text())
    data["a.jpg1234"]["regions"] = {str(k): one for k, one in enumerate(regions)}
    report, index = opened(put(path, data), tmp_path)
    assert index.ignore(0).tolist() == [False, True, True] and not index.has_texts
    assert report.counts == {"categories": 1}


def result(key, kind, **value):
    return {"id": key, "type": kind, "from_name": kind, "to_name": "image", "original_width": 200,
            "original_height": 100, "image_rotation": 0, "value": value}  # fmt: skip


def studio(tmp_path, *results, name="a.jpg", address="/data/upload/1/0a1b2c3d-{}", **task):
    pages(tmp_path / "images")
    box = result("z", "rectanglelabels", x=10, y=50, width=50, height=20, rotation=0, rectanglelabels=["Text"])
    tasks = [{"id": k, "data": {"ocr": address.format(n)}, "annotations": [{"result": list(r)}]}
             for k, (n, r) in enumerate(((name, results), ("b.jpg", [box])), 1)]  # fmt: skip
    tasks[0] |= task
    return put(tmp_path / "project-1.json", tasks)


# Label Studio's OCR template: box, label and text of one region are three results of one id, in per cent.
@pytest.mark.parametrize("address", ["/data/upload/1/0a1b2c3d-{}", "/data/local-files/?d=images/{}",
                                     "http://host:8080/data/upload/1/0a1b2c3d-{}", "s3://bucket/set/{}"])  # fmt: skip
def test_label_studio(tmp_path, address):
    box = {"x": 5, "y": 20, "width": 50, "height": 20, "rotation": 0}
    results = [result("k", "rectangle", **box), result("k", "labels", **box, labels=["Text"]),
               result("k", "textarea", **box, text=["TOTAL"]),
               result("m", "polygonlabels", points=[[10, 50], [75, 52], [75, 80], [10, 78]],
                      polygonlabels=["Ignore"])]  # fmt: skip
    report, index = opened(studio(tmp_path, *results, address=address), tmp_path)
    assert report.format == "label-studio" and index.texts(0) == ["TOTAL", ""]
    np.testing.assert_allclose(index.polygons(0)[0], QUAD)
    np.testing.assert_allclose(index.polygons(0)[1], OTHER)
    assert index.ignore(0).tolist() == [False, True] and report.counts == {"categories": 1}


def test_label_studio_rotation_goes_round_the_first_corner_in_pixels(tmp_path):
    turned = result("k", "rectanglelabels", x=50, y=20, width=20, height=40, rotation=90, rectanglelabels=["Text"])
    index = opened(studio(tmp_path, turned), tmp_path)[1]
    np.testing.assert_allclose(index.polygons(0)[0], [[100, 20], [100, 60], [60, 60], [60, 20]], atol=1e-4)


# Tasks that nobody did are in the export as well, and those that several did.
def test_label_studio_annotations_of_a_task(tmp_path):
    one = {"result": [result("k", "rectanglelabels", x=5, y=20, width=50, height=20, rectanglelabels=["Text"])]}
    for made, kind in (([], "no-labels"), ([{"result": [], "was_cancelled": True}], "no-labels"),
                       ([{"result": []}, one | {"ground_truth": True}], "annotators")):  # fmt: skip
        report, index = opened(studio(tmp_path, annotations=made), tmp_path)
        assert report.counts == {kind: 1} and index.num_usable == (2 if kind == "annotators" else 1)


def test_label_studio_what_is_not_read_is_refused(tmp_path):
    brush = result("k", "brushlabels", format="rle", rle=[0, 1], brushlabels=["Text"])
    assert "nowhere" in refused(studio(tmp_path, brush), tmp_path)
    turned = result("k", "rectanglelabels", x=1, y=2, width=3, height=4, rectanglelabels=["T"]) | {"image_rotation": 90}
    assert "image_rotation" in refused(studio(tmp_path, turned), tmp_path)
    small = [{"ocr": "a.jpg", "bbox": [{"x": 1, "y": 2, "width": 3, "height": 4, "original_width": 200}]}]
    assert "JSON-MIN" in refused(put(tmp_path / "m.json", small), tmp_path)
    point = result("k", "keypointlabels", x=50, y=50, width=0.5, keypointlabels=["Text"])
    assert opened(studio(tmp_path, point), tmp_path)[0].counts == {"masked": 1}


# COCO 2017's layout: annotations/instances_train2017.json beside train2017/ and val2017/ with files of one name.
def test_images_beside_the_annotation_folder(tmp_path):
    pages(tmp_path / "train2017", "000001.jpg", "000002.jpg")
    pages(tmp_path / "val2017", "000001.jpg", "000002.jpg")
    items = [{"id": k, "image_id": k, "bbox": [10, 20, 100, 20]} for k in (1, 2)]
    data = {"images": [{"id": k, "file_name": f"00000{k}.jpg"} for k in (1, 2)], "annotations": items}
    for split in ("train2017", "val2017"):
        path = put(tmp_path / "annotations" / f"instances_{split}.json", data)
        assert opened(path, tmp_path)[1].root == tmp_path / split
    line = refused(put(tmp_path / "annotations" / "all.json", data), tmp_path)
    assert str(tmp_path / "train2017") in line and str(tmp_path / "val2017") in line and "--root" in line


# COCO-Text: cocotext.v2.json beside train2014/. TextOCR is the same with ids of letters, and `points`.
@pytest.mark.parametrize("key", ["mask", "points"])
def test_coco_text_beside_train2014(tmp_path, key):
    names = [f"COCO_train2014_00000000000{k}.jpg" for k in (1, 2)]
    pages(tmp_path / "train2014", *names)
    images = {f"id{k}": {"id": f"id{k}", "file_name": name, "set": "train"} for k, name in enumerate(names)}
    items = {
        str(k): {"id": k, "image_id": f"id{k}", key: FLAT, "bbox": [1, 2, 3, 4], "utf8_string": "A"} for k in (0, 1)
    }
    index = opened(put(tmp_path / "cocotext.v2.json", {"cats": {}, "anns": items, "imgs": images}), tmp_path)[1]
    assert index.root == tmp_path / "train2014" and index.num_usable == 2


# PPOCRLabel's folder: images, Label.txt with FOLDER/name.jpg, fileState.txt, rec_gt.txt, Cache.cach, crop_img/.
def test_ppocrlabel_folder(tmp_path):
    folder = tmp_path / "shop"
    pages(folder)
    lines = [f"shop/{name}\t" + json.dumps([{"transcription": "A", "points": QUAD, "difficult": False}])
             for name in ("a.jpg", "b.jpg")]  # fmt: skip
    (folder / "Label.txt").write_text("\n".join(lines))
    (folder / "Cache.cach").write_text(lines[0])
    (folder / "fileState.txt").write_text(f"{folder}/a.jpg\t1\n")
    (folder / "rec_gt.txt").write_text("crop_img/a_crop_0.jpg\tA\n")
    for source in (folder, folder / "Label.txt"):
        report, index = opened(source, tmp_path)
        assert report.format == "paddle" and index.root == tmp_path and index.num_usable == 2


# A folder of a dataset as it was unpacked: annotations/instances.json and images/.
def test_folder_with_one_json_in_its_annotation_folder(tmp_path):
    pages(tmp_path / "set" / "images")
    data = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [10, 20, 100, 20]}]}  # fmt: skip
    put(tmp_path / "set" / "annotations" / "instances.json", data)
    assert opened(tmp_path / "set", tmp_path)[0].format == "coco"


# A script's own file under a suffix of its own, and the formats by name.
def test_named_formats_agree_with_the_content(tmp_path):
    path = via(tmp_path, region("rect", x=10, y=20, width=100, height=20))
    assert opened(path, tmp_path, "via", tmp_path)[1].num_usable == 2
    assert "content is via" in refused(path, tmp_path / "x", "doctr")


# A folder from a Mac by way of a Windows camera: ._ files beside everything, accents in two letters, .JPG.
def test_names_that_are_spelled_otherwise(tmp_path):
    folder = funsd(tmp_path)
    (folder / "images" / "0000971160.png").rename(folder / "images" / "Pru\u0308fung.PNG")
    (folder / "annotations" / "0000971160.json").rename(folder / "annotations" / "Pr\u00fcfung.json")
    for place, name in (("images", "._0000989556.png"), ("annotations", "._0000989556.json")):
        (folder / place / name).write_bytes(b"\0\5\x16\7")
    assert opened(folder, tmp_path)[1].num_usable == 4
    pages(tmp_path / "shop" / "train2017", "A.JPG", "B.JPG")
    data = {"images": [{"id": 1, "file_name": "A.jpg"}, {"id": 2, "file_name": "B.jpg"}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [10, 20, 100, 20]}]}  # fmt: skip
    index = opened(put(tmp_path / "shop" / "annotations" / "all.json", data), tmp_path)[1]
    assert index.root == tmp_path / "shop" / "train2017" and index.relative_path(0) == "A.JPG"
