"""`engine.predict` from end to end on a trained tiny detector."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from engine import predict
from engine.detection.results import LINES, STATE
from pipelines.annotations import read as formats
from pipelines.errors import UserError

MANY = ("post.box_thresh=0", "post.bin_thresh=0.05")  # the tiny detector is sure of nothing


@pytest.fixture
def source(trained):
    """The folder of the eight pages that the tiny detector was trained on."""
    folders = [path.parent for path in (trained.parent / ".synthetic").rglob("*.json")]
    return max(folders, key=lambda folder: len(list(folder.rglob("*.jpg"))))


def _arguments(source, trained, out, *more):
    return [str(source), "--checkpoint", str(trained), "--out", str(out), *MANY, *more]


def test_lines_formats_and_pictures(trained, source, tmp_path, capsys):
    out = tmp_path / "out"
    chosen = ["--draw", "--csv", str(tmp_path / "new" / "all.csv"), "--format", "jsonl,csv,coco,paddle,json", "--json"]
    assert predict.main(_arguments(source, trained, out, *chosen)) == 0
    results = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    images = sorted(source.rglob("*.jpg"))
    assert [result["image"] for result in results] == [str(p.relative_to(source)) for p in images]
    assert {"image", "width", "height", "regions"} == results[0].keys()
    assert [results[0]["width"], results[0]["height"]] == list(Image.open(images[0]).size)
    regions = [region for result in results for region in result["regions"]]
    assert regions and all(len(r["points"]) == 4 and 0 <= r["score"] <= 1 for r in regions)
    summary = json.loads(capsys.readouterr().out)
    assert summary["images"] == summary["predicted"] == len(images) and summary["regions"] == len(regions)
    assert summary["bad_images"] == 0 and summary["images_per_second"] > 0
    assert len(list(out.rglob("*.overlay.jpg"))) == len(images)
    assert [json.loads((out / f"{r['image']}.json").read_text()) for r in results] == results
    assert (out / "results.csv").read_bytes() == (tmp_path / "new" / "all.csv").read_bytes()
    with (out / "results.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["filename", "polygons"] and [row[0] for row in rows[1:]] == [p.name for p in images]
    for name, format in (("results.coco.json", "coco"), ("results.paddle.txt", "paddle")):
        read = formats.read_source(out / name, format, source)
        assert [page.path for page in read.pages] == [result["image"] for result in results]
        for page, result in zip(read.pages, results, strict=True):
            assert len(page.polygons) == len(result["regions"]) and not any(page.ignore)
            for polygon, region in zip(page.polygons, result["regions"], strict=True):
                np.testing.assert_allclose(polygon, region["points"], rtol=0, atol=1e-4)  # float32


def test_a_cut_file_is_gone_on_with_to_the_same_bytes(trained, source, tmp_path, capsys):
    """Cut at every kind of place: nothing, in the first line, at a line's end, in a later line, whole."""
    out = tmp_path / "out"
    arguments = _arguments(source, trained, out, "eval.batch_size=3", "--format", "coco")
    assert predict.main(arguments) == 0
    lines, coco = out / LINES, out / "results.coco.json"
    whole, made = lines.read_bytes(), coco.read_bytes()
    ends = [k + 1 for k, byte in enumerate(whole) if byte == 10]
    for cut, kept in ((0, 0), (7, 0), (ends[3], 3), (ends[4] - 1, 3), (len(whole) - 1, len(ends) // 3 * 3)):
        lines.write_bytes(whole[:cut])
        coco.unlink()
        capsys.readouterr()
        assert predict.main([*arguments, "--resume", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["predicted"] == len(ends) - min(kept, len(ends))
        assert lines.read_bytes() == whole and coco.read_bytes() == made, cut
    assert predict.main([*arguments, "--resume", "--format", "csv"]) == 0  # another format, from the lines
    assert lines.read_bytes() == whole and (out / "results.csv").exists()


def test_a_resume_refuses_what_would_mix_results(trained, source, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(source, images)
    arguments = _arguments(images, trained, out)
    assert predict.main(arguments) == 0
    with pytest.raises(UserError, match="exists: go on with it by --resume, or delete it by --overwrite"):
        predict.main(arguments)
    resume = [*arguments, "--resume"]
    with pytest.raises(UserError, match=r"post.unclip_ratio was 1.5 and is now 2.0; use the same again"):
        predict.main([*resume, "post.unclip_ratio=2"])
    with pytest.raises(UserError, match=r"--draw was False and is now True"):
        predict.main([*resume, "--draw"])
    (extra := images / "another.jpg").write_bytes(next(images.rglob("*.jpg")).read_bytes())
    with pytest.raises(UserError, match="number of images was"):
        predict.main(resume)
    extra.unlink()
    state = json.loads((out / STATE).read_text())
    (out / STATE).write_text(json.dumps(state | {"checkpoint": "0" * 64}))
    with pytest.raises(UserError, match="checkpoint was 000"):
        predict.main(resume)
    (out / STATE).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        predict.main(resume)
    before = (out / LINES).read_bytes()
    assert predict.main([*arguments, "--overwrite"]) == 0
    assert (out / LINES).read_bytes() == before


def test_places_that_would_be_in_the_way_are_refused_before_the_work(trained, source, tmp_path):
    out = tmp_path / "out"
    for more, words in (
        (["--csv", str(tmp_path)], "is a folder"),
        (["--csv", str(out / LINES)], "the results themselves"),
        (["--draw", "--out", str(source / "out")], "taken for pages"),
    ):
        with pytest.raises(UserError, match=words):
            predict.main(_arguments(source, trained, out, *more))
    assert not out.exists() and not (source / "out").exists()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(trained, source, tmp_path):
    """SIGKILL; the children are forks, since a start of Python with torch takes longer than the prediction."""
    images = tmp_path / "images"
    for k in range(25):
        shutil.copytree(source, images / f"{k:02}", ignore=shutil.ignore_patterns("*.json"))
    whole = tmp_path / "whole"
    start = time.monotonic()
    assert _forked(_arguments(images, trained, whole), None) == 0
    seconds = time.monotonic() - start
    drawn, partial = random.Random(0), 0
    out = tmp_path / "out"
    for _ in range(10):
        code = _forked(_arguments(images, trained, out, "--resume"), drawn.uniform(0.2, 0.9) * seconds)
        assert code in (0, -signal.SIGKILL)
        done = (out / LINES).read_bytes() if (out / LINES).exists() else b""
        partial += 0 < len(done) < (whole / LINES).stat().st_size
        if code == 0:
            assert done == (whole / LINES).read_bytes()
            shutil.rmtree(out)
    assert _forked(_arguments(images, trained, out, "--resume"), None) == 0
    assert (out / LINES).read_bytes() == (whole / LINES).read_bytes()
    assert partial >= 3, "the kills came before or after the work"


def _forked(arguments, seconds) -> int:
    """Exit code of a prediction in a child, killed after so many seconds (None = never)."""
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(predict.main(arguments)))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    return child.exitcode


def test_pages_come_in_order_whatever_the_batch(trained, source, tmp_path):
    """Two folders given out of order; the last batch of each size is another."""
    for name in ("b", "a"):
        shutil.copytree(source, tmp_path / name / name, ignore=shutil.ignore_patterns("*.json"))
    found = []
    for size in (1, 4):
        out = tmp_path / f"out{size}"
        given = [str(tmp_path / "b"), *_arguments(tmp_path / "a", trained, out)]
        assert predict.main([*given, f"eval.batch_size={size}"]) == 0
        found.append([json.loads(line) for line in (out / LINES).read_text().splitlines()])
    one, four = found
    names = [result["image"] for result in one]
    half = len(names) // 2
    assert names == [result["image"] for result in four]
    assert all(name.startswith("b/") for name in names[:half]) and names == sorted(names[:half]) + sorted(names[half:])
    for a, b in zip(one, four, strict=True):
        assert len(a["regions"]) == len(b["regions"])
        for x, y in zip(a["regions"], b["regions"], strict=True):
            assert x["score"] == pytest.approx(y["score"], abs=1e-4)


def test_two_images_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "same.png")
    with pytest.raises(UserError, match=r"same\.png"):
        predict.find_images([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len(predict.find_images([str(tmp_path)])) == 2


def test_bad_images_are_left_out_and_end_with_code_2(trained, source, tmp_path):
    """Headers that cannot be read, a picture that cannot be decoded and a bomb among good ones: those are predicted."""
    images = tmp_path / "images"
    shutil.copytree(source, images, ignore=shutil.ignore_patterns("*.json"))
    empty, garbage, bomb = sorted(images.rglob("*.jpg"))[:3]
    empty.write_bytes(b"")
    data = garbage.read_bytes()
    garbage.write_bytes(data[:300] + bytes(len(data) - 300))
    Image.new("L", (600, 500)).save(bomb)
    out = tmp_path / "out"
    arguments = [str(images), "--checkpoint", str(trained), "--out", str(out), "data.max_page_mpx=0.2"]
    arguments += ["--draw", "--format", "json,coco,csv,paddle"]
    with pytest.raises(UserError, match=r"3 of .* images cannot be read: ") as caught:
        predict.main(arguments)
    for path, reason in ((empty, "empty file"), (garbage, "cannot be"), (bomb, "600x500 is more than the 0.2 mega")):
        assert f"{path} (" in str(caught.value) and reason in str(caught.value)
    good = sorted(images.rglob("*.jpg"))[3:]
    assert "build the index" not in str(caught.value)
    assert good and len(list(out.rglob("*.overlay.jpg"))) == len(good)
    assert [p.name for p in sorted(out.rglob("*.jpg.json"))] == [f"{p.name}.json" for p in good]
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    assert [set(line) for line in lines[:3]] == [{"image", "error"}] * 3 and len(lines) == len(good) + 3
    assert "empty file" in lines[0]["error"] and "mega" in lines[2]["error"]
    assert len((out / "results.csv").read_text().splitlines()) == len(good) + 1
    for name in ("results.coco.json", "results.paddle.txt"):
        assert len(formats.read_source(out / name, root=images).pages) == len(good)
    with pytest.raises(UserError, match=r"3 of .* images cannot be read: "):  # known from the lines alone
        predict.main([*arguments, "--resume"])


def test_the_first_of_several_pages_and_what_is_no_image_are_named(trained, source, tmp_path, caplog):
    folder, out = tmp_path / "pages", tmp_path / "out"
    folder.mkdir()
    first, second = (Image.open(path) for path in sorted(source.rglob("*.jpg"))[:2])
    first.save(folder / "scan.tif", save_all=True, append_images=[second])
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(UserError, match=r"1 of 2 images cannot be read: .*photo.heic .*a HEIC, .*convert it to JPEG"):
        predict.main(_arguments(folder, trained, out))
    results = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    assert [result["image"] for result in results] == ["photo.heic", "scan.tif"] and results[1]["regions"]
    assert "scan.tif: has several pages or frames, of which the first is read" in caplog.text


def test_a_name_too_long_for_a_result_costs_that_image_only(trained, tmp_path, caplog):
    """255 bytes are what a file's name may have; 250 leave room for .json, not for .overlay.jpg. (--format json)"""
    images = tmp_path / "images"
    images.mkdir()
    first, *others = sorted(p for p in (trained.parent / ".synthetic").rglob("*.jpg"))[:3]
    longest, long = (images / f"{'n' * (size - 4)}.jpg" for size in (255, 250))
    for source, target in ((first, images / "z.jpg"), (others[0], longest), (others[1], long)):
        shutil.copy(source, target)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"1 of 3 images .*n\.jpg \(.*shorten it"):
        predict.main([str(images), "--checkpoint", str(trained), "--out", str(out), "--draw", "--format=json"])
    made = sorted(p.name for p in out.iterdir() if p.name not in (LINES, STATE))
    assert made == [f"{long.name}.json", "z.jpg.json", "z.jpg.overlay.jpg"]
    assert (out / LINES).read_text().count('"regions"') == 3  # a line takes any name
    assert "no picture: " in caplog.text and "left out" in caplog.text
