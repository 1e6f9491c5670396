"""Small data sets of text lines in other people's layouts, and both commands' judgement of them."""

from pathlib import Path

from annotation_files import picture, put

from pipelines.check import check
from pipelines.errors import UserError
from pipelines.index.build import build, open_index

SIZE = (640, 480)


def pages_of(folder: Path, *files: str, names=("a", "b"), images="img", labels="gt", suffix=".txt", size=SIZE) -> Path:
    """A page for each text of lines: images/NAME.jpg and labels/NAME.txt."""
    for name, text in zip(names, files, strict=True):
        picture(folder / images / f"{name}.jpg", size)
        put(folder / labels / f"{name}{suffix}", text)
    return folder


def judge(source, format="auto", root=None):
    """(report of check, index): both take the source, and count the same usable regions and odd things."""
    report = check(source, format, root)
    assert not report.fatal, report.fatal
    index = _index(source, format, root)
    assert len(index) == report.pages
    assert int((~index.ignore_flags).sum()) == report.usable
    counts = {kind.replace("-", "_"): count for kind, count in report.counts.items() if kind in ("bad-line", "orphan")}
    assert counts == {kind: index.counts.get(kind, 0) for kind in counts}
    return report, index


def _index(source, format, root):
    cache = Path(source).parent / "cache"
    return open_index(source, format, cache) if root is None else build(source, cache, format, root)


def refusal(source, format="auto", root=None) -> str:
    """The line with which the index refuses; check must find something fatal as well."""
    try:
        fatal = "; ".join(check(source, format, root).fatal)
    except UserError as error:
        fatal = str(error)
    assert fatal
    try:
        _index(source, format, root)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError(f"check says {fatal!r}, the index is built")


def outlines(index, page: int = 0) -> list[list[list[int]]]:
    """A page's polygons, rounded, as lists."""
    return [polygon.round().astype(int).tolist() for polygon in index.polygons(page)]
