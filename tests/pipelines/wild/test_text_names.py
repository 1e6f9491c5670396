"""Files that systems leave behind, and names in another spelling than their files have."""

import json
import unicodedata

import pytest
from wild_text import SIZE, judge, outlines, pages_of, refusal

from pipelines.images.listing import find_images
from tests.support.annotation_files import picture, put

QUAD = "10,20,110,20,110,40,10,40"
CAFE = "caf\u00e9"
NFD = unicodedata.normalize("NFD", CAFE)
WORDS = json.dumps([{"transcription": "A", "points": [[10, 20], [110, 20], [110, 40], [10, 40]]}])


def litter(folder):
    """What a zip made by macOS, and a folder seen by Windows, have beside the files."""
    for name in ("._a.jpg", "._a.txt", ".DS_Store", "Thumbs.db", "._labels.txt", "._ann.json"):
        put(folder / name, "\0\5\x16\7\0\2\0\0Mac OS X")
    picture(folder / "__MACOSX" / "a.jpg", SIZE)
    put(folder / "__MACOSX" / "._a.jpg", "\0\5\x16\7")


def test_litter_beside_text_labels(tmp_path):
    folder = pages_of(tmp_path / "set", f"{QUAD},A", f"{QUAD},B")
    for place in (folder, folder / "img", folder / "gt"):
        litter(place)
    report, index = judge(folder)
    assert len(index) == 2 and report.counts == {"duplicate-image": 1}


def test_litter_beside_labels_and_images_in_one_folder(tmp_path):
    folder = pages_of(tmp_path / "set", f"{QUAD},A", f"{QUAD},B", images=".", labels=".")
    litter(folder)
    report, index = judge(folder)
    assert len(index) == 2 and report.counts == {"duplicate-image": 1}


def test_litter_beside_one_annotation_file(tmp_path):
    picture(tmp_path / "set" / "a.jpg", SIZE)
    put(tmp_path / "set" / "labels.txt", f"a.jpg\t{WORDS}\n")
    litter(tmp_path / "set")
    _, index = judge(tmp_path / "set")
    assert index.format == "paddle" and len(index) == 1


def test_litter_is_not_predicted(tmp_path):
    picture(tmp_path / "in" / "a.jpg", SIZE)
    litter(tmp_path / "in")
    assert list(find_images([str(tmp_path / "in")]).names()) == ["a.jpg"]


@pytest.mark.parametrize(("stated", "real"), [(CAFE, NFD), (NFD, CAFE)])
def test_names_in_the_other_unicode_form(tmp_path, stated, real):
    # made on macOS (NFD), unpacked on Linux
    picture(tmp_path / "set" / "img" / f"{real}.jpg", SIZE)
    put(tmp_path / "set" / "gt" / f"{stated}.txt", f"{QUAD},A")
    assert len(judge(tmp_path / "set")[1]) == 1
    assert len(judge(put(tmp_path / "set" / "ids.txt", stated))[1]) == 1
    assert len(judge(put(tmp_path / "set" / "ids.txt", f"{stated}.jpg"))[1]) == 1
    _, index = judge(put(tmp_path / "set" / "img" / "labels.txt", f"{stated}.jpg\t{WORDS}\n"))
    assert index.path(0).is_file() and index.name(0) == f"{real}.jpg"


def test_folders_in_the_other_unicode_form(tmp_path):
    picture(tmp_path / "set" / NFD / "1.JPG", SIZE)
    _, index = judge(put(tmp_path / "set" / "labels.txt", f"{CAFE}/1.jpg\t{WORDS}\n"))
    assert index.relative_path(0) == f"{NFD}/1.JPG"


@pytest.mark.parametrize(("stated", "real"), [("a.jpg", "a.JPG"), ("a.JPG", "a.jpg"), ("a.jpg", "a.Jpg")])
def test_suffixes_in_other_letters(tmp_path, stated, real):
    # a camera writes .JPG, the annotation tool .jpg
    picture(tmp_path / "set" / "img" / real, SIZE)
    put(tmp_path / "set" / "gt" / "a.TXT", f"{QUAD},A")
    assert outlines(judge(tmp_path / "set")[1])
    assert judge(put(tmp_path / "set" / "ids.txt", stated))[1].name(0) == real
    assert judge(put(tmp_path / "set" / "img" / "labels.txt", f"{stated}\t{WORDS}\n"))[1].name(0) == real


def test_two_spellings_of_one_image_are_refused(tmp_path):
    picture(tmp_path / "set" / f"{NFD}.jpg", SIZE)
    path = put(tmp_path / "set" / "labels.txt", f"{CAFE}.jpg\t{WORDS}\n{NFD}.jpg\t{WORDS}\n")
    assert "two spellings of one image" in refusal(path)


def test_a_name_that_two_files_could_have_stays_missing(tmp_path):
    for name in ("a.JPG", "a.Jpg"):
        picture(tmp_path / "set" / name, SIZE)
    picture(tmp_path / "set" / "b.jpg", SIZE)
    path = put(tmp_path / "set" / "labels.txt", f"a.jpg\t{WORDS}\nb.jpg\t{WORDS}\n")
    assert "a.jpg: missing" in refusal(path)
