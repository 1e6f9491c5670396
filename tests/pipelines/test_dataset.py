import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.check import check, inspect_image, inspect_images
from pipelines.dataset import main
from pipelines.images.jpeg import scan_markers
from pipelines.index.build import load
from pipelines.limits import Limits

SQUARE = [[10, 20], [110, 20], [110, 40], [10, 40]]


def noise_jpeg(seed=0, size=(200, 100), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def data_set(folder, pages, **size):
    """{name: (image bytes or None, [points, ...])} as a contest JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name, (data, polygons) in pages.items():
        if data is not None:
            (folder / name).write_bytes(data)
        words = {str(k): {"points": p, "transcription": "A"} for k, p in enumerate(polygons)}
        images[name] = {"words": words, "img_w": 200, "img_h": 100} | size
    path = folder / "train.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    return path


@pytest.fixture
def good(tmp_path):
    pages = {f"{k}.jpg": (noise_jpeg(k), [SQUARE]) for k in range(3)}
    return data_set(tmp_path / "good", pages)


def test_build(good, tmp_path, capsys):
    assert main(["build", str(good), "--out", str(tmp_path / "index"), "--workers", "2"]) == 0
    assert "contest, 3 pages, 3 polygons" in capsys.readouterr().out
    assert len(load(tmp_path / "index")) == 3


def test_errors_are_one_line_and_exit_2(good, tmp_path, capsys):
    (good.parent / "1.jpg").unlink()
    for argv in (
        ["build", str(tmp_path / "absent"), "--out", str(tmp_path / "i")],
        ["build", str(good), "--out", str(tmp_path / "i")],
        ["build", str(good), "--out", str(tmp_path / "i"), "--format", "coco"],
        ["stats", str(good), "--max-pixels", "0"],
        ["synth", "--out", str(good.parent), "--pages", "1"],
        ["synth", "--out", str(tmp_path / "s"), "--pages", "1", "--size", "big"],
    ):
        assert main(argv) == 2, argv
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and err.count("\n") == 1 and not out


def test_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.dataset", "check", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "contest" in done.stderr


def test_check_of_a_good_set(good, tmp_path, capsys):
    assert main(["check", str(good), "--json", str(tmp_path / "r" / "report.json")]) == 0
    assert "3 pages, 3 regions, 3 usable\nnothing found" in capsys.readouterr().out
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


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}, {"comment": b"\xff\xd8"}])
def test_marker_scan_accepts_sound_files(options):
    data = noise_jpeg(**options)
    assert scan_markers(data) == ("", "") == scan_markers(data + b"trailing camera data")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_marker_scan_sees_every_truncation(options):
    data = noise_jpeg(size=(48, 32), **options)
    for cut in range(2, len(data)):
        assert scan_markers(data[:cut])[0] in ("truncated", "corrupt"), cut
    assert scan_markers(data[:-2])[0] == "truncated"


def test_marker_scan_sees_foreign_and_misplaced_markers():
    data = noise_jpeg()
    middle = len(data) * 3 // 4
    assert scan_markers(data[:middle] + b"\xff\xc8" + data[middle + 2 :])[0] == "corrupt"
    assert "no restart interval" in scan_markers(data[:middle] + b"\xff\xd3" + data[middle + 2 :])[1]
    data = noise_jpeg(restart_marker_blocks=4)
    at = data.index(b"\xff\xd3")
    assert "out of order" in scan_markers(data[: at + 1] + b"\xd5" + data[at + 2 :])[1]


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


def test_stats(good, tmp_path, capsys):
    assert main(["stats", str(good)]) == 0
    direct = capsys.readouterr().out
    assert "3 pages, 3 polygons, 0 ignored (0.0 %)" in direct
    heights = next(line for line in direct.splitlines() if line.startswith("text height, px "))
    assert heights.split()[3:] == ["20.0"] * 7
    main(["build", str(good), "--out", str(tmp_path / "index")])
    capsys.readouterr()
    assert main(["stats", str(tmp_path / "index")]) == 0
    assert capsys.readouterr().out == direct


def test_synth_then_everything(tmp_path, capsys):
    out = tmp_path / "synth"
    assert main(["synth", "--out", str(out), "--pages", "3", "--seed", "5", "--size", "256x192"]) == 0
    assert "3 pages of 256x192" in capsys.readouterr().out
    assert main(["check", str(out)]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert main(["build", str(out / "annotations.json"), "--out", str(tmp_path / "i")]) == 0
    assert load(tmp_path / "i").size_wh.tolist() == [[192, 256]] * 3
    assert main(["check", str(tmp_path / "i")]) == 2


@pytest.mark.skipif("DBNET_RECEIPTS" not in os.environ, reason="DBNET_RECEIPTS does not name a folder of receipts")
def test_real_receipts():
    folder = Path(os.environ["DBNET_RECEIPTS"])
    report = check(folder / "val.txt")
    assert report.format == "icdar" and report.pages == 66 and report.fatal == []
    assert report.usable == report.polygons > 3000
