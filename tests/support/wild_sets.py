"""Data sets as other people's files are: pages on disk, and what `check` and the index make of them."""

import json

from data_sets import noise_jpeg

from pipelines.check import check
from pipelines.errors import UserError
from pipelines.index.build import build, open_index

QUAD = [[10, 20], [110, 20], [110, 40], [10, 40]]
FLAT = [10, 20, 110, 20, 110, 40, 10, 40]
OTHER = [[20, 50], [150, 52], [150, 80], [20, 78]]


def pages(folder, *names, size=(200, 100)):
    """Noise pictures; without names a.jpg and b.jpg."""
    for k, name in enumerate(names or ("a.jpg", "b.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(noise_jpeg(k, size))


def put(path, *documents):
    """A JSON file; of several documents, JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(document, ensure_ascii=False) for document in documents), encoding="utf-8")
    return path


def opened(source, tmp_path, format="auto", root=None):
    """(report of check, index): both take the source; what one finds odd, the other counts."""
    report = check(source, format, root)
    assert report.fatal == []
    if root is None:
        index = open_index(source, format, tmp_path / "cache")
    else:
        index = build(source, tmp_path / "index", format, root)
    assert (report.pages, report.usable) == (len(index), index.num_usable)
    assert bool(report.counts) == bool(index.oddities), (report.counts, index.oddities)
    return report, index


def refused(source, tmp_path, format="auto", root=None):
    """The line by which check and the index refuse a source."""
    try:
        said = "; ".join(check(source, format, root).fatal)
    except UserError as error:
        said = str(error)
    try:
        build(source, tmp_path / "index", format, root)
    except UserError as error:
        line = str(error)
    else:
        raise AssertionError(f"built; check says: {said}")
    assert said and "\n" not in line
    return line
