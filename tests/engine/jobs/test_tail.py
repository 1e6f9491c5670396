"""What a running training has logged since the last look."""

import json

from engine.jobs.tail import Tail


def _line(epoch, kind="validation"):
    return json.dumps({"kind": kind, "epoch": epoch, "hmean": 0.5}) + "\n"


def test_only_new_validation_records_are_read_and_a_torn_line_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == [], "not there yet"
    path.write_text(_line(1, "train") + _line(1) + _line(2)[:10])
    assert [record["epoch"] for record in tail.read()] == [1]
    assert tail.read() == []
    with path.open("a") as file:
        file.write(_line(2)[10:] + "no JSON\n" + _line("x"))
    assert [record["epoch"] for record in tail.read()] == [2]


def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path):
    path, draft = tmp_path / "metrics.jsonl", tmp_path / "draft"
    path.write_text(_line(1) + _line(2))
    tail = Tail(path)
    assert len(tail.read()) == 2
    draft.write_text(_line(1))  # a resume has cut the second off
    draft.rename(path)
    assert [record["epoch"] for record in tail.read()] == [1]
