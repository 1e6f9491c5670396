import pytest

from pipelines.images.listing import LEADS_OUT, find_images
from pipelines.index.bare import BareIndex


def test_links_out_of_a_folder_are_left_out_and_folders_taken_once(tmp_path):
    data, store = tmp_path / "data", tmp_path / "store"
    for file in (data / "b.jpg", data / "sub" / "a.jpg", data / "note.txt", store / "c.jpg", store / "deep" / "d.PNG"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (data / "in.jpg").symlink_to(data / "b.jpg")
    (data / "out.jpg").symlink_to(store / "c.jpg")
    (data / "gone.jpg").symlink_to(store / "nowhere.jpg")
    (data / "store").symlink_to(store)
    (store / "back").symlink_to(data)
    (data / "again").symlink_to(data / "sub")
    images = find_images([str(data)])
    assert list(images.names()) == ["b.jpg", "gone.jpg", "in.jpg", "out.jpg", "sub/a.jpg"]
    assert images.refused == {1: LEADS_OUT, 3: LEADS_OUT} and images[4] == data / "sub" / "a.jpg"
    assert images.since(2).refused == {1: LEADS_OUT} and list(images.since(2)) == list(images)[2:]
    images = find_images([str(data)], follow_links=True)
    assert not images.refused
    assert list(images.names()) == [
        "b.jpg", "gone.jpg", "in.jpg", "out.jpg", "store/c.jpg", "store/deep/d.PNG", "sub/a.jpg"
    ]  # fmt: skip
    alone = find_images([str(data / "out.jpg")])
    assert list(alone.names()) == ["out.jpg"] and not alone.refused
    (tmp_path / "named").symlink_to(data)
    assert len(find_images([str(tmp_path / "named")])) == 5


@pytest.mark.parametrize("follow", [False, True])
def test_a_link_to_itself_is_one_bad_page(tmp_path, follow):
    for name in ("a.jpg", "folder"):
        (tmp_path / name).symlink_to(tmp_path / name)
    (tmp_path / "b.jpg").write_bytes(b"")
    images = find_images([str(tmp_path)], follow)
    assert list(images.names()) == ["a.jpg", "b.jpg"]
    assert BareIndex(images, tolerate=True, refused=images.refused).bad.keys() == {0, 1}


def test_order_is_by_the_parts_of_names(tmp_path):
    for name in ("a/z.jpg", "a.jpg", "a-b/c.jpg", "b/1.jpg", "B.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [*find_images([str(tmp_path)]).names()] == ["B.jpg", "a/z.jpg", "a-b/c.jpg", "a.jpg", "b/1.jpg"]
