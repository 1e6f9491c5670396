import io
import time

import pytest
from bombs import many_scans
from data_sets import noise_jpeg
from PIL import Image

from pipelines.images.jpeg import count_scans, scan_markers


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


def test_scans_behind_what_libjpeg_passes_over_are_counted():
    """It looks for the next marker wherever one should be, and 0xff01 and restart markers have no length."""
    many = many_scans(200)
    second = many.index(b"\xff\xda", many.index(b"\xff\xda") + 1)
    for extra in (b"abc\0", b"\xff\x01", b"\xff\xd3", b"\xff\xff\xff", b"\xff\x01\xff\xd0x\xff\0"):
        data = many[:second] + extra + many[second:]
        with Image.open(io.BytesIO(data)) as image:
            assert image.getpixel((5, 5)) == 90  # libjpeg does take it
        assert count_scans(data, 100) == count_scans(many[:2] + extra + many[2:], 100) == 101


def test_runs_of_fill_bytes_take_no_time():
    """40,000 of them took 25 s, the number squared."""
    start = many_scans(1)
    head, end = start[: start.rindex(b"\xff\xda") + 10], b"\xff\xd9"
    before = time.process_time()
    for run in (b"\xff" * 1_000_000 + b"\0", b"\xff" * 1_000_000):
        assert scan_markers(head + run + end) == ("", "")
        assert count_scans(head + run + start[2:], 100) > count_scans(head, 100)
        assert count_scans(b"\xff\xd8" + run + start[2:], 100) == count_scans(start, 100)
    assert scan_markers(b"\xff\xd8" + b"\xff" * 1_000_000 + start[2:]) == scan_markers(start) == ("", "")
    assert time.process_time() - before < 2
