import numpy as np
import pytest
from annotation_files import QUAD, contest, picture, put, put_json, read
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.annotations.read import FORMATS
from pipelines.errors import UserError


@pytest.mark.parametrize(
    "name, text",
    [
        ("x.json", '{"hello": 1}'),
        ("x.json", "[1, 2]"),
        ("x.txt", "hello, world"),
        ("x.dat", "\0\1\2\3"),
        ("x.txt", '{"hello": 1}'),
    ],
)
def test_unknown_content_lists_the_formats(tmp_path, name, text):
    with pytest.raises(UserError) as caught:
        read(put(tmp_path / name, text))
    assert all(name in str(caught.value) for name in FORMATS) and "\n" not in str(caught.value)


def test_a_page_of_boxes_is_not_a_data_set(tmp_path):
    with pytest.raises(UserError, match="one page; name the folder"):
        read(put(tmp_path / "000.csv", QUAD + ",A"))


def test_nothing_to_read(tmp_path):
    for make in (lambda: put(tmp_path / "e.txt", ""), lambda: put_json(tmp_path / "e.json", {"images": {}})):
        with pytest.raises(UserError, match="no pages"):
            read(make())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pages"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match="allowed is auto"):
        read(tmp_path, "nothing-of-ours")
    with pytest.raises(UserError, match="several annotation files"):
        read(tmp_path)


def test_wrong_named_format_is_refused(tmp_path):
    picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="content is contest"):
        read(put_json(tmp_path / "x.json", contest({})), "coco")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["words", "points", "img_w", "bbox", "id", "image_id", "file_name", "segmentation", "label"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(kind=st.sampled_from(["contest", "coco", "imgs", "labelme"]), first=JSON, second=JSON)
def test_any_json_is_read_or_refused(tmp_path_factory, kind, first, second):
    data = {
        "contest": {"images": {"a.jpg": first, "b.jpg": {"words": {"1": second}}}},
        "coco": {"images": [{"id": 1, "file_name": "a.jpg"}, first], "annotations": [second, {"image_id": first}]},
        "imgs": {"imgs": {"1": {"id": 1, "file_name": "a.jpg"}}, "anns": {"1": {"image_id": 1, "bbox": first}}},
        "labelme": {"imagePath": "a.jpg", "shapes": [first, {"points": second}]},
    }[kind]
    folder = tmp_path_factory.mktemp("fuzz")
    path = put_json(folder / "x.json", data)
    try:
        pages = read(path, root=folder)[2]
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(p.dtype == np.float32 and p.ndim == 2 for page in pages for p in page.polygons)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(data=st.binary(max_size=60) | st.text('0123456789.,-\t\n#[]{}":ae ', max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    picture(folder / "img" / "000.png", (8, 8))
    (folder / "box").mkdir()
    (folder / "box" / "000.txt").write_bytes(data)
    (folder / "train.txt").write_bytes(data)
    for source in (folder, folder / "train.txt"):
        try:
            read(source)
        except UserError as error:
            assert "\n" not in str(error)
