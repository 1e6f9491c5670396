"""Where public sets keep their images and text labels: found, or the choice is named."""

import pytest
from wild_text import SIZE, judge, outlines, pages_of, refusal

from tests.support.annotation_files import picture, put

QUAD = "10,20,110,20,110,40,10,40"
OTHER = "10,60,110,60,110,80,10,80"


def names(index):
    return [index.relative_path(i) for i in range(len(index))]


def ic15(folder, *splits):
    """ICDAR 2015, challenge 4: the zip files unpacked beside each other, gt_img_1.txt for img_1.jpg."""
    gts = {"training": "ch4_training_localization_transcription_gt", "test": "Challenge4_Test_Task1_GT"}
    for split in splits:
        for k in (1, 2):
            picture(folder / f"ch4_{split}_images" / f"img_{k}.jpg", SIZE)
            put(folder / gts[split] / f"gt_img_{k}.txt", f"{QUAD},{split}\n{OTHER},###", "utf-8-sig")
    return folder


def test_icdar_2015_as_it_is_unpacked(tmp_path):
    _, index = judge(ic15(tmp_path / "ic15", "training"))
    assert names(index) == ["ch4_training_images/img_1.jpg", "ch4_training_images/img_2.jpg"]
    assert index.texts(0) == ["training", "###"] and index.ignore(0).tolist() == [False, True]


def test_icdar_2015_with_both_splits_asks_for_one(tmp_path):
    folder = ic15(tmp_path / "ic15", "training", "test")
    assert "several sets of pages; name one of" in refusal(folder)
    for split in ("training", "test"):
        _, index = judge(folder / f"ch4_{split}_images")
        assert index.texts(0)[0] == split and names(index) == ["img_1.jpg", "img_2.jpg"]


def db(folder, flag=",0"):
    """MhLiao/DB: train_images, train_gts/NAME.jpg.txt, train_list.txt; test_gts/gt_NAME.txt for ICDAR 2015."""
    for name in ("img_1.jpg", "IMG_2.JPG"):
        for split, label in (("train", f"{name}.txt"), ("test", f"gt_{name.partition('.')[0]}.txt")):
            picture(folder / f"{split}_images" / name, SIZE)
            put(folder / f"{split}_gts" / label, f"{QUAD},{split}")
    put(folder / "train_list.txt", "img_1.jpg\nIMG_2.JPG\n")
    put(folder / "test_list.txt", "img_1.jpg\n")
    return folder


def test_mhliao_db_by_its_lists(tmp_path):
    folder = db(tmp_path / "icdar2015")
    _, index = judge(folder / "train_list.txt")
    assert names(index) == ["train_images/img_1.jpg", "train_images/IMG_2.JPG"] and index.texts(0) == ["train"]
    _, index = judge(folder / "test_list.txt")
    assert names(index) == ["test_images/img_1.jpg"] and index.texts(0) == ["test"]
    assert "name one of them" in refusal(folder)


@pytest.mark.parametrize("part", ["train_images", "train_gts"])
def test_mhliao_db_by_a_folder_of_a_split(tmp_path, part):
    _, index = judge(db(tmp_path / "icdar2015") / part)
    assert len(index) == 2 and index.texts(0) == ["train"]


def yolo(folder, *splits):
    """Ultralytics: images/train, labels/train, and a list of images."""
    for split in splits:
        for k in (1, 2):
            picture(folder / "images" / split / f"{k}.jpg", SIZE)
            put(folder / "labels" / split / f"{k}.txt", "0 0.5 0.5 0.25 0.1\n")
        put(folder / f"{split}.txt", "".join(f"./images/{split}/{k}.jpg\n" for k in (1, 2)))
    put(folder / "labels" / "classes.txt", "text\n")
    put(folder / "data.yaml", "path: .\n")
    return folder


def test_yolo_folders_of_one_split(tmp_path):
    folder = yolo(tmp_path / "set", "train")
    (folder / "train.txt").unlink()
    _, index = judge(folder)
    assert names(index) == ["images/train/1.jpg", "images/train/2.jpg"]
    assert outlines(index) == [[[240, 216], [400, 216], [400, 264], [240, 264]]]


def test_yolo_folders_of_several_splits(tmp_path):
    folder = yolo(tmp_path / "set", "train", "val")
    assert "several sets of pages; name one of" in refusal(folder)
    for part in ("images/val", "labels/val"):
        _, index = judge(folder / part)
        assert len(index) == 2 and str(index.path(0)).endswith("images/val/1.jpg")
    _, index = judge(folder / "val.txt")
    assert names(index) == ["images/val/1.jpg", "images/val/2.jpg"]


def test_an_edit_of_nested_labels_is_seen(tmp_path):
    folder = yolo(tmp_path / "set", "train", "val") / "images" / "train"
    judge(folder)
    put(tmp_path / "set" / "labels" / "train" / "1.txt", "0 0.5 0.5 0.5 0.1\n0 0.2 0.2 0.1 0.1\n")
    _, index = judge(folder)
    assert len(index.polygons(0)) == 2


def test_roboflow_folders(tmp_path):
    # Roboflow: train/images, train/labels, valid/images, valid/labels
    for split in ("train", "valid"):
        pages_of(tmp_path / "set" / split, *["0 0.5 0.5 0.25 0.1\n"] * 2, images="images", labels="labels")
    assert "several sets of pages" in refusal(tmp_path / "set")
    _, index = judge(tmp_path / "set" / "valid")
    assert len(index) == 2


