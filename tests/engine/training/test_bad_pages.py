"""What a run knows of pages that cannot be read."""

from types import SimpleNamespace

import pytest

from engine.training import bad_pages
from pipelines.errors import UserError


class _Pages:
    """As much of an index as is looked at."""

    def __init__(self):
        self.bad, self.unread = {}, set()

    def __len__(self):
        return 3

    def name(self, row):
        return f"{row}.jpg"

    def path(self, row):
        return f"/pages/{row}.jpg"


def test_what_was_found_goes_out_of_use_between_epochs_and_comes_back_from_a_checkpoint(tmp_path):
    pages = _Pages()
    pages.bad[1] = "empty file"
    assert bad_pages.gathered(pages, epoch_over=False) == [[1, "1.jpg", "empty file", False]]
    saved = bad_pages.gathered(pages, epoch_over=True)
    assert saved == [[1, "1.jpg", "empty file", True]] and pages.unread == {1}
    again = _Pages()
    bad_pages.restore(again, [*saved, [2, "another.jpg", "x", True], [9, "9.jpg", "x", True]], tmp_path)
    assert again.bad == {1: "empty file"} and again.unread == {1}, "rows that are another file are left out"
    with pytest.raises(UserError, match="bad_pages has"):
        bad_pages.restore(again, [[1, "1.jpg"]], tmp_path)


def test_the_share_is_judged_on_all_pages_and_the_list_is_written(tmp_path):
    pages, ranks = _Pages(), SimpleNamespace(main=True)
    pages.bad[1] = "empty file"
    config = SimpleNamespace(data=SimpleNamespace(max_bad_share=0.5))
    assert bad_pages.write_and_judge_share(tmp_path, pages, config, ranks) == 1
    assert "empty file" in (tmp_path / bad_pages.FILE).read_text()
    config.data.max_bad_share = 0.0
    with pytest.raises(UserError):
        bad_pages.write_and_judge_share(tmp_path, pages, config, ranks)
