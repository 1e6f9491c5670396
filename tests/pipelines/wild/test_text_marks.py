"""What stands behind the numbers and is no transcription: marks, flags, quotes, classes."""

import pytest
from wild_text import judge, pages_of

QUAD = "10,20,110,20,110,40,10,40"
OTHER = "10,60,110,60,110,80,10,80"
THIRD = "10,100,110,100,110,120,10,120"


@pytest.mark.parametrize("mark", ["###", "#", "##", "#######", '"###"'])
def test_signs_alone_are_no_text(tmp_path, mark):
    # ICDAR writes ###, Total-Text #, LSVT and ArT ###
    _, index = judge(pages_of(tmp_path / "set", f"{QUAD},A\n{OTHER},{mark}", f"{QUAD},#1\n{OTHER},B"))
    assert index.ignore(0).tolist() == [False, True] and index.ignore(1).tolist() == [False, False]
    assert index.counts["ignored"] == 1 and index.texts(1) == ["#1", "B"]


def test_a_number_sign_is_a_text_where_the_mark_is_another(tmp_path):
    # CLEval's own test set of documents: 72 times ###, and 2 texts that are one #
    _, index = judge(pages_of(tmp_path / "set", f"{QUAD},A\n{OTHER},###\n{THIRD},#", f"{QUAD},#"))
    assert index.ignore(0).tolist() == [False, True, False] and index.ignore(1).tolist() == [False]


def test_a_number_sign_is_a_text_where_it_is_rare(tmp_path):
    lines = "".join(f"10,{y},50,{y},50,{y + 3},10,{y + 3},T{y}\n" for y in range(0, 444, 4))
    _, index = judge(pages_of(tmp_path / "set", lines + "100,20,110,20,110,40,100,40,#", lines))
    assert not index.ignore_flags.any()


def test_ctw1500_writes_four_signs_before_every_text(tmp_path):
    # SCUT-CTW1500's test labels: 14 points, then `####TEXT`; `#######` is one nobody can read
    outline = ",".join(f"{10 + 40 * k},20" for k in range(7)) + "," + ",".join(f"{250 - 40 * k},60" for k in range(7))
    lines = f"{outline},####Latin 9\n{outline.replace(',60', ',90').replace(',20', ',70')},#######\n"
    _, index = judge(pages_of(tmp_path / "set", lines, lines))
    assert index.texts(0) == ["Latin 9", "###"] and index.ignore(0).tolist() == [False, True]
    assert len(index.polygons(0)[0]) == 14


def test_rctw_has_a_flag_before_the_quoted_text(tmp_path):
    # RCTW-17: image_0.txt, x1,y1,...,x4,y4,difficult,"text"
    _, index = judge(pages_of(tmp_path / "set", f'{QUAD},0,"a, b"\n{OTHER},1,"x"', f'{QUAD},0,"###"\n{OTHER},0,"c"'))
    assert index.texts(0) == ["a, b", "x"] and index.ignore(0).tolist() == [False, True]
    assert index.ignore(1).tolist() == [True, False]


@pytest.mark.parametrize("format", ["auto", "icdar", "td500"])
def test_a_last_field_of_flags(tmp_path, format):
    # MSRA-TD500 as MhLiao/DB keeps it: 8 numbers and the difficulty
    _, index = judge(pages_of(tmp_path / "set", f"{QUAD},0\n{OTHER},1", f"{QUAD},0\n{OTHER},0"), format)
    assert index.ignore(0).tolist() == [False, True] and index.texts(0) is None


def test_ones_alone_are_a_class_not_flags(tmp_path):
    _, index = judge(pages_of(tmp_path / "set", f"{QUAD},1\n{OTHER},1", f"{QUAD},1"))
    assert not index.ignore_flags.any()


def test_a_text_0_among_texts_is_a_text(tmp_path):
    _, index = judge(pages_of(tmp_path / "set", f"{QUAD},0\n{OTHER},1", f"{QUAD},27"))
    assert not index.ignore_flags.any() and index.texts(0) == ["0", "1"]


def test_quoted_texts_of_every_layout(tmp_path):
    # ICDAR 2013 and CLEval's own test set: "Text", with \" and \\ inside
    lines = f'{QUAD},"a \\"b\\", c"\n{OTHER}, "d\\\\e"\n{THIRD},"'
    _, index = judge(pages_of(tmp_path / "set", lines, f'{QUAD},""\n{OTHER},5"'))
    assert index.texts(0) == ['a "b", c', "d\\e", '"'] and index.texts(1) == ["", '5"']


def test_one_word_behind_every_region_is_a_class(tmp_path):
    lines = "".join(f"10,{y},110,{y},110,{y + 10},10,{y + 10},text\n" for y in range(0, 120, 20))
    _, index = judge(pages_of(tmp_path / "set", lines, lines))
    assert index.texts(0) is None and not index.ignore_flags.any()


def test_mlt_scripts_are_no_text(tmp_path):
    # ICDAR-MLT 2017/2019: the script before the text
    _, index = judge(pages_of(tmp_path / "set", f"{QUAD},Latin,A, B\n{OTHER},None,###", f"{QUAD},Korean,C"))
    assert index.texts(0) == ["A, B", "###"] and index.ignore(0).tolist() == [False, True]
