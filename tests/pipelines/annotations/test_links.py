import json
from pathlib import Path

import pytest
from receipt_folders import receipt_folder

from pipelines import dataset
from pipelines.annotations.read import read_source
from pipelines.errors import UserError
from pipelines.index import store as index_store
from tests.faults.fuzz_targets import CONTEST


@pytest.mark.parametrize("what", ["img/a.jpg", "box/a.txt", "img", "box"])
@pytest.mark.parametrize("source", ["", "ids.txt"])
def test_a_link_that_leads_out_of_the_data_is_refused(tmp_path, what, source):
    data, outside = receipt_folder(tmp_path / "data"), tmp_path / "outside"
    outside.mkdir()
    target = (data / what).rename(outside / Path(what).name)
    (data / what).symlink_to(target)
    with pytest.raises(UserError, match=r"a symbolic link that leads out .*--follow-links") as refusal:
        read_source(data / source)
    assert "TOTAL" not in str(refusal.value)
    assert len(read_source(data / source, follow_links=True).pages) == 2


def test_links_inside_and_a_linked_folder_are_fine(tmp_path):
    data = receipt_folder(tmp_path / "data")
    (data / "img" / "c.jpg").symlink_to("a.jpg")
    (data / "box" / "c.txt").symlink_to("a.txt")
    (tmp_path / "linked").symlink_to(data)
    assert len(read_source(tmp_path / "linked").pages) == 3
    (data / "img" / "d.jpg").symlink_to("../../gone.jpg")
    (data / "box" / "d.txt").symlink_to("a.txt")
    assert len(read_source(data).pages) == 3, "a link to nothing is no image"
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(CONTEST))
    (tmp_path / "images").symlink_to(data / "img")
    assert len(read_source(labels).pages) == 2, "the image folder is the root"
    (data / "img" / "a.jpg").unlink()
    (data / "img" / "a.jpg").symlink_to(labels)
    with pytest.raises(UserError, match="a symbolic link that leads out"):
        read_source(labels)


def test_the_command_that_follows_links_builds_an_index(tmp_path, capsys):
    data = receipt_folder(tmp_path / "data")
    target = (data / "img" / "a.jpg").rename(tmp_path / "store.jpg")
    (data / "img" / "a.jpg").symlink_to(target)
    for command in (["check", str(data)], ["build", str(data), "--out", str(tmp_path / "index")]):
        assert dataset.main(command) == 2
        assert "--follow-links" in capsys.readouterr().err
    assert dataset.main(["build", str(data), "--out", str(tmp_path / "index"), "--follow-links"]) == 0
    assert len(index_store.load(tmp_path / "index")) == 2