def test_msra_td500_as_it_is_unpacked(tmp_path):
    # MSRA-TD500: train/IMG_0030.JPG beside train/IMG_0030.gt
    for split in ("train", "test"):
        for name in ("IMG_0030", "IMG_0063"):
            picture(tmp_path / "set" / split / f"{name}.JPG", SIZE)
            put(tmp_path / "set" / split / f"{name}.gt", "0 0 100 50 200 40 0.0\r\n1 1 300 200 100 50 0.2\r\n")
    assert "several sets of pages" in refusal(tmp_path / "set")
    _, index = judge(tmp_path / "set" / "train")
    assert names(index) == ["IMG_0030.JPG", "IMG_0063.JPG"] and index.format == "td500"


def test_rctw_as_it_is_unpacked(tmp_path):
    # RCTW-17: image_0.jpg and image_0.txt side by side, with a mark at the file's start
    for k in (0, 1):
        picture(tmp_path / "part1" / f"image_{k}.jpg", SIZE)
        put(tmp_path / "part1" / f"image_{k}.txt", f'{QUAD},0,"a"\r\n{OTHER},1,"###"\r\n', "utf-8-sig")
    _, index = judge(tmp_path / "part1")
    assert index.texts(0) == ["a", "###"] and index.counts["ignored"] == 2


def test_labels_of_two_kinds_beside_each_other_ask_for_one(tmp_path):
    # Total-Text: Groundtruth/Polygon and Groundtruth/Rectangular for one Images folder
    folder = tmp_path / "set"
    for kind in ("Polygon", "Rectangular"):
        pages_of(folder, f"{QUAD},A", f"{QUAD},B", images="Images", labels=f"Groundtruth/{kind}")
    line = refusal(folder)
    assert "Groundtruth/Polygon" in line and "name one of these and the image root" in line
    _, index = judge(folder / "Groundtruth" / "Polygon", root=folder / "Images")
    assert len(index) == 2


RECORD = (
    "x: [[206 251 386 542\n 620 646]], y: [[ 133  111   90 126\n  176 209]], ornt: [u'c'], "
    "transcriptions: [u'PETRO']\nx: [[10 90 90 10]], y: [[10 10 30 30]], ornt: [u'#'], transcriptions: [u'#']\n"
)


@pytest.mark.parametrize("format", ["auto", "totaltext"])
def test_total_text_records(tmp_path, format):
    # Total-Text, text version of its .mat files: numpy prints, long ones over several lines, poly_gt_img1.txt
    folder = tmp_path / "set"
    for k in (1, 2):
        picture(folder / "Images" / "Train" / f"img{k}.jpg", (800, 400))
        put(folder / "Groundtruth" / "Polygon" / "Train" / f"poly_gt_img{k}.txt", RECORD)
    _, index = judge(folder, format)
    assert index.format == "totaltext" and index.texts(0) == ["PETRO", "#"]
    assert outlines(index)[0] == [[206, 133], [251, 111], [386, 90], [542, 126], [620, 176], [646, 209]]
    assert index.ignore(0).tolist() == [False, True]


def test_total_text_records_that_are_no_outline_are_masked(tmp_path):
    lost = "x: [[100 200 200]], y: [[300 300]], ornt: [u'h'], transcriptions: [u\"a'b\", u'c']\n"
    report, index = judge(pages_of(tmp_path / "set", RECORD + lost, RECORD, size=(800, 400)))
    assert report.counts["bad-line"] == 1 and index.ignore(0).tolist() == [False, True, True]
    assert index.texts(0)[2] == "a'b,c" and index.counts["masked"] == 1


def test_total_text_polygons(tmp_path):
    # Total-Text's other text version, and TextBoxes' and DB's: x1,y1,...,xn,yn,text; ### or # to be ignored
    lines = "10,10,60,8,110,10,110,30,60,28,10,30,ABC\n10,50,60,48,110,50,110,70,60,68,10,70,#\n"
    _, index = judge(pages_of(tmp_path / "set", lines, lines))
    assert index.format == "polygon" and index.ignore(0).tolist() == [False, True]


def test_ctw1500_test_labels_have_three_more_zeros(tmp_path):
    outline = ",".join(f"{10 + 40 * k},20" for k in range(7)) + "," + ",".join(f"{250 - 40 * k},60" for k in range(7))
    for k in (1, 2):
        picture(tmp_path / "set" / "test_images" / f"100{k}.jpg", SIZE)
        put(tmp_path / "set" / "gt_ctw1500" / f"000100{k}.txt", f"{outline},####A\n{outline},####b c\n")
    _, index = judge(tmp_path / "set")
    assert index.texts(0) == ["A", "b c"]


def test_two_images_of_one_id_are_refused(tmp_path):
    folder = pages_of(tmp_path / "set", f"{QUAD},A", f"{QUAD},B")
    picture(folder / "img" / "a.png", SIZE)
    assert "a.jpg and a.png are of this id" in refusal(put(folder / "ids.txt", "a\nb\n"))
    judge(put(folder / "ids.txt", "a.jpg\nb\n"))


def test_an_id_twice_is_refused(tmp_path):
    folder = pages_of(tmp_path / "set", f"{QUAD},A", f"{QUAD},B")
    assert "ids.txt:3: a.jpg is listed a second time" in refusal(put(folder / "ids.txt", "a\nb\na.jpg\n"))


def test_a_settings_file_of_yolo_is_no_list(tmp_path):
    # Ultralytics' data.yaml names folders; it is what their own `train` is given
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [text]\n")
    assert "settings of a data set, not its labels; name the folder" in refusal(tmp_path / "data.yaml")
