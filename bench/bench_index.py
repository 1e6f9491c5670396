"""Indexing very many pages: time and memory a page, and how soon the first batch comes.

    pytest bench/bench_index.py -m quick       # 2,000 pages beside a reader that keeps them in Python's lists
    python -m bench.bench_index --pages 1000000 --kind lines --folder FOLDER      # by hand: half an hour, 12 GB of disk

By hand it makes pages of 60 words whose images are hard links to a few small ones (`lines`: WildReceipt's JSON lines,
`text`: a text file a page, `contest`, `coco`: one JSON document), builds their index in a fresh process, and in another
one opens it as a training does, to the first batch. Pages that are there already are taken.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.index.build import build

WORDS, SIZE = 60, (480, 640)
OF_A_FOLDER = 1000  # pages; as many links to one file
PAGES = 2000  # of the quick row
MOST_KIB_A_PAGE = 3.0  # what building may hold of each page: 3 GB for a million, less what the program itself has
# Of this process at its most, MiB; ru_maxrss would count what the one had that started it.
PEAK = "next(int(l.split()[1]) >> 10 for l in open('/proc/self/status') if l.startswith('VmHWM'))"
BUILD = f"""
import sys, time
from pipelines.index.build import build
begin, busy = time.perf_counter(), time.process_time()
index = build(sys.argv[1], sys.argv[2], limits=__import__("pipelines.limits").limits.Limits(annotation_mb=1e6))
print(time.perf_counter() - begin, time.process_time() - busy, {PEAK}, len(index), len(index.ignore_flags))
"""
OPEN = f"""
import sys, time
import engine.train
from engine.config.load import load_config
from engine.data import build_train_loader, open_data
from engine.distributed import Ranks
import torch
config, _ = load_config(["preset=demo", f"data.train=[{{sys.argv[1]}}]", f"data.val=[{{sys.argv[2]}}]"])
ranks = Ranks(0, 0, 1, torch.device("cpu"))
begin, busy = time.perf_counter(), time.process_time()
data = open_data(config, ranks)
opened = time.perf_counter() - begin
next(build_train_loader(config, data.train, ranks, 0, 0))
print(opened, time.perf_counter() - begin, time.process_time() - busy, {PEAK})
"""


@functools.cache
def template(kind: str, shift: int) -> str:
    """A page's labels with places (%d) for the numbers of its words: 6 columns, 10 rows, moved by quarter pixels."""
    left, top = np.meshgrid(np.arange(6) * 75.0 + 10, np.arange(10) * 60.0 + 10)
    box = np.stack([left, top, left + 60, top, left + 60, top + 20, left, top + 20], -1).reshape(WORDS, 8) + shift / 4
    said, outlines = "word%d", box.tolist()
    if kind == "text":
        return "".join(",".join(map(str, outline)) + f",{said}\n" for outline in outlines)
    if kind == "lines":
        return json.dumps([{"box": outline, "text": said, "label": 1} for outline in outlines])
    if kind == "contest":
        pairs = box.reshape(WORDS, 4, 2).tolist()
        return json.dumps({str(k): {"points": pairs[k], "transcription": said} for k in range(WORDS)})
    about = {"image_id": "PAGE", "category_id": 1, "iscrowd": 0, "text": said}
    made = [about | {"id": f"PAGE-{k}", "segmentation": [outline]} for k, outline in enumerate(outlines)]
    return json.dumps(made)[1:-1]


def labels(kind: str, page: int, name: str) -> str:
    """A page's file, line, or members of a document."""
    words = template(kind, page % 29) % tuple((page * 31 + k * 7) % 10_000 for k in range(WORDS))
    if kind == "lines":
        return f'{{"file_name": "{name}", "height": {SIZE[1]}, "width": {SIZE[0]}, "annotations": {words}}}'
    if kind == "contest":
        return f'"{name}": {{"words": {words}, "img_w": {SIZE[0]}, "img_h": {SIZE[1]}}}'
    return words.replace("PAGE", str(page)) if kind == "coco" else words


def link_images(folder: Path, pages: int, flat: bool) -> Iterator[str]:
    """Makes the images of some pages; their names, in order."""
    rng = np.random.default_rng(0)
    for start in range(0, pages, OF_A_FOLDER):
        place = folder if flat else folder / f"{start // OF_A_FOLDER:04d}"
        place.mkdir(parents=True, exist_ok=True)
        first = place / f"{start:07d}.jpg"
        Image.fromarray(rng.integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)).resize(SIZE).save(first)
        for page in range(start, min(start + OF_A_FOLDER, pages)):
            name = f"{page:07d}.jpg"
            if page > start:
                os.link(first, f"{place}/{name}")
            yield name if flat else f"{place.name}/{name}"


