"""What prediction leaves behind: writers, and readers that prove them."""

import json
import resource

import numpy as np
import pytest

from engine.detection import results
from engine.detection.postprocess import Detections
from engine.detection.results import LINES, Journal
from pipelines.annotations import read
from pipelines.errors import UserError

STATE = {"checkpoint": "a", "post.bin_thresh": 0.3}


def _quad(x, y):
    return np.array([[x, y], [x + 10, y], [x + 10, y + 5], [x, y + 5]], np.float32)


def _result(name, *corners):
    found = Detections([_quad(*corner) for corner in corners], np.linspace(1, 0.5, len(corners), dtype=np.float32))
    return results.as_json(name, (60, 50), found)


def _journal(out, names, mode="new", batch=2, state=None):
    return Journal(out, state or STATE, iter(names), batch, mode)


def test_the_contest_row_has_whole_pixels_and_at_most_500_regions():
    found = Detections([_quad(i % 50, 0.4) for i in range(600)], np.linspace(1, 0, 600, dtype=np.float32))
    name, polygons = results.csv_row(results.as_json("b/a.jpg", (100, 100), found))
    assert name == "a.jpg" and polygons.count("|") == 499
    assert polygons.split("|")[0] == "0 0 10 0 10 5 0 5"


def test_coordinates_have_two_decimals():
    found = Detections([_quad(1 / 3, 0.129)], np.array([2 / 3], np.float32))
    assert json.dumps(results.as_json("a", (60, 50), found)["regions"][0]) == (
        '{"points": [[0.33, 0.13], [10.33, 0.13], [10.33, 5.13], [0.33, 5.13]], "score": 0.66667}'
    )


def test_coco_and_label_lines_are_read_back_as_annotations(tmp_path):
    """With a page of polygons, one without regions, one that could not be read, and names that need care."""
    many = Detections([np.array([[0, 0], [9, 1], [12, 7], [4, 9], [1, 5]], np.float32)], np.ones(1, np.float32))
    lines = [
        _result("a/1.png", (3, 4), (20.25, 30.5)),
        {"image": "broken.png", "error": "empty file"},
        _result("empty.png"),
        results.as_json("영수증 #1.png", (60, 50), many),
        _result("tab\t.png", (1, 1)),
        _result("half\udc80.png", (1, 1)),
    ]
    for line in lines:
        (tmp_path / line["image"]).parent.mkdir(exist_ok=True)
        (tmp_path / line["image"]).write_bytes(b"")
    results.write_coco(tmp_path / "r.json", lambda: iter(lines))
    results.write_paddle(tmp_path / "r.txt", lambda: iter(lines))
    coco = json.loads((tmp_path / "r.json").read_text())
    assert [image["id"] for image in coco["images"]] == [1, 3, 4, 5, 6]
    first = coco["annotations"][0]
    assert first["bbox"] == [3, 4, 10, 5] and first["area"] == 50 and first["score"] == 1 and first["image_id"] == 1
    good = [line for line in lines if "regions" in line]
    coco["images"], coco["annotations"] = coco["images"][:4], coco["annotations"][:4]  # no reader takes half a letter
    (tmp_path / "r.json").write_text(json.dumps(coco))
    for name, expected in (("r.json", good[:4]), ("r.txt", good[:3])):
        pages = read.read_source(tmp_path / name, root=tmp_path).pages
        assert [page.path for page in pages] == [line["image"] for line in expected]
        for page, line in zip(pages, expected, strict=True):
            assert [polygon.tolist() for polygon in page.polygons] == [r["points"] for r in line["regions"]]
            assert not any(page.ignore)


def test_names_a_label_line_cannot_hold_are_named(tmp_path, capsys):
    results.write_paddle(tmp_path / "r.txt", lambda: iter([_result("b\n.png"), _result("a.png"), _result(" c.png")]))
    assert (tmp_path / "r.txt").read_text() == "a.png\t[]\n"
    assert "2 names with tabs" in capsys.readouterr().err


def test_a_format_is_complete_or_absent(tmp_path):
    def broken():
        yield _result("a.png", (1, 1))
        raise KeyboardInterrupt

    for _, (name, write) in results.FORMATS.items():
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / name, broken)
    assert not list(tmp_path.iterdir())


