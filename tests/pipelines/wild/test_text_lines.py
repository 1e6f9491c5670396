"""Lines of text that do not fit their layout, and layouts that look like others: masked or refused, never dropped."""

import pytest
from wild_text import judge, outlines, pages_of, refusal

QUAD = "10,20,110,20,110,40,10,40"
OTHER = "10,60,110,60,110,80,10,80"


def test_a_line_with_too_few_numbers_is_masked_where_its_pairs_lie(tmp_path):
    # ICDAR 2015 lines cut by a spreadsheet: the fourth point is gone
    folder = pages_of(tmp_path / "set", f"{QUAD},A\n300,100,400,100,400,150,LOST", f"{QUAD},B\n{OTHER},C")
    report, index = judge(folder)
    assert report.counts == {"duplicate-image": 1, "bad-line": 1} and index.counts["bad_line"] == 1
    assert index.ignore(0).tolist() == [False, True] and "bad line" in index.oddities
    assert sorted(outlines(index)[1]) == [[300, 100], [400, 100], [400, 150]]
    assert report.findings[0].detail == "a.txt:2: 6 leading numbers do not fit icdar, masked"


def test_a_field_that_is_no_number_costs_one_point_only(tmp_path):
    folder = pages_of(tmp_path / "set", f"{QUAD},A\n300,100,400,100,x,150,300,150,LOST", f"{QUAD},B\n300,{QUAD},C")
    _, index = judge(folder)
    assert index.ignore(0).tolist() == [False, True]
    assert sorted(outlines(index)[1]) == [[300, 100], [300, 150], [400, 100]]


def test_a_line_of_one_pair_is_masked_with_room_around_it(tmp_path):
    report, index = judge(pages_of(tmp_path / "set", f"{QUAD},A\n300,200", f"{QUAD},B\n{OTHER},C"))
    assert report.counts["masked"] == 1 and index.ignore(0).tolist() == [False, True]
    assert outlines(index)[1] == [[292, 192], [308, 192], [308, 208], [292, 208]]


def test_a_line_without_a_number_refuses_its_page(tmp_path):
    folder = pages_of(tmp_path / "set", f"{QUAD},A\nhello world", f"{QUAD},B\n{OTHER},C")
    assert "a.jpg: nowhere (region 2 has no coordinates" in refusal(folder)


def test_a_single_inverted_box_is_spanned_and_ignored(tmp_path):
    boxes = "".join(f"10,{y},90,{y + 20},x\n" for y in range(10, 400, 30))
    report, index = judge(pages_of(tmp_path / "set", boxes + "300,140,200,100,y\n", boxes))
    assert report.counts["bad-line"] == 1
    assert outlines(index)[-1] == [[200, 100], [300, 100], [300, 140], [200, 140]]
    assert index.ignore(0).tolist() == [False] * 13 + [True]


XYWH = "10,20,100,30,TOTAL\n400,300,80,20,12.00\n420,340,60,20,3.00\n"


def test_x_y_width_height_is_refused_with_its_name_and_read_by_it(tmp_path):
    # labels exported as left,top,width,height (COCO's bbox, written as text)
    folder = pages_of(tmp_path / "set", XYWH, XYWH)
    assert "looks like x,y,w,h; data.format=xywh (--format xywh) reads it" in refusal(folder)
    assert "looks like x,y,w,h" in refusal(folder, "ltrb")
    _, index = judge(folder, "xywh")
    assert outlines(index)[:2] == [
        [[10, 20], [110, 20], [110, 50], [10, 50]],
        [[400, 300], [480, 300], [480, 320], [400, 320]],
    ]
    assert index.texts(0)[:2] == ["TOTAL", "12.00"]


def test_a_negative_width_is_spanned_and_ignored(tmp_path):
    _, index = judge(pages_of(tmp_path / "set", XYWH + "300,200,-40,20,x", XYWH), "xywh")
    assert outlines(index)[-1] == [[260, 200], [300, 200], [300, 220], [260, 220]] and index.ignore(0)[-1]


def test_quadrilaterals_named_as_boxes_are_refused(tmp_path):
    lines = "100,60,20,20,30,10,110,50,a\n300,260,220,220,230,210,310,250,b\n"
    assert "x1,y1,...,x4,y4; data.format=icdar" in refusal(pages_of(tmp_path / "set", lines, lines), "ltrb")


TD500 = "0 0 100 50 200 40 0.0\n1 1 300 200 100 100 1.5707963\n"


@pytest.mark.parametrize("format", ["auto", "td500"])
def test_msra_td500_rows_are_turned_boxes(tmp_path, format):
    # MSRA-TD500: IMG_0059.gt beside IMG_0059.JPG, `index difficulty x y w h theta`, blanks between
    folder = pages_of(tmp_path / "set", TD500, TD500.replace("200 100 100", "200 120 40"))
    _, index = judge(folder, format)
    assert index.format == "td500"
    assert outlines(index)[0] == [[100, 50], [300, 50], [300, 90], [100, 90]]
    assert outlines(index, 1)[1] == [[380, 160], [380, 280], [340, 280], [340, 160]]
    assert index.ignore(0).tolist() == [False, True] and index.texts(0) is None


def test_td500_rows_under_another_name_are_refused(tmp_path):
    assert "look like td500, not ltrb" in refusal(pages_of(tmp_path / "set", TD500, TD500), "ltrb")


def ctw_row(left, top, width, height):
    top_side = [(round(k * width / 6), 2) for k in range(7)]
    offsets = top_side + [(x, height) for x, _ in reversed(top_side)]
    return ",".join(map(str, [left, top, left + width, top + height, *(v for pair in offsets for v in pair)]))