def make(folder: Path, pages: int, kind: str) -> Path:
    """Pages in a folder, unless they are there; what to read them by."""
    source = folder if kind == "text" else folder / ("train.jsonl" if kind == "lines" else "train.json")
    if (folder / "img").exists():
        return source
    (folder / "box").mkdir(parents=True)
    names = link_images(folder / "img", pages, flat=kind == "text")
    if kind == "text":
        for page, name in enumerate(names):
            with open(f"{folder}/box/{name[:-4]}.txt", "w") as file:
                file.write(labels(kind, page, name))
        return source
    before, between, after = {
        "lines": ("", "\n", "\n"),
        "contest": ('{"images": {', ", ", "}}"),
        "coco": ('{"annotations": [', ", ", '], "images": ['),
    }[kind]
    with source.open("w") as file:
        file.write(before)
        listed = []
        for page, name in enumerate(names):
            file.write((between if page else "") + labels(kind, page, name))
            listed += (
                [{"id": str(page), "file_name": name, "width": SIZE[0], "height": SIZE[1]}] if kind == "coco" else []
            )
        file.write(after + (json.dumps(listed)[1:] + "}" if kind == "coco" else ""))
    return source


def child(program: str, *arguments: Path) -> list[float]:
    """The numbers that a fresh process prints last."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=Path(__file__).parents[1], check=True, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def by_lists(source: Path) -> list[np.ndarray]:
    """The same pages as readers commonly take them: all parsed, all regions in lists, then joined."""
    entries = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    sizes, points, lengths, said = [], [], [], []
    for entry in entries:
        with Image.open(source.parent / "img" / entry["file_name"]) as image:
            sizes.append(image.size)
        for word in entry["annotations"]:
            outline = np.array(word["box"], np.float32).reshape(-1, 2)
            points.append(np.clip(outline, 0, sizes[-1]))
            lengths.append(len(outline))
            said.append(word["text"])
    return [np.array(sizes), np.concatenate(points), np.cumsum(lengths), np.array(said)]


@pytest.mark.quick
def test_json_lines(measure, tmp_path):
    """The time beside such a reader, and what building holds of a page."""
    source = make(tmp_path / "set", PAGES, "lines")
    case = f"JSON lines, {PAGES} pages of {WORDS} words"
    run = lambda: build(source, tmp_path / "index", workers=1), lambda: by_lists(source)
    measure("index.build", case, *run, peer_name="json and lists", images=PAGES, rounds=2)


def test_memory_of_a_page(tmp_path):
    """What more pages take, where nothing of them is kept in memory on purpose, and few are judged together."""
    program = (
        "from pipelines.annotations import packed; packed.IN_MEMORY = 0\n"
        "from pipelines.index import conventions; conventions.JUDGED = 100\n" + BUILD
    )
    peaks = []
    for pages in (PAGES // 4, PAGES):
        source = make(tmp_path / str(pages), pages, "lines")
        peaks.append(child(program, source, tmp_path / f"index{pages}")[2])
    assert 1024 * (peaks[1] - peaks[0]) / (PAGES - PAGES // 4) < MOST_KIB_A_PAGE


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--kind", default="lines", choices=("lines", "text", "contest", "coco"))
    parser.add_argument("--folder", type=Path, help="where the pages are made and stay; default: made and removed")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        top = (options.folder or Path(temporary)).resolve()
        folder = top / f"{options.kind}-{options.pages}"
        begin = time.perf_counter()
        source = make(folder, options.pages, options.kind)
        files = [source] if source.is_file() else os.scandir(folder / "box")
        size = sum(file.stat().st_size for file in files) / 1e6
        print(f"{source}: labels of {size:.0f} MB, made in {time.perf_counter() - begin:.0f} s")
        seconds, busy, peak, pages, regions = child(BUILD, source, folder / "index")
        print(
            f"built: {pages:.0f} pages, {regions:.0f} regions in {seconds:.1f} s, "
            f"{1e3 * busy / pages:.3f} ms of CPU a page; "
            f"{peak:.0f} MiB at the most, {peak * 1.048576 / size:.2f} times the labels"
        )
        val = make(top / "val", 100, "lines")
        child(BUILD, val, top / "val" / "index")
        for turn in ("first", "second"):
            opened, first, busy, peak = child(OPEN, folder / "index", top / "val" / "index")
            print(f"{turn} time: opened in {opened:.2f} s, at most {peak:.0f} MiB")
            print(f"    first batch after {first:.2f} s, {busy:.2f} s of CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