def test_one_process_writes(tmp_path):
    first = _journal(tmp_path, ["a"])
    with pytest.raises(UserError, match="another process is writing it"):
        _journal(tmp_path, ["a"], "overwrite")
    first.close()
    _journal(tmp_path, ["a"], "overwrite").close()


def test_a_resume_goes_back_to_a_batch_and_refuses_other_lines(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    journal = _journal(tmp_path, names)
    for name in names[:3]:
        journal.add(_result(name, (1, 2)))
    journal.close()
    lines = (tmp_path / LINES).read_bytes()
    with (tmp_path / LINES).open("ab") as file:
        file.write(b'{"image": "d", "wid')
    again = _journal(tmp_path, names, "resume")
    assert again.done == 2 and (tmp_path / LINES).read_bytes() == b"".join(lines.splitlines(True)[:2])
    again.close()
    for text, words in ((b"{}\n", "no result of a prediction"), (b"\0\0\n", "no result"), (lines, "not the image")):
        (tmp_path / LINES).write_bytes(lines + text)
        with pytest.raises(UserError, match=words):
            _journal(tmp_path, names, "resume")
    with pytest.raises(UserError, match=r"post\.bin_thresh was 0\.3 and is now 0.4"):
        _journal(tmp_path, names, "resume", state=STATE | {"post.bin_thresh": 0.4})


def test_a_new_prediction_takes_the_old_ones_formats_away(tmp_path):
    _journal(tmp_path, ["a"]).close()
    (tmp_path / "results.csv").write_text("old")
    _journal(tmp_path, ["a"], "overwrite").close()
    assert not (tmp_path / "results.csv").exists()


def test_what_others_left_under_the_names_of_results_is_not_deleted_unasked(tmp_path):
    (tmp_path / "results.csv").write_text("mine")
    for mode in ("new", "resume"):
        with pytest.raises(UserError, match=r"results\.csv exists, without"):
            _journal(tmp_path, ["a"], mode)
    assert (tmp_path / "results.csv").read_text() == "mine"


def test_the_draft_of_a_killed_process_goes_with_the_next(tmp_path):
    (tmp_path / ".results.abcdefg").write_text("half")
    _journal(tmp_path, ["a"]).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [LINES, "results.state.json"]


@pytest.fixture
def full():
    """A function after which no file of this process gets longer than so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_with_one_line_and_loses_nothing(tmp_path, full):
    """The line that does not fit is torn; a resume goes back to the last whole batch and the bytes are the same."""
    names = ["a", "b", "c", "d"]
    journal = _journal(tmp_path, names, batch=1)
    journal.add(_result("a", (1, 1)))
    size = (tmp_path / LINES).stat().st_size
    full(2 * size + 9)
    journal.add(_result("b", (1, 1)))
    with pytest.raises(UserError, match=r"results\.jsonl: cannot be written .* --resume"):
        journal.add(_result("c", (1, 1)))
    journal.close()
    assert journal.done == 2 and (tmp_path / LINES).stat().st_size == 2 * size + 9
    many = [_result("a", *[(1, 1)] * 9)]
    with pytest.raises(UserError, match=r"results\.csv: cannot be written"):
        results.write_coco(tmp_path / "results.csv", lambda: iter(many))
    assert not list(tmp_path.glob(".results.*"))
    full(1 << 30)
    again = _journal(tmp_path, names, "resume", batch=1)
    assert again.done == 2
    for name in names[2:]:
        again.add(_result(name, (1, 1)))
    again.close()
    assert [line["image"] for line in results.read_lines(tmp_path / LINES)] == names


def test_file_names_that_come_twice_in_the_table_are_said(tmp_path, capsys):
    results.write_csv(tmp_path / "r.csv", lambda: iter([_result("a/1.png"), _result("b/2.png")]))
    assert not capsys.readouterr().err
    results.write_csv(tmp_path / "r.csv", lambda: iter([_result("a/1.png"), _result("b/1.png")]))
    assert "one file name (e.g. 1.png)" in capsys.readouterr().err
