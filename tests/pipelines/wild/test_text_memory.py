"""Text labels of a large set: little more memory than the files have bytes, and time in step with them."""

import time
import tracemalloc

from wild_text import pages_of

from pipelines.annotations.read import read_source
from pipelines.annotations.text_formats import read_lines
from tests.support.annotation_files import put

LINE = "10{k},20,110,20,110,40,10,40,WORD{k}\n"


def test_pages_take_no_more_than_four_times_their_files(tmp_path):
    text = "".join(LINE.format(k=k % 1000) for k in range(3000))
    folder = pages_of(tmp_path / "set", *[text] * 8, names=[str(k) for k in range(8)], size=(8, 8))
    read_source(folder)
    tracemalloc.start()
    made = read_source(folder)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(page.polygons) for page in made.pages) == 24_000
    assert held < 2.5 * 8 * len(text) and peak < 4 * 8 * len(text)


def test_time_grows_with_the_lines(tmp_path):
    times = []
    for count in (4_000, 16_000):
        text = "".join(LINE.format(k=k % 1000) for k in range(count))
        folder = pages_of(tmp_path / str(count), text, text, size=(8, 8))
        begin = time.process_time()
        read_source(folder)
        times.append(time.process_time() - begin)
    assert times[1] < 8 * times[0]


def test_a_large_file_is_never_held_whole(tmp_path):
    path = put(tmp_path / "ids.txt", "".join(f"image_{k:07d}\r\n" for k in range(400_000)))
    tracemalloc.start()
    count = sum(1 for _ in read_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 400_000 and peak < 4_000_000 < path.stat().st_size


def test_a_letter_that_is_no_utf8_far_into_a_file(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xc3\xa9" * 600_000 + b"\n" + b"a\xe9b\n")
    assert [len(line) for line in read_lines(path)] == [1_200_000, 3]
    assert "byte 1200002" in caplog.text
    path.write_bytes(b"x" + b"\xc3\xa9" * 600_000)  # a letter lies across the first chunk's end
    assert list(read_lines(path)) == ["x" + "\u00e9" * 600_000]
