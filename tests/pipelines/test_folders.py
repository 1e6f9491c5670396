"""pipelines.folders: a folder is complete or absent, and never somebody else's."""

import os

import pytest

from pipelines.errors import UserError
from pipelines.folders import new_folder, refuse_full


def test_a_folder_is_complete_or_absent(tmp_path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(ZeroDivisionError), new_folder(out, replace=True) as made:
        (made / "half").touch()
        raise ZeroDivisionError
    assert os.listdir(out.parent) == []
    with new_folder(out, replace=True) as made:
        (made / "whole").touch()
        assert not out.exists()
    assert os.listdir(out) == ["whole"] and os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("replace", [True, False])
def test_the_later_of_two_takes_the_place_or_leaves_it(tmp_path, replace):
    for name in ("first", "second"):
        with new_folder(tmp_path / "out", replace) as made:
            (made / name).touch()
    assert os.listdir(tmp_path / "out") == ["second" if replace else "first"] and os.listdir(tmp_path) == ["out"]


def test_what_is_not_empty_is_refused(tmp_path):
    refuse_full(tmp_path / "absent")
    refuse_full(tmp_path)
    (tmp_path / "file").touch()
    for full in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="exists and is not empty"):
            refuse_full(full)
