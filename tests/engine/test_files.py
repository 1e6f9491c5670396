"""engine.files: text replaced whole or not at all, JSON lines with torn ends, locks and their owners."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from engine import files
from engine.detection import results
from engine.search import ledger
from tests.conftest import ROOT


def test_text_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.replace_text(path, "old\n")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write("half of it")
        raise ZeroDivisionError
    assert path.read_text() == "old\n" and os.listdir(tmp_path) == ["a.json"]
    files.replace_text(path, "new é\n")
    assert path.read_bytes() == "new é\n".encode()


def test_a_replaced_file_has_the_rights_of_a_new_one(tmp_path):
    """In a process of its own: a umask is the whole process's."""
    program = (
        "import os, pathlib; from engine.files import replace_text; os.umask(0o027);"
        "replace_text(pathlib.Path('a'), 'x'); print(oct(os.stat('a').st_mode & 0o777))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "0o640"


def test_lines_are_read_from_an_offset_and_a_torn_end_waits(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n[2]\n{"a": \xff}\n{"a": 4}\n{"a": 5')
    every = list(files.json_lines(path))
    assert [record for _, record in every] == [{"a": 1}, None, None, {"a": 4}, None]
    end = every[3][0]
    assert list(files.json_lines(path, end, torn=False)) == []
    with path.open("ab") as file:
        file.write(b"}\n")
    assert [record for _, record in files.json_lines(path, end, torn=False)] == [{"a": 5}]


def test_a_lock_is_held_once_and_a_file_system_without_locks_is_told_apart(tmp_path, monkeypatch):
    first, second = (os.open(tmp_path / "l", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert files.flock(first) is True and files.flock(second) is False
    files.write_record(first, {"pid": 1})
    assert files.owner_record(tmp_path / "l") == {"pid": 1} and files.owner_record(tmp_path / "none") == {}

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    assert files.flock(second) is None
    os.close(first), os.close(second)


def test_without_locks_a_search_and_a_prediction_say_so_and_go_on(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    os.close(ledger.take_lock(tmp_path))
    results.Journal(tmp_path, {"checkpoint": "x"}, iter(()), 1, "new").close()
    said = capsys.readouterr().err
    assert said.count("this file system has no locks") == 2
