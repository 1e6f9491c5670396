import json

import numpy as np
from data_sets import SQUARE, data_set, noise_jpeg
from PIL import Image

from pipelines.check import check, inspect_image, inspect_images
from pipelines.dataset import main
from pipelines.limits import Limits


def test_check_of_a_good_set(good, tmp_path, capsys):
    assert main(["check", str(good), "--json", str(tmp_path / "r" / "report.json")]) == 0
    assert "3 pages, 3 regions, 3 usable\nno fault found" in capsys.readouterr().out
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["fatal"] == [] and report["findings"] == [] and report["pages"] == 3


def found(path, **options):
    return {(f.path, f.kind) for f in check(path, **options).findings}


def test_check_names_bad_images(tmp_path, capsys):
    data = noise_jpeg()
    pages = {
        "ok.jpg": (data, [SQUARE]),
        "missing.jpg": (None, [SQUARE]),
        "text.jpg": (b"hello", [SQUARE]),
        "empty.jpg": (b"", [SQUARE]),
        "half.jpg": (data[: len(data) // 2], [SQUARE]),
        "twin.jpg": (data, [SQUARE]),
    }
    path = data_set(tmp_path, pages)
    assert found(path) == {
        ("missing.jpg", "missing"),
        ("text.jpg", "unreadable"),
        ("empty.jpg", "unreadable"),
        ("half.jpg", "truncated"),
        ("twin.jpg", "duplicate-image"),
    }
    assert main(["check", str(path)]) == 2
    out = capsys.readouterr().out
    assert "missing.jpg: missing: No such file" in out and "cannot train: 4 unusable pages: missing.jpg" in out


def test_check_max_pixels(good):
    assert {kind for _, kind in found(good, limits=Limits(100))} == {"too-large"}
    assert check(good, limits=Limits(100)).fatal[0] == "no readable page"


def test_check_names_bad_polygons(tmp_path, capsys):
    bow = [[10, 20], [110, 40], [110, 20], [10, 40]]
    polygons = {
        "out.jpg": [[[-5, 20], [110, 20], [207.5, 40]], SQUARE],
        "few.jpg": [SQUARE[:2]],
        "none.jpg": [[]],
        "nan.jpg": [[[float("nan"), 0], [1, 1], [2, 0]]],
        "bow.jpg": [bow],
        "flat.jpg": [[[10, 20], [50, 20], [110, 20]]],
        "twice.jpg": [SQUARE, SQUARE],
    }
    path = data_set(tmp_path, {n: (noise_jpeg(k), p) for k, (n, p) in enumerate(polygons.items())})
    kinds = ("out-of-page", "masked", "nowhere", "masked", "self-intersection", "zero-area", "duplicate")
    assert found(path) == set(zip(polygons, kinds))
    assert main(["check", str(path)]) == 2  # training masks or mends all of these, but what lies nowhere
    out = capsys.readouterr().out
    assert "cannot train: 1 unusable pages: none.jpg" in out
    assert "out.jpg: out-of-page: region number 1 (up to 7.5 px)" in out
    assert "few.jpg: masked: region number 1" in out
    assert "twice.jpg: duplicate: region number 2" in out


def test_check_compares_sizes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = noise_jpeg(1, exif=exif)
    assert found(data_set(tmp_path / "a", {"a.jpg": (noise_jpeg(), [SQUARE])}, img_w=400)) == {("a.jpg", "wrong-size")}
    path = data_set(tmp_path / "b", {"b.jpg": (turned, [SQUARE])})
    assert ("b.jpg", "exif-size") in found(path)
    path = data_set(tmp_path / "c", {"c.jpg": (turned, [[[10, 100], [90, 100], [90, 190]]])}, img_w=100, img_h=200)
    assert found(path) == set()


def test_check_refuses_sets_without_text(tmp_path):
    assert "no usable text" in check(data_set(tmp_path, {"a.jpg": (noise_jpeg(), [])})).fatal[0]
    path = data_set(tmp_path, {"a.jpg": (noise_jpeg(), [SQUARE])})
    path.write_text(path.read_text().replace('"A"', '"###"'))
    assert "no usable text" in check(path).fatal[0]


def test_damage_libjpeg_repairs_is_found(tmp_path):
    """Zeros in the middle: Pillow decodes it without a word, libjpeg warns."""
    data = noise_jpeg(size=(320, 320), quality=90)
    middle = len(data) // 2
    (tmp_path / "hole.jpg").write_bytes(data[:middle] + bytes(400) + data[middle + 400 :])
    with Image.open(tmp_path / "hole.jpg") as image:
        image.load()
    kind, detail = inspect_image(tmp_path / "hole.jpg").problems[0]
    assert kind == "corrupt" and "Corrupt JPEG data" in detail


def test_other_image_formats_are_decoded_too(tmp_path):
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    pixels.save(tmp_path / "a.png")
    assert inspect_image(tmp_path / "a.png").problems == []
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    assert inspect_image(tmp_path / "b.png").problems[0][0] in ("truncated", "unreadable")


def test_processes_give_the_same_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.check.PAGES_PER_PROCESS", 1)
    (tmp_path / "a.png").write_bytes(b"bad")
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    assert list(inspect_images(paths, 2, Limits(10**6))) == list(inspect_images(paths, 1, Limits(10**6)))
