"""Bombs: huge pages, hundreds of scans, huge annotations, crowded pages. Refused or capped in words, memory bounded."""

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from bombs import GOOD, SIDE, jpeg, many_scans, png_bomb
from PIL import Image

from engine.config.load import load_config
from engine.data import open_pages
from engine.distributed import Ranks
from pipelines.annotations.read import read_source
from pipelines.check import check
from pipelines.errors import UserError
from pipelines.index.build import build, open_index
from pipelines.index.clean import reduce_points
from pipelines.limits import DEFAULT, Limits
from tests.conftest import ROOT, TINY


def jpeg_bomb():
    """A small JPEG whose frame header says 30,000 x 30,000."""
    data = bytearray(jpeg(Image.new("RGB", (32, 32))))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", SIDE, SIDE)
    return bytes(data)


def source(folder, images, polygons):
    """A contest-format data set: image name -> bytes, and the polygons of each page."""
    (folder / "images").mkdir(parents=True)
    for name, data in images.items():
        (folder / "images" / name).write_bytes(data)
    words = {str(k): {"points": np.asarray(p).tolist(), "transcription": "a"} for k, p in enumerate(polygons)}
    path = folder / "train.json"
    path.write_text(json.dumps({"images": {name: {"words": words} for name in images}}))
    return path


SQUARE = [[10, 10], [60, 10], [60, 60], [10, 60]]


CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 5000, endpoint=False)) for f in (np.cos, np.sin)], 1) * 200 + 230


COMB = np.stack([np.linspace(10, 600, 5000), 100 + 300 * (np.arange(5000) % 2)], 1)


