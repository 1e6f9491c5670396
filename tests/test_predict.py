"""`engine.predict` from end to end on a trained tiny detector."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from engine import predict
from engine.postprocess import Detections
from pipelines.errors import UserError


def _quad(x, y):
    return np.array([[x, y], [x + 10, y], [x + 10, y + 5], [x, y + 5]], np.float32)


def test_json_csv_and_pictures(trained, tmp_path, capsys):
    source = next((trained.parent / ".synthetic").rglob("*.json")).parent
    out = tmp_path / "out"
    arguments = [str(source), "--checkpoint", str(trained), "--out", str(out), "--draw", "--csv", str(out / "all.csv")]
    assert predict.main([*arguments, "post.box_thresh=0", "post.bin_thresh=0.05"]) == 0
    results = [json.loads(p.read_text()) for p in sorted(out.rglob("*.json"))]
    images = sorted(p for p in source.rglob("*.jpg"))
    assert len(results) == len(images) == len(list(out.rglob("*.overlay.jpg")))
    assert {"image", "width", "height", "regions"} == results[0].keys()
    assert [results[0]["width"], results[0]["height"]] == list(Image.open(images[0]).size)
    for region in (region for result in results for region in result["regions"]):
        assert len(region["points"]) == 4 and 0 <= region["score"] <= 1
    with (out / "all.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["filename", "polygons"] and [row[0] for row in rows[1:]] == [p.name for p in images]
    assert "images" in capsys.readouterr().err


def test_the_contest_row_has_whole_pixels_and_at_most_500_regions(tmp_path):
    found = Detections([_quad(i % 50, 0.4) for i in range(600)], np.linspace(1, 0, 600, dtype=np.float32))
    name, polygons = predict.csv_row(tmp_path / "a.jpg", found)
    assert name == "a.jpg" and polygons.count("|") == 499
    assert polygons.split("|")[0] == "0 0 10 0 10 5 0 5"


def test_two_images_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "same.png")
    with pytest.raises(UserError, match=r"same\.png"):
        predict.find_images([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len(predict.find_images([str(tmp_path)])) == 2


def test_bad_images_are_left_out_and_end_with_code_2(trained, tmp_path):
    """Headers that cannot be read, a picture that cannot be decoded and a bomb among good ones: those are predicted."""
    source = next((trained.parent / ".synthetic").rglob("*.json")).parent
    images = tmp_path / "images"
    shutil.copytree(source, images, ignore=shutil.ignore_patterns("*.json"))
    empty, garbage, bomb = sorted(images.rglob("*.jpg"))[:3]
    empty.write_bytes(b"")
    data = garbage.read_bytes()
    garbage.write_bytes(data[:300] + bytes(len(data) - 300))
    Image.new("L", (600, 500)).save(bomb)
    out = tmp_path / "out"
    arguments = [str(images), "--checkpoint", str(trained), "--out", str(out), "--draw", "data.max_page_mpx=0.2"]
    with pytest.raises(UserError, match=r"3 of .* pages cannot be read: ") as caught:
        predict.main(arguments)
    for path, reason in ((empty, "empty file"), (garbage, "cannot be"), (bomb, "600x500 is more than the 0.2 mega")):
        assert f"{path} (" in str(caught.value) and reason in str(caught.value)
    good = sorted(images.rglob("*.jpg"))[3:]
    assert "build the index" not in str(caught.value)
    assert good and len(list(out.rglob("*.overlay.jpg"))) == len(good)
    assert [p.name for p in sorted(out.rglob("*.json"))] == [f"{p.name}.json" for p in good]


def test_a_name_too_long_for_a_result_costs_that_image_only(trained, tmp_path, caplog):
    """255 bytes are what a file's name may have; 250 leave room for .json, not for .overlay.jpg."""
    images = tmp_path / "images"
    images.mkdir()
    first, *others = sorted(p for p in (trained.parent / ".synthetic").rglob("*.jpg"))[:3]
    longest, long = (images / f"{'n' * (size - 4)}.jpg" for size in (255, 250))
    for source, target in ((first, images / "z.jpg"), (others[0], longest), (others[1], long)):
        shutil.copy(source, target)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"1 of 3 pages .*n\.jpg \(.*shorten it"):
        predict.main([str(images), "--checkpoint", str(trained), "--out", str(out), "--draw"])
    assert sorted(p.name for p in out.iterdir()) == [f"{long.name}.json", "z.jpg.json", "z.jpg.overlay.jpg"]
    assert "no picture: " in caplog.text and "left out" in caplog.text