@pytest.mark.parametrize("format", ["auto", "ctw1500"])
def test_ctw1500_offset_rows(tmp_path, format):
    # SCUT-CTW1500, first release: xmin,ymin,xmax,ymax, then 14 times an offset from xmin,ymin
    rows = f"{ctw_row(100, 50, 300, 60)}\n{ctw_row(20, 200, 120, 90)}\n"
    _, index = judge(pages_of(tmp_path / "set", rows, rows), format)
    assert index.format == "ctw1500" and len(outlines(index)[0]) == 14
    assert outlines(index)[0][0] == [100, 52] and outlines(index)[0][-1] == [100, 110]


YOLO = {
    "boxes": ("0 0.5 0.5 0.25 0.1\n0 0.25 0.25 0.1 0.1\n", [[240, 216], [400, 216], [400, 264], [240, 264]]),
    "obb": ("0 0.1 0.1 0.3 0.15 0.29 0.25 0.09 0.2\n", [[64, 48], [192, 72], [186, 120], [58, 96]]),
    "seg": (
        "3 0.1 0.1 0.2 0.08 0.3 0.1 0.3 0.2 0.1 0.2\n",
        [[64, 48], [128, 38], [192, 48], [192, 96], [64, 96]],
    ),
}


@pytest.mark.parametrize("format", ["auto", "yolo"])
@pytest.mark.parametrize("kind", YOLO)
def test_yolo_rows_are_shares_of_the_page(tmp_path, kind, format):
    # Ultralytics: images/NAME.jpg, labels/NAME.txt, `class cx cy w h`; OBB and segments as points
    lines, expected = YOLO[kind]
    _, index = judge(pages_of(tmp_path / "set", lines, lines, images="images", labels="labels"), format)
    assert index.format == "yolo" and outlines(index)[0] == expected


def test_yolo_rows_under_another_name_are_refused(tmp_path):
    folder = pages_of(tmp_path / "set", YOLO["boxes"][0], YOLO["obb"][0])
    assert "look like yolo, not ltrb" in refusal(folder, "ltrb")


def test_yolo_predictions_with_confidences_are_refused(tmp_path):
    lines = "0 0.5 0.5 0.25 0.1 0.9\n0 0.25 0.25 0.1 0.1 0.8\n"
    refusal(pages_of(tmp_path / "set", lines, lines))
    assert "do not fit the yolo layout" in refusal(pages_of(tmp_path / "set2", lines, lines), "yolo")


def test_pixels_named_yolo_are_refused(tmp_path):
    lines = "0 100 50 200 40\n0 10 20 30 40\n1 200 300 60 20\n"
    refusal(pages_of(tmp_path / "set", lines, lines), "yolo")


def test_two_layouts_in_one_set_are_refused(tmp_path):
    folder = pages_of(tmp_path / "set", YOLO["boxes"][0] + YOLO["obb"][0], "10 20 110 40\n300 20 400 40\n")
    assert "3 of 5 lines look like yolo, the others do not" in refusal(folder)


def test_shares_of_the_page_with_commas_are_refused(tmp_path):
    lines = "0.1,0.1,0.3,0.1,0.3,0.2,0.1,0.2,A\n0.5,0.5,0.7,0.5,0.7,0.6,0.5,0.6,B\n"
    assert "0..1" in refusal(pages_of(tmp_path / "set", lines, lines))


def test_corners_in_zigzag_order_are_refused(tmp_path):
    lines = "".join(f"10,{y},110,{y},10,{y + 20},110,{y + 20},A\n" for y in (10, 50, 90, 130))
    assert "cross themselves" in refusal(pages_of(tmp_path / "set", lines, lines))


def test_an_empty_label_file_is_a_page_without_text(tmp_path):
    _, index = judge(pages_of(tmp_path / "set", "", f"{QUAD},A"))
    assert len(index.polygons(0)) == 0 and len(index.polygons(1)) == 1


def test_a_header_that_all_files_have_is_no_region(tmp_path, caplog):
    # labels exported from a spreadsheet, one .csv a page
    head = "x1,y1,x2,y2,x3,y3,x4,y4,text\n"
    report, index = judge(pages_of(tmp_path / "set", f"{head}{QUAD},A\n", f"{head}{OTHER},B", suffix=".csv"))
    assert "bad-line" not in report.counts and len(index.polygons(0)) == 1 and index.texts(0) == ["A"]
    assert "read as a header" in caplog.text


def test_words_that_only_one_file_begins_with_are_no_header(tmp_path):
    folder = pages_of(tmp_path / "set", f"lost\n{QUAD},A\n{OTHER},A", f"{OTHER},B\n{QUAD},B")
    assert "a.jpg: nowhere" in refusal(folder)


def test_dota_headers_are_no_regions(tmp_path):
    # DOTA's labelTxt: two lines on the picture's origin, then quadrilaterals with a class and a flag
    rows = "10 20 110 20 110 40 10 40 text 0\n10 60 110 60 110 80 10 80 text 1\n"
    head = "imagesource:GoogleEarth\ngsd:0.{}\n"
    report, index = judge(pages_of(tmp_path / "set", head.format(14) + rows, head.format(29) + rows))
    assert report.counts == {"duplicate-image": 1} and len(index.ignore(0)) == 2


def test_letters_of_icdars_text_segmentation_are_refused_with_their_name(tmp_path):
    # ICDAR 2013, task 2: R G B, centre and box of a letter; eight of the numbers made a quadrilateral
    rows = '108 225 132 20 30 10 20 30 40 "F"\n82 174 214 51 33 42 22 60 41 "T"\n\n241 73 144 81 34 72 23 90 44 "h"\n'
    said = refusal(pages_of(tmp_path / "set", rows, rows))
    assert "6 of 6 lines are letters of ICDAR's text segmentation" in said