REFUSED = {
    "png bomb": ({"bomb.png": png_bomb()}, [SQUARE], r"bomb\.png: too-large .*100 megapixels"),
    # below twice the limit, where Pillow only warns
    "png of 144 Mpx": (
        {"bomb.png": png_bomb(12_000)},
        [SQUARE],
        r"too-large \(12000x12000 .*100 megapixels",
    ),
    "jpeg bomb": ({"bomb.jpg": jpeg_bomb()}, [SQUARE], r"bomb\.jpg: too-large .*100 megapixels"),
    "scans": ({"bomb.jpg": many_scans(500)}, [SQUARE], r"bomb\.jpg: too-many-scans .*100 scans"),
    "polygons": ({"a.jpg": GOOD}, [SQUARE] * 300, r"a\.jpg: too-many-polygons \(300 .*200 allowed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bomb_is_refused_by_name_or_left_out(tmp_path, case):
    images, polygons, message = REFUSED[case]
    path = source(tmp_path / "set", images, polygons)
    limits = Limits(polygons=200)
    with pytest.raises(UserError, match=message):
        build(path, tmp_path / "index", limits=limits)
    report = check(path, limits=limits)
    assert report.fatal and any(f.kind in ("too-large", "too-many-scans", "too-many-polygons") for f in report.findings)
    data = json.loads(path.read_text())
    data["images"]["good.jpg"] = {"words": {"1": {"points": SQUARE}}}
    path.write_text(json.dumps(data))
    (tmp_path / "set" / "images" / "good.jpg").write_bytes(GOOD)
    index = build(path, tmp_path / "index", limits=limits, skip_bad=True)
    assert [index.name(i) for i in range(len(index))] == ["good.jpg"] and index.counts["skipped_images"] == 1


@pytest.mark.parametrize("format", ["EPS", "GIF", "TGA", "ICO", "PCX", "DDS"])
def test_what_training_cannot_decode_is_refused(tmp_path, format):
    """By its header, so that no outside program is started (Ghostscript for EPS)."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, format)
    path = source(tmp_path / "set", {"receipt.jpg": file.getvalue(), "good.jpg": GOOD}, [SQUARE])
    (finding,) = [f for f in check(path).findings if f.kind == "unreadable"]
    assert finding.path == "receipt.jpg"
    with pytest.raises(UserError, match="unreadable"):
        build(path, tmp_path / "index")


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "MPO"])
def test_what_training_decodes_is_taken(tmp_path, format):
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 99, 199)).save(file, format)
    path = source(tmp_path / "set", {"receipt.jpg": file.getvalue()}, [SQUARE])
    assert not check(path).fatal and len(build(path, tmp_path / "index")) == 1


def test_a_polygon_of_5000_points_is_drawn_with_fewer_or_masked_out(tmp_path):
    index = build(source(tmp_path / "set", {"a.jpg": GOOD}, [CIRCLE, COMB, SQUARE]), tmp_path / "index")
    circle, comb, square = index.polygons(0)
    assert index.counts["many_points"] == 1 and index.counts["too_many_points"] == 1
    assert index.ignore(0).tolist() == [False, True, False] and len(square) == 4
    assert 20 < len(circle) <= DEFAULT.points and len(comb) == 4
    radius = np.hypot(*(np.concatenate([circle, (circle + np.roll(circle, 1, 0)) / 2]) - 230).T)
    assert np.abs(radius - 200).max() <= 0.51
    assert comb.min(0).tolist() == [10, 100] and comb.max(0).tolist() == [600, 400]
    kinds = {finding.kind: finding.detail for finding in check(tmp_path / "set" / "train.json").findings}
    assert kinds["many-points"] == "region number 1" and kinds["too-many-points"] == "region number 2"


def test_reducing_never_fails():
    rng = np.random.default_rng(0)
    for points in (np.zeros((99, 2)), np.stack([np.arange(99), np.zeros(99)], 1), rng.random((99, 2)), CIRCLE):
        fewer, exact = reduce_points(points.astype(np.float32), 16)
        assert 3 <= len(fewer) <= 16 and (not exact or len(points) == 5000 or np.ptp(points) < 1)


def test_a_large_annotation_is_refused_unread(tmp_path):
    path = source(tmp_path / "set", {"a.jpg": GOOD}, [SQUARE])
    os.truncate(path, 2 * 10**9)  # a hole: it takes no disk
    with pytest.raises(UserError, match=r"train\.json: an annotation file of 2000 MB, above the 512 MB allowed"):
        build(path, tmp_path / "index")
    (tmp_path / "text" / "img").mkdir(parents=True)
    (tmp_path / "text" / "gt").mkdir()
    (tmp_path / "text" / "img" / "a.jpg").write_bytes(GOOD)
    (tmp_path / "text" / "gt" / "a.txt").write_text("5,5,9,5,9,9,5,9,a\n" * 100)
    with pytest.raises(UserError, match=r"a\.txt: an annotation file of 0.0018 MB, above the 0.001 MB"):
        build(tmp_path / "text", tmp_path / "index", limits=Limits(annotation_mb=0.001))
    with pytest.raises(UserError, match="neither a file nor a folder"):
        build("/dev/zero", tmp_path / "index")


def test_text_files_count_together(tmp_path):
    (tmp_path / "img").mkdir()
    (tmp_path / "gt").mkdir()
    for k in range(10):
        (tmp_path / "img" / f"{k}.jpg").write_bytes(GOOD)
        (tmp_path / "gt" / f"{k}.txt").write_text("5,5,9,5,9,9,5,9,a\n" * 10)
    with pytest.raises(UserError, match=r"10 text files of 0\.0018 MB in all, above the 0\.001 MB allowed"):
        build(tmp_path, tmp_path / "index", limits=Limits(annotation_mb=0.001))
    assert len(build(tmp_path, tmp_path / "index", limits=Limits(annotation_mb=0.002)).ignore_flags) == 100


def test_text_lines_take_a_bounded_multiple_of_their_bytes(tmp_path):
    """57 times when each line was lists of fields and numbers; 10 now."""
    (tmp_path / "img").mkdir()
    (tmp_path / "gt").mkdir()
    line = "12,10,95,10,95,92,12,92,a\n"
    for k in range(5):
        (tmp_path / "img" / f"{k}.jpg").write_bytes(GOOD)
        (tmp_path / "gt" / f"{k}.txt").write_text(line * 2000)
    tracemalloc.start()
    source = read_source(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(page.polygons) for page in source.pages) == 10_000
    assert peak < 15 * 10_000 * len(line)


def test_the_limits_of_a_run_hold_for_built_and_cached_indexes(tmp_path):
    import torch

    path = source(tmp_path / "set", {"a.jpg": GOOD}, [SQUARE, CIRCLE])
    build(path, tmp_path / "index")
    ranks = Ranks(0, 0, 1, torch.device("cpu"))

    def opened(spec, *items):
        config, _ = load_config([*TINY, f"run_root={tmp_path / 'runs'}", "eval.protocol=contest", *items])
        return open_pages(config, [str(spec)], ranks)

    for spec in (tmp_path / "index", path):
        assert len(opened(spec)) == 1
        with pytest.raises(UserError, match=r"a\.jpg.*polygons"):
            opened(spec, "data.max_polygons=1")
        with pytest.raises(UserError, match=r"a\.jpg.*megapixels"):
            opened(spec, "data.max_page_mpx=0.3")
    with pytest.raises(UserError, match=r"has a polygon of \d+ points, above data.max_points=16"):
        opened(tmp_path / "index", "data.max_points=16")
    few = opened(path, "data.max_points=16")  # built anew: the limits are in the cache's key
    assert max(len(polygon) for polygon in few.polygons(0)) <= 16


def test_a_file_that_went_bad_keeps_its_place_in_the_cached_index(tmp_path):
    """Else a run that starts again in the middle of an epoch would be refused, or find another epoch."""
    path = source(tmp_path / "set", {f"{i}.jpg": GOOD for i in range(4)}, [SQUARE])
    whole = open_index(path, cache_dir=tmp_path / "cache")
    images = tmp_path / "set" / "images"
    (images / "1.jpg").unlink()
    (images / "2.jpg").write_bytes(b"")
    (images / "3.jpg").write_bytes(jpeg(Image.new("RGB", (100, 90))))  # a good picture: it is taken
    index = open_index(path, cache_dir=tmp_path / "cache")
    assert len(index) == 4 and index.size_wh.tolist() == [[640, 480]] * 3 + [[100, 90]]
    assert [index.num_bytes(i) for i in (0, 1, 2)] == [whole.num_bytes(i) for i in (0, 1, 2)]
    stamp = (index.folder / "meta.json").stat().st_mtime_ns
    again = open_index(path, cache_dir=tmp_path / "cache")
    assert (again.folder / "meta.json").stat().st_mtime_ns == stamp  # as bad as before: nothing to build
    (images / "1.jpg").write_bytes(GOOD)
    mended = open_index(path, cache_dir=tmp_path / "cache")
    assert (mended.folder / "meta.json").stat().st_mtime_ns > stamp
    assert json.loads((mended.folder / "meta.json").read_text())["kept"].keys() == {"2.jpg"}
    with pytest.raises(UserError, match=r"2\.jpg: unreadable \(empty file\)"):
        open_index(path, cache_dir=tmp_path / "other")  # where nothing is known, it is refused


# The kernel's ru_maxrss would count what the child had before exec: this process's own memory.
CHILD = """
import atexit, runpy, sys
def told():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("VmHWM", line.split()[1], flush=True)
atexit.register(told)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def peak_mib(*command):
    """(exit code, stderr and stdout, peak resident memory in MiB) of `python -m command...`."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    said, _, peak = done.stdout.rpartition("VmHWM ")
    return done.returncode, said, int(peak) / 1024


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path):
    good = source(tmp_path / "good", {"a.jpg": GOOD}, [SQUARE])
    code, _, plain = peak_mib("pipelines.dataset", "build", str(good), "--out", str(tmp_path / "0"))
    assert code == 0
    for case, (images, polygons, _message) in REFUSED.items():
        path = source(tmp_path / case, images, [SQUARE] * 20_000 if len(polygons) > 1 else polygons)
        for command in (["build", str(path), "--out", str(tmp_path / f"{case}.index")], ["check", str(path)]):
            code, said, peak = peak_mib("pipelines.dataset", *command)
            print(f"{case}, {command[0]}: {peak:.0f} MiB, {peak - plain:+.0f} over a good page")
            assert code == 2 and "Traceback" not in said
            assert peak < plain + 200
    huge = source(tmp_path / "huge", {"a.jpg": GOOD}, [SQUARE])
    os.truncate(huge, 2 * 10**9)
    code, said, peak = peak_mib("pipelines.dataset", "build", str(huge), "--out", str(tmp_path / "h"))
    print(f"2 GB annotation: {peak:.0f} MiB, {peak - plain:+.0f}")
    assert code == 2 and peak < plain + 50
    points = source(tmp_path / "points", {"a.jpg": GOOD}, [CIRCLE, COMB])
    code, said, peak = peak_mib("pipelines.dataset", "build", str(points), "--out", str(tmp_path / "p"))
    print(f"5,000-point polygons: {peak:.0f} MiB, {peak - plain:+.0f}")
    assert code == 0 and peak < plain + 50
